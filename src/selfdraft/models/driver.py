"""Run a stock model layer by layer: any of its layers, on blocks of tokens at any place of a cache.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree (N = n + 1 with the root), V vocabulary, C hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.anatomy import SLIDING, dissect, refusing
from selfdraft.models.attention import FLEX, additive, visible_slots
from selfdraft.models.attention import NAME as GROUPED_SDPA
from selfdraft.models.block import Block
from selfdraft.models.fusing import fast_module
from selfdraft.models.lightcopy import light_copy
from selfdraft.models.packing import PackedLinear
from selfdraft.models.rotary import Rotary
from selfdraft.models.sparse import Path, spread_out


class Driver:
    """A stock causal LM whose layers are called one by one.

    The model itself is left as it is: packed matrices and the attention function live in light copies of its layers.

    Attributes:
        full: the path of all layers. norm, head: the modules that come after the layers.
        rotary: the rotary positions (see `rotary`).
        rotated: how many numbers of an attention head are rotated, one entry for each way that layers do it.
        share: query heads that `grouped_sdpa` folds into the query length; 1 with other attention functions.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool, attention: str) -> None:
        """Take a loaded model in eval mode. See `Target` for the arguments.

        Raises:
            UserError: the family cannot be driven; the message names it.
        """
        self.model = model
        self.anatomy = dissect(model)
        self.device, self.dtype = model.device, model.dtype
        self.packed, self.attention = packed, attention
        self.vocab_size = int(model.config.vocab_size)
        with refusing(model):
            self.rotary = Rotary(model, self.anatomy)
            self.rotated = self._rotated()
            layers = [self.driven(layer) for layer in self.anatomy.layers]
            self.full = Path(tuple(layers), self.anatomy.layer_types, SkipSet(), leading=len(layers))
            self.norm, self.head = self.fastest(self.anatomy.norm), self.fastest(self.anatomy.head)

    def driven(self, layer: nn.Module) -> nn.Module:
        """Return a light copy of a stock layer for forwards: with our attention, fused and packed where possible."""
        layer = light_copy(layer, _stock)
        self._set_attention(layer)
        return self.fastest(layer)

    def fastest(self, module: nn.Module) -> nn.Module:
        """Return a light copy of a module, fused and packed where possible."""
        return light_copy(module, partial(fast_module, rotated=self.rotated) if self.packed else _stock)

    def linears(self) -> list[nn.Module]:
        """Return every matrix of the full path and the head, packed or not."""
        modules = (part for module in (*self.full.layers, self.head) for part in module.modules())
        return [part for part in modules if isinstance(part, nn.Linear | PackedLinear)]

    def run(
        self,
        path: Path,
        block: Block,
        hidden: Tensor | None = None,
        *,
        since: int = 0,
        normed: bool = True,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the (B, N - since, C) hidden states of a block's tokens after the layers of `path`.

        Args:
            hidden: (B, N, C) input of the first layer; None for the tokens' embeddings.
            since: compute only the tokens from this one on, because the keys of those before are in the cache.
            normed: whether the final norm is applied.
            states: a list that gets the hidden states before the first layer and after every layer.
        """
        anatomy, (_, width) = self.anatomy, block.tokens.shape
        starts = [start + since for start in block.starts]
        view = block.cache.window(block.rows, starts, width - since, key_block=block.key_block)
        positions = torch.tensor(block.behind)[:, None] + block.depths[:, since:]
        lengths = None
        if self.rotary.rules:
            prefilled_at = torch.tensor([block.cache.prefilled_at[row] for row in block.rows])
            lengths = torch.maximum(positions + 1, prefilled_at[:, None])
        positions = positions.to(self.device)
        if hidden is None:
            hidden = anatomy.embed(block.tokens[:, since:].to(self.device))
        masks, rotations = {}, {}
        for kind in set(path.types):
            window = anatomy.window if kind == SLIDING else None
            visible = visible_slots(
                block.starts,
                block.depths,
                block.sees,
                view.span,
                window,
                self.device,
                behind=block.behind,
                held=block.held,
            )
            masks[kind] = additive(None if visible is None else visible[:, since:], self.dtype, self.share)
            rotations[kind] = self.rotary(hidden, positions, kind, lengths)
        if states is not None:
            states.append(hidden)
        for layer, kind in zip(path.layers, path.types, strict=True):
            hidden = layer(
                hidden,
                attention_mask=masks[kind],
                position_ids=positions,
                position_embeddings=rotations[kind],
                **{anatomy.cache_argument: view},
            )
            if states is not None:
                states.append(hidden)
        return (path.norm or self.norm)(hidden) if normed else hidden

    def logits(self, path: Path, hidden: Tensor, trees: Sequence[TokenTree]) -> list[Tensor]:
        """Return (n + 1, V) logits per row, from (B, N, C) final hidden states."""
        # One 2-D contiguous product of the real tokens only: F.linear on anything else may copy the head's weight.
        real = torch.cat([hidden[b, : 1 + len(tree)] for b, tree in enumerate(trees)])
        logits = (path.head or self.head)(real)
        if self.anatomy.softcap is not None:
            logits = torch.tanh(logits / self.anatomy.softcap) * self.anatomy.softcap
        logits = spread_out(logits, path.vocabulary, self.vocab_size)
        return list(logits.split([1 + len(tree) for tree in trees]))

    @torch.inference_mode()
    def _rotated(self) -> frozenset[int]:
        """Return how many numbers of a head are rotated, for every layer type: some families rotate only a part."""
        hidden = torch.zeros(1, 1, 1, dtype=self.dtype, device=self.device)
        first = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return frozenset(self.rotary(hidden, first, kind)[0].shape[-1] for kind in set(self.anatomy.layer_types))

    def _set_attention(self, layer: nn.Module) -> None:
        """Give a light copy its attention function: eager in place of sdpa if scores are capped (Gemma 2)."""
        attention, name = getattr(layer, self.anatomy.attention_name), self.attention
        attention.config = copy.copy(attention.config)
        if name == "sdpa" and getattr(attention.config, "attn_logit_softcapping", None) is not None:
            name = "eager"
        attention.config._attn_implementation = {"sdpa": GROUPED_SDPA, "flex": FLEX}.get(name, name)
        self.share = int(getattr(attention, "num_key_value_groups", 1)) if name == "sdpa" else 1


def _stock(_: str, __: nn.Module) -> None:
    """Keep every module: a `Swap` for `light_copy`."""
