"""Typed attributes of modules, and targets whose layers are elsewhere."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from selfdraft.core.skipset import SkipSet
from selfdraft.models.families.parts import attribute
from selfdraft.models.paths.sparse import sparse_path


def test_an_attribute_is_returned_if_it_is_of_the_kind_asked_for():
    linear = nn.Linear(2, 3)
    assert attribute(linear, "weight", Tensor) is linear.weight
    with pytest.raises(TypeError, match=r"Linear\.out_features is a int, and no Tensor"):
        attribute(linear, "out_features", Tensor)


def test_a_target_without_layers_that_registered_no_function_is_told_so():
    class Remote:
        pass

    with pytest.raises(TypeError, match="Remote has no layers to take apart: register a function"):
        sparse_path(Remote(), SkipSet())
