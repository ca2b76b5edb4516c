"""A float32 copy of a low-precision model: it says which of two nearly equal tokens is the right one."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from selfdraft.models.reference.stock_forward import StockForward


class Float32Reference:
    """A float32 copy of a model, made at first use (4 bytes a weight), and run by transformers only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @cached_property
    @torch.inference_mode()
    def stock(self) -> StockForward:
        """The stock forward of the float32 copy."""
        # deepcopy takes what it finds in its memo as it is: so no weight is first copied in its own dtype, and tied
        # weights stay tied.
        wide: dict[int, object] = {id(p): nn.Parameter(p.float(), False) for p in self._model.parameters()}
        wide |= {id(b): b.float() for b in self._model.buffers() if b.is_floating_point()}
        return StockForward(copy.deepcopy(self._model, wide))
