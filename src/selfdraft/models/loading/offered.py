"""Offer a model that is loaded already to code that would load an equal one.

The jobs of a sweep are forks of a process that may have loaded their model (see app/sweeps/kept_model.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from selfdraft.models.loading.loading import LoadedModel

_OFFER: ContextVar[tuple[object, LoadedModel] | None] = ContextVar("_OFFER", default=None)


@contextmanager
def offered(key: object, loaded: LoadedModel) -> Iterator[None]:
    """Offer a model on the CPU within a `with` block.

    Args:
        key: says which model it is, e.g. its configuration.
    """
    before = _OFFER.set((key, loaded))
    try:
        yield
    finally:
        _OFFER.reset(before)


def taken(key: object, device: torch.device) -> LoadedModel | None:
    """Return the model that is offered under `key`, once, because the taker may change it; None if there is none."""
    offer = _OFFER.get()
    if offer is None or device.type != "cpu" or offer[0] != key:
        return None
    _OFFER.set(None)
    return offer[1]
