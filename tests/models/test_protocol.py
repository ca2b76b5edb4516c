"""Every target implements the protocol: the same methods with the same parameters, and the attributes."""

from __future__ import annotations

import inspect

import pytest

from selfdraft.decoding.tree_parallel import TreeParallelTarget
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from stub_target import StubTarget, successor

METHODS = [name for name, part in vars(TargetProtocol).items() if inspect.isfunction(part) and not name.startswith("_")]
ATTRIBUTES = [name for name in TargetProtocol.__annotations__ if not name.startswith("_")]


def test_the_protocol_has_few_methods() -> None:
    assert sorted(METHODS) == [
        "allocate",
        "commit",
        "copy_prefix",
        "draft_forward",
        "forward",
        "longest_draft",
        "prefill",
        "refresh",
        "replay",
    ]


@pytest.mark.parametrize("target", [Target, StubTarget, TreeParallelTarget])
def test_every_target_has_the_protocol_s_methods_and_parameters(target: type) -> None:
    for name in METHODS:
        expected = list(inspect.signature(getattr(TargetProtocol, name)).parameters)
        assert list(inspect.signature(getattr(target, name)).parameters) == expected, name


def test_every_target_has_the_protocol_s_attributes() -> None:
    real, stub = Target(tiny_model()), StubTarget(successor)
    assert [name for name in ATTRIBUTES if not hasattr(real, name) or not hasattr(stub, name)] == []
