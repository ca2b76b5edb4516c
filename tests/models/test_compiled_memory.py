"""The memory that compiling takes: what is freed before, what is not copied, and what the system gets back."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.models.engines import choice as engines
from selfdraft.models.engines import graph
from selfdraft.models.engines.choice import compile_layers
from selfdraft.models.engines.graph import compiled
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.packing import PackedLinear
from selfdraft.models.kernels.weights import INT8, SAME
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.memory import give_back


def packed_copies(target: Target) -> int:
    """Return how many matrices have a packed copy now."""
    return sum(isinstance(linear, PackedLinear) and linear._packed is not None for linear in target.linears())


def test_packed_copies_are_given_back_before_a_graph_needs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = Target(tiny_model()), []
    assert not packed_copies(target)  # the check of a new target needs none
    target.prefill(0, list(range(20)))
    if not packed_copies(target):
        pytest.skip("this processor packs nothing in float32")

    def no_graph(*_: object, **__: object) -> None:
        seen.append(("graph", packed_copies(target)))
        raise ValueError("not today")

    monkeypatch.setattr(engines, "CompiledLayers", no_graph)
    monkeypatch.setattr(engines, "give_back", lambda: seen.append(("given back", packed_copies(target))))
    with pytest.raises(UserError, match="not today"):
        compile_layers(target)
    assert seen == [("given back", 0), ("graph", 0)]
    target.prefill(0, list(range(20)))  # a run that goes on without a graph packs them again
    assert packed_copies(target)


@pytest.mark.parametrize("weights", [SAME, INT8])
def test_only_matrices_that_may_be_stored_in_codes_are_copied(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    pytest.importorskip("openvino")
    copies, weight_of = [], graph._weight

    def counted(product: object) -> Tensor:
        copies.append(product)
        return weight_of(product)

    monkeypatch.setattr(graph, "_weight", counted)
    with torch.inference_mode():
        compiled(nn.Linear(64, 64), [torch.zeros(2, 64)], [[-1, 64]], weights)
    assert len(copies) == (0 if weights == SAME else 1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory that it can give back")
def test_freed_memory_goes_back_to_the_system() -> None:
    process = psutil.Process()
    # Pieces that are too small to be mapped one by one. Every fifth stays, so that no hole reaches the heap's end.
    pieces: list[Tensor | None] = [torch.ones(25_000) for _ in range(1_500)]
    full = process.memory_info().rss
    for at in range(len(pieces)):
        if at % 5:
            pieces[at] = None
    kept = process.memory_info().rss
    give_back()
    assert kept > full - 40e6  # otherwise there was nothing to give back
    assert process.memory_info().rss < kept - 60e6
