"""The target: one stock model, driven layer by layer over token trees, full or sparse.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree (N = n + 1 with the root), V vocabulary, C hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.core.costs import CostCurve
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.anatomy import SLIDING, dissect, refuse
from selfdraft.models.attention import FLEX, additive, visible_slots
from selfdraft.models.attention import NAME as GROUPED_SDPA
from selfdraft.models.cache import KVCache
from selfdraft.models.lightcopy import SkippedAttention, SkippedMLP, light_copy
from selfdraft.models.packing import PackedLinear, can_pack
from selfdraft.models.profiling import measure_costs

LONGEST_DRAFT = 10_000  # no limit
PREFILL_CHUNK = 512  # tokens a prefill forward: bounds the (N, K) mask of long prompts


@dataclass(frozen=True)
class Path:
    """The layers that a forward runs through: all of them, or a sparse selection. Weights are shared, never copied."""

    layers: tuple[nn.Module, ...]
    types: tuple[str, ...]
    skip: SkipSet


class Target:
    """A stock causal LM behind the interface that decoding and drafters need.

    The model itself is left as it is: packed matrices and the attention function live in light copies of its layers.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool = True, attention: str = "sdpa") -> None:
        """Take a loaded model in eval mode.

        Args:
            attention: one of `attention.IMPLEMENTATIONS`: ours around torch's sdpa, the family's eager one, or flex.
            packed: on a CPU, hold an oneDNN-packed copy of every matrix (twice the memory, faster small forwards).

        Raises:
            UserError: where the family cannot be driven, by name.
        """
        self.model = model
        self.anatomy = dissect(model)
        self.device, self.dtype = model.device, model.dtype
        self.max_positions = int(model.config.max_position_embeddings)
        self.pad_id = _first(model.config.pad_token_id, model.config.eos_token_id, 0)
        # What the shapes of a forward are rounded up to, and what decoding may ask of it (see invariance.py).
        self.key_block, self.row_block = 1, 1
        self.longest_draft, self.chains_only = LONGEST_DRAFT, False
        self.forwards = 0  # full forwards after prefill; read by the decoding loop
        weights = sum(p.numel() for p in model.parameters())
        self.parameters, self.vocab_size = weights, int(model.config.vocab_size)

        def pack(_: str, module: nn.Module) -> nn.Module | None:
            return PackedLinear(module) if packed and type(module) is nn.Linear and can_pack(module.weight) else None

        layers = [light_copy(layer, pack) for layer in self.anatomy.layers]
        self.full = Path(tuple(layers), self.anatomy.layer_types, SkipSet())
        self._head = light_copy(self.anatomy.head, pack)
        self.cache = KVCache(len(layers), rows=1, slots=0)
        try:
            for layer in layers:
                self._set_attention(layer, attention)
            error = self._distance_from_stock_forward()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as broken:
            raise refuse(model, f"its layers cannot be driven one by one ({type(broken).__name__})") from broken
        if not error < (1e-3 if self.dtype == torch.float32 else 0.1):
            raise refuse(model, f"its forward differs from a drive through its layers (by {error:.2g} of a sigma)")

    def allocate(self, rows: int, slots: int) -> None:
        """A cache for `rows` requests of at least `slots` tokens each, kept where the present one will do."""
        if self.cache.rows == rows:
            self.cache.reserve(slots)
        else:
            self.cache = KVCache(len(self.full.layers), rows, slots)
        for row in range(rows):
            self.cache.clear(row)

    def teacher_forced(self, text: Sequence[int], prefix: int, block: int) -> Tensor:
        """(len(text) - prefix, V) logits after each token behind the prefix, forwarded `block` at a time.

        For controls and checks: what the cache holds is overwritten, and the forwards are not counted as decoding.
        """
        (logits,) = self.teacher_forced_in(text, prefix, [block])
        return logits

    @torch.inference_mode()
    def teacher_forced_in(self, text: Sequence[int], prefix: int, blocks: Sequence[int]) -> list[Tensor]:
        """The same for every size of block, with one prefill for all."""
        forwards, every = self.forwards, []
        self.allocate(1, len(text) + max(blocks))
        self.prefill(0, text[:prefix])
        for block in blocks:
            self.cache.rewind(0, prefix)
            parts = []
            for first in range(prefix, len(text), block):
                root, *rest = text[first : first + block]
                parts.append(self.forward([0], [root], [TokenTree.chain(rest)])[0])
                self.commit(0, range(len(rest)))
            every.append(torch.cat(parts))
        self.forwards = forwards
        return every

    @cached_property
    def costs(self) -> CostCurve:
        """What a forward of so many tokens costs here. Measured when first asked for, in about a second.

        Overwrites the cache: drafters ask when they are made, never in the middle of a request.
        """
        return measure_costs(self)

    def linears(self) -> list[nn.Module]:
        """Every matrix of the full path and the head, packed or not."""
        modules = (part for module in (*self.full.layers, self._head) for part in module.modules())
        return [part for part in modules if isinstance(part, nn.Linear | PackedLinear)]

    def sparse_path(self, skip: SkipSet) -> Path:
        """The path that bypasses the sublayers of `skip`. Making one costs microseconds; any number may coexist."""
        layers, types = [], []
        for index, (layer, kind) in enumerate(zip(self.full.layers, self.full.types, strict=True)):
            if index in skip.whole_layers():
                continue
            if index in skip.attention or index in skip.mlp:
                twin = copy.copy(layer)
                twin._modules = dict(layer._modules)
                if index in skip.attention:
                    twin._modules[self.anatomy.attention_name] = SkippedAttention()
                else:
                    twin._modules[self.anatomy.mlp_name] = SkippedMLP()
                layer = twin
            layers.append(layer)
            types.append(kind)
        return Path(tuple(layers), tuple(types), skip)

    @torch.inference_mode()
    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """Commit `tokens` to a cache row, without logits. They follow what the row holds already."""
        for first in range(0, len(tokens), PREFILL_CHUNK):
            chunk = torch.tensor([tokens[first : first + PREFILL_CHUNK]])
            start = self.cache.lengths[row]
            self._hidden(self.full, [row], [start], chunk, torch.arange(chunk.shape[1])[None], None)
            self.cache.extend(row, chunk.shape[1])

    @torch.inference_mode()
    def forward(self, rows: Sequence[int], roots: Sequence[int], trees: Sequence[TokenTree]) -> list[Tensor]:
        """One full forward of every row's root and tree: the step that everything is about.

        Args:
            rows: B cache rows. roots: their last committed tokens, not yet in the cache. trees: their drafts.

        Returns:
            Per row (n + 1, V) logits: after the root, then after each node.
        """
        self.forwards += 1
        return self._blocks(self.full, rows, [self.cache.lengths[row] for row in rows], roots, trees)

    @torch.inference_mode()
    def draft_forward(
        self, path: Path, rows: Sequence[int], offset: int, tokens: Sequence[int], trees: Sequence[TokenTree]
    ) -> list[Tensor]:
        """A forward through `path` in the scratch slots behind the committed tokens: nothing to undo afterwards.

        Args:
            offset: how many scratch tokens of the same draft come before (a drafted chain is written as it grows).
            tokens: per row the token at that offset. trees: what hangs under it.

        Returns:
            Per row (n + 1, V) logits.
        """
        if path is self.full:
            self.forwards += 1
        return self._blocks(path, rows, [self.cache.lengths[row] + offset for row in rows], tokens, trees)

    def commit(self, row: int, path: Sequence[int]) -> None:
        """Keep the root and the accepted nodes of the last full forward (see `KVCache.commit`)."""
        self.cache.commit(row, path)

    def _blocks(
        self,
        path: Path,
        rows: Sequence[int],
        starts: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
    ) -> list[Tensor]:
        width = -(-(1 + max(len(tree) for tree in trees)) // self.row_block) * self.row_block
        tokens = torch.empty(len(rows), width, dtype=torch.long)
        depths = torch.zeros(len(rows), width, dtype=torch.long)
        sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself, and nobody sees it
        sees[:, :, 0] = True
        for b, (root, tree) in enumerate(zip(roots, trees, strict=True)):
            end = 1 + len(tree)
            tokens[b, 0], tokens[b, 1:end], tokens[b, end:] = root, tree.tokens, root
            depths[b, 1:end] = tree.depths
            sees[b, 1:end, 1:end] = tree.sees
        hidden = self._hidden(path, rows, starts, tokens, depths, sees)
        # One 2-D contiguous product of the real tokens only: F.linear on anything else may copy the head's weight.
        real = torch.cat([hidden[b, : 1 + len(tree)] for b, tree in enumerate(trees)])
        logits = self._head(real)
        if self.anatomy.softcap is not None:
            logits = torch.tanh(logits / self.anatomy.softcap) * self.anatomy.softcap
        return list(logits.split([1 + len(tree) for tree in trees]))

    def _hidden(
        self,
        path: Path,
        rows: Sequence[int],
        starts: Sequence[int],
        tokens: Tensor,
        depths: Tensor,
        sees: Tensor | None,
    ) -> Tensor:
        """(B, N, C) final hidden states of (B, N) tokens written at slots ``starts[b] …`` of the cache."""
        anatomy = self.anatomy
        view = self.cache.window(rows, starts, tokens.shape[1], key_block=self.key_block)
        positions = (torch.tensor(starts)[:, None] + depths).to(self.device)
        hidden = anatomy.embed(tokens.to(self.device))
        masks, rotations = {}, {}
        for kind in set(path.types):
            window = anatomy.window if kind == SLIDING else None
            visible = visible_slots(starts, depths, sees, view.span, window, self.device)
            masks[kind] = additive(visible, self.dtype, self._share)
            rotations[kind] = anatomy.rotary(hidden, positions, *([kind] if anatomy.rotary_per_type else []))
        for layer, kind in zip(path.layers, path.types, strict=True):
            hidden = layer(
                hidden,
                attention_mask=masks[kind],
                position_ids=positions,
                position_embeddings=rotations[kind],
                **{anatomy.cache_argument: view},
            )
        return anatomy.norm(hidden)

    def _set_attention(self, layer: nn.Module, name: str) -> None:
        """Give a light copy its attention function. sdpa cannot cap scores: where a family does (Gemma 2), eager."""
        attention = getattr(layer, self.anatomy.attention_name)
        attention.config = copy.copy(attention.config)
        if name == "sdpa" and getattr(attention.config, "attn_logit_softcapping", None) is not None:
            name = "eager"
        attention.config._attn_implementation = {"sdpa": GROUPED_SDPA, "flex": FLEX}.get(name, name)
        self._share = int(getattr(attention, "num_key_value_groups", 1)) if name == "sdpa" else 1

    @torch.inference_mode()
    def _distance_from_stock_forward(self) -> float:
        """How far our drive through the layers is from the model's own forward: in sigmas of a logit."""
        count = 12
        tokens = torch.randint(self.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
        stock = self.model(input_ids=tokens[None].to(self.device), use_cache=False).logits[0].float()
        ours = self.forward([0], [int(tokens[0])], [TokenTree.chain(tokens[1:])])[0].float()
        self.forwards = 0
        return float((stock - ours).abs().mean() / stock.std(dim=-1).mean())


def _first(*ids: int | Sequence[int] | None) -> int:
    """The first token id that is given, of several fallbacks."""
    given = next(i for i in ids if i is not None and i != [])
    return int(given if isinstance(given, int) else given[0])
