"""Every target implements the protocol: the same methods with the same parameters, and the attributes."""

from __future__ import annotations

import inspect

import pytest

from selfdraft.decoding.tree_parallel import TreeParallelTarget
from selfdraft.models.protocol import TargetProtocol
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model
from stub_target import StubTarget, successor

METHODS = [name for name, part in vars(TargetProtocol).items() if inspect.isfunction(part) and not name.startswith("_")]
ATTRIBUTES = [name for name in TargetProtocol.__annotations__ if not name.startswith("_")]


def test_the_protocol_has_few_methods() -> None:
    assert sorted(METHODS) == [
        "allocate",
        "commit",
        "draft_forward",
        "forward",
        "longest_draft",
        "prefill",
        "refresh",
        "replay",
    ]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [Target, StubTarget, TreeParallelTarget])
def test_every_target_has_the_protocol_s_methods_and_parameters(target: type, name: str) -> None:
    expected = list(inspect.signature(getattr(TargetProtocol, name)).parameters)
    assert list(inspect.signature(getattr(target, name)).parameters) == expected


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_target_has_the_protocol_s_attributes(name: str) -> None:
    assert hasattr(Target(tiny_model()), name)
    assert hasattr(StubTarget(successor), name)
