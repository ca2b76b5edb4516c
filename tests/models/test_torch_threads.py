"""Beside a graph torch uses one thread; everywhere else it has as many as before."""

from __future__ import annotations

import pytest
import torch

from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.engines.choice import compile_layers
from selfdraft.models.forward import path as path_module
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.paths.sparse import sparse_path


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_comes_back_after_an_error_too() -> None:
    with pytest.raises(ValueError), single_threaded():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == 2
    with single_threaded(None):
        assert torch.get_num_threads() == 2


def test_only_what_a_graph_runs_is_single_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    target, seen = Target(tiny_model()), []
    compile_layers(target)
    real = path_module.visible_slots

    def counted(*args: object, **options: object) -> object:
        seen.append(torch.get_num_threads())
        return real(*args, **options)

    monkeypatch.setattr(path_module, "visible_slots", counted)
    target.allocate(1, 8)
    target.forward([0], [5], [TokenTree.chain([1])])
    target.draft_forward(sparse_path(target, SkipSet.of(4, [1], [])), [0], 0, [5], [TokenTree.empty()])
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2
