"""Tiny models of every family."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def target(model: PreTrainedModel) -> Target:
    """Fresh for every test, so that none finds another's cache."""
    return Target(model)
