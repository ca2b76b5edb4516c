"""Compute rotary positions so that drafts get those of plain decoding, even if they depend on the text's length.

Most rotary embeddings rotate a token only by its position. Two kinds also depend on the length of the whole text:
`longrope` (Phi-3, Phi-4, PhiMoE) has two tables, one up to a limit and one past it, and `dynamic` NTK has another table
for every length past its limit. transformers chooses the table by the furthest position of a *forward*, so a token's
key depends on the forward in which it was computed. With drafts, the forwards are not those of plain decoding.

So every token is given the length of the text at which plain decoding computes it, and gets the table of that length:

1. a token of the prompt: the prompt's length (plain decoding forwards the prompt at once);
2. any other token: its own position + 1 (plain decoding forwards it when it is the last one).

Some families (Phi-3, PhiMoE) discard their keys when the text grows past the limit, and compute all of them again. The
whole text then counts as a prompt: `Target.refresh` does that, and no draft may reach across the limit.

Shapes: B rows of one forward, N tokens a row, C hidden size, D head size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from selfdraft.models.families.anatomy import Anatomy, position_limit, refuse, text_config
from selfdraft.models.families.dispatch import device_of

Rotation = tuple[Tensor, Tensor]
PROBE = 4  # positions on which a rotary embedding is tried
MOST_KEPT, GROWN_BY = 1 << 16, 1024  # positions in a table: at most, and how many are added at once


UNLIMITED = 10_000  # tokens of a draft; in effect, no limit


@dataclass(frozen=True)
class LengthRule:
    """How the table of a rotary embedding depends on the length of the text.

    Attributes:
        limit: up to this length there is one table.
        grows: past it, every length has its own table; otherwise there is one for all of them.
    """

    limit: int
    grows: bool

    def representative(self, lengths: Tensor) -> Tensor:
        """Map lengths (of any shape) so that all lengths with the same table become one."""
        return lengths.clamp(self.limit, None if self.grows else self.limit + 1)


class Rotary:
    """The rotary embedding of one model.

    Attributes:
        rules: by layer type, how its tables depend on the length of the text; types where they do not are absent.
        recomputed_past: the family computes all keys again when a text grows longer than this; None if it never does.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        """Find the length rules of a model.

        Raises:
            UserError: the embedding depends on the length of the text in a way that is not known here.
        """
        self._stock, self._per_type = anatomy.rotary, anatomy.rotary_per_type
        self.rules = _rules(model, anatomy)
        self._own = self._fresh_copy() if self.rules else None
        self._tables: dict[tuple[str, torch.dtype], Rotation] = {}  # (P, D) of the first positions, by kind of layer
        self.recomputed_past = _recomputed_past(model, self.rules)
        if anatomy.decoder is not None and "position_ids" not in inspect.signature(anatomy.rotary.forward).parameters:
            return  # positions are not rotated, or within the layers
        for kind in set(anatomy.layer_types) - self.rules.keys():
            try:
                depends = self._depends_on_length(model, kind)
            except KeyError:
                if anatomy.decoder is None:
                    raise
                continue  # the family has other names for its types, and gives them itself
            if depends:
                raise refuse(model, "its rotary positions depend on the length of the text in a way of their own")

    @property
    def limits(self) -> set[int]:
        """The lengths past which other tables are used."""
        return {rule.limit for rule in self.rules.values()}

    def alike_after(self, root: int) -> int:
        """Return how many tokens after the one at position `root` may share a forward with it."""
        limit = self.recomputed_past
        return UNLIMITED if limit is None or root >= limit else limit - root - 1

    def __call__(self, hidden: Tensor, positions: Tensor, kind: str, lengths: Tensor | None = None) -> Rotation:
        """Return the (B, N, D) cosines and sines of a layer type.

        Args:
            hidden: (B, N, C), for its dtype and device. positions: (B, N).
            lengths: (B, N) length of the text at which each token is computed; None: up to the furthest position.
        """
        rule = self.rules.get(kind)
        if rule is None:
            return self._looked_up(hidden, positions, kind)
        if lengths is None:
            lengths = torch.full_like(positions, int(positions.max()) + 1)
        lengths = rule.representative(lengths.to(positions.device))
        rotation: Rotation | None = None
        for length in lengths.unique().tolist():
            mine = lengths == length
            new = self._at_length(hidden, positions.where(mine, 0), kind, length, rule)
            old = rotation or new
            cos, sin = (torch.where(mine[..., None], n, o) for n, o in zip(new, old, strict=True))
            rotation = cos, sin
        assert rotation is not None
        return rotation

    def _looked_up(self, hidden: Tensor, positions: Tensor, kind: str) -> Rotation:
        """Return the stock module's result. On a CPU it is looked up in a table, because the module takes longer."""
        whole = positions.device.type == "cpu" and not positions.is_floating_point()
        furthest = int(positions.max()) if whole else MOST_KEPT
        if furthest >= MOST_KEPT:
            return self._stock(hidden, positions, *self._types(kind))
        key = kind, hidden.dtype
        if key not in self._tables or furthest >= len(self._tables[key][0]):
            every = torch.arange((furthest // GROWN_BY + 1) * GROWN_BY)[None]
            cos, sin = self._stock(hidden[:1], every, *self._types(kind))
            self._tables[key] = cos[0], sin[0]
        cos, sin = (part.index_select(0, positions.flatten()) for part in self._tables[key])
        return cos.view(*positions.shape, -1), sin.view(*positions.shape, -1)

    def _at_length(self, hidden: Tensor, positions: Tensor, kind: str, length: int, rule: LengthRule) -> Rotation:
        """Rotate by the table of one length: a position is added, since the furthest one decides the stock table."""
        stock = self._own
        assert stock is not None, "no layer type of this model has a rule"
        if rule.grows:  # it keeps the table of the longest text that it has seen
            stock = copy.deepcopy(stock, {id(stock.config): stock.config})
        furthest = positions.new_full((len(positions), 1), length - 1)
        cos, sin = stock(hidden, torch.cat([positions, furthest], dim=1), *self._types(kind))
        return cos[:, :-1], sin[:, :-1]

    def _fresh_copy(self) -> nn.Module:
        """Return a copy of our own, in the state in which the module was before it saw any long text."""
        fresh = copy.deepcopy(self._stock, {id(self._stock.config): self._stock.config})
        start = torch.zeros(1, 1, dtype=torch.long, device=_device(fresh))
        for kind in self.rules:
            fresh(start.float()[..., None], start, *self._types(kind))
        return fresh

    def _depends_on_length(self, model: PreTrainedModel, kind: str) -> bool:
        """Whether a far position in the same forward changes how the others are rotated."""
        stock = copy.deepcopy(self._stock, {id(model.config): model.config})
        near = torch.arange(PROBE, device=_device(stock))[None]
        far = torch.cat([near, near[:, -1:] + 2 * position_limit(text_config(model))], dim=1)
        x = torch.zeros(1, 1, 1, dtype=model.dtype, device=near.device)
        short, extended = (stock(x, positions, *self._types(kind)) for positions in (near, far))
        pairs = zip(*((r,) if isinstance(r, Tensor) else r for r in (short, extended)), strict=True)
        return not all(torch.equal(one, other[:, :PROBE]) for one, other in pairs)

    def _types(self, kind: str) -> list[str]:
        return [kind] if self._per_type else []


def _rules(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, LengthRule]:
    """Return the length rules by layer type, from the types of rope that the configuration names."""
    parameters: Mapping[str, Any] = getattr(text_config(model), "rope_parameters", None) or {}
    rules = {}
    for kind in set(anatomy.layer_types):
        own = parameters.get(kind, parameters) if anatomy.rotary_per_type else parameters
        name = str((own or {}).get("rope_type", "default"))
        if name == "longrope":
            rules[kind] = LengthRule(int(own["original_max_position_embeddings"]), grows=False)
        elif "dynamic" in name:
            rules[kind] = LengthRule(position_limit(text_config(model)), grows=True)
    return rules


def _recomputed_past(model: Any, rules: Mapping[str, LengthRule]) -> int | None:
    """Return the length past which the family recomputes keys: there it prepares a forward without those it has."""
    if not rules:
        return None
    if type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return None
    named = getattr(text_config(model), "original_max_position_embeddings", None)
    for limit in sorted({rule.limit for rule in rules.values()} | ({int(named)} if named else set())):
        ids = torch.zeros(1, limit + 1, dtype=torch.long, device=device_of(model))
        prepared = model.prepare_inputs_for_generation(
            ids, past_key_values=_Held(limit), attention_mask=torch.ones_like(ids), next_sequence_length=1
        )
        if prepared.get("past_key_values") is None:
            return limit
    return None


class _Held:
    """A stand-in for a cache: says that it has a number of tokens, and holds none."""

    is_compileable = False

    def __init__(self, length: int) -> None:
        self._length = length

    def get_seq_length(self, *_: object) -> int:
        return self._length


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in module.buffers()), torch.device("cpu"))
