"""The stock model in float32: what a low-precision model would say if it did not round."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Float32Reference:
    """A float32 copy of a model, made when it is first asked (4 bytes a weight), driven by transformers alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._copy: PreTrainedModel | None = None

    @torch.inference_mode()
    def logits(self, text: Sequence[int], first: int) -> Tensor:
        """(len(text) - first, V) logits after ``text[first]`` and each token behind it, from one plain forward."""
        if self._copy is None:
            # What deepcopy finds in its memo it takes as it is: no weight is copied in its own dtype first, and tied
            # weights stay tied.
            wide: dict[int, object] = {id(p): nn.Parameter(p.float(), False) for p in self._model.parameters()}
            wide |= {id(b): b.float() for b in self._model.buffers() if b.is_floating_point()}
            self._copy = copy.deepcopy(self._model, wide)
        ids = torch.tensor([list(text)], device=self._model.device)
        return self._copy(input_ids=ids, use_cache=False, logits_to_keep=len(text) - first).logits[0].float()
