"""Compute what trained drafters learn from: the target's hidden states, keys and values over texts.

These *teacher outputs* do not change while a drafter is trained. So the target runs over each text once, and the
outputs are kept in memory for later epochs.

Shapes: B rows of packed text, N tokens a row, M positions that are run, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selfdraft.core.errors import UserError
from selfdraft.models.cache.attention import additive
from selfdraft.models.families.anatomy import SLIDING
from selfdraft.models.forward.target import Target


@dataclass(frozen=True)
class TeacherOutputs:
    """The target's outputs for a batch.

    Attributes:
        positions, texts: (B, N) of the batch.
        final: (B, N, C) hidden states after the final norm.
        states: by layer, (B, N, C) hidden states before it, where requested.
        keys, values: by layer, (B, H, N, D), where requested.
    """

    positions: Tensor
    texts: Tensor
    final: Tensor
    states: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class TeacherOutputStore:
    """Keeps teacher outputs in memory, so that the target runs over every row of text once and not in every epoch.

    They are kept in bfloat16, the precision that a target in that dtype has. To make training independent of the other
    rows of a batch and of when it was resumed, the target runs over each row by itself, and even the first answer is
    the stored copy.
    """

    def __init__(
        self,
        teach: Callable[[Tensor, Tensor, Tensor], TeacherOutputs],
        most: Callable[[int], int] = lambda count: count,
    ) -> None:
        """Begin with nothing stored.

        Args:
            teach: computes the teacher outputs of (B, N) tokens, positions and texts.
            most: returns the greatest of the numbers that the processes give it. The target is then run equally often
                by all of them, which is needed if they share its layers (see `shards`).
        """
        self.teach, self.most = teach, most
        self._rows: dict[bytes, TeacherOutputs] = {}

    def __call__(self, tokens: Tensor, positions: Tensor, texts: Tensor) -> TeacherOutputs:
        """Return the teacher outputs of a batch."""
        given = [_Row.of(*row) for row in zip(tokens, positions, texts, strict=True)]
        missing = {row.key: row for row in given if row.key not in self._rows}
        runs = self.most(len(missing))  # asked before the first run: all processes have to do the same, in one order
        for row in missing.values():
            self._add(row)
        for _ in range(runs - len(missing)):
            self.teach(tokens[:1, :1], positions[:1, :1], texts[:1, :1])
        rows = [self._rows[row.key] for row in given]

        def together(parts: list[Tensor]) -> Tensor:
            return torch.stack([_as_wide(part, tokens.shape[1]) for part in parts]).to(tokens.device, self._dtype)

        return TeacherOutputs(
            positions,
            texts,
            together([row.final for row in rows]),
            {layer: together([row.states[layer] for row in rows]) for layer in rows[0].states},
            {layer: together([row.keys[layer] for row in rows]) for layer in rows[0].keys},
            {layer: together([row.values[layer] for row in rows]) for layer in rows[0].values},
        )

    def _add(self, row: _Row) -> None:
        outputs = self.teach(row.tokens[None], row.positions[None], row.texts[None])
        self._dtype = outputs.final.dtype
        states, keys, values = (
            {layer: _kept(part) for layer, part in parts.items()}
            for parts in (outputs.states, outputs.keys, outputs.values)
        )
        final = _kept(outputs.final)
        self._rows[row.key] = TeacherOutputs(row.positions, row.texts, final, states, keys, values)


@dataclass(frozen=True)
class _Row:
    """(N,) tokens, positions and texts of one row, without its padding."""

    tokens: Tensor
    positions: Tensor
    texts: Tensor
    key: bytes

    @classmethod
    def of(cls, tokens: Tensor, positions: Tensor, texts: Tensor) -> _Row:
        real = texts >= 0
        tokens, positions, texts = tokens[real], positions[real], texts[real]
        # The key needs the tokens and the text that each belongs to: together they decide which token sees which.
        return cls(tokens, positions, texts, torch.stack([tokens, texts]).cpu().numpy().tobytes())


def _kept(part: Tensor) -> Tensor:
    return part[0].to("cpu", torch.bfloat16, copy=True)


def _as_wide(part: Tensor, width: int) -> Tensor:
    """Pad (…, N, D) of a row to (…, width, D)."""
    return functional.pad(part, (0, 0, 0, width - part.shape[-2]))


class _Recorder:
    """The cache of the target's layers: keeps the keys and values of some, and lets each layer see its own block."""

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = layers
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer_idx in self.layers:
            self.keys[layer_idx], self.values[layer_idx] = keys, values
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def trainable(target: Target) -> Target:
    """Return a target whose layers training can call one by one.

    Raises:
        UserError: they run only within the model's own forward.
    """
    if target.whole is not None:
        raise UserError(
            f"task=finetune: layers of model family '{target.model.config.model_type}' run within the model's own "
            "forward, and training calls them one by one; drafters that need no training work with this model"
        )
    return target


@torch.no_grad()
def teach(
    target: Target,
    tokens: Tensor,
    positions: Tensor,
    texts: Tensor,
    *,
    layers: Collection[int],
    before: Collection[int] = (),
) -> TeacherOutputs:
    """Run the target over packed texts and return its outputs.

    Args:
        tokens, positions, texts: (B, N); a token sees only its own text.
        layers: keep the keys and values of these layers. before: keep the hidden states before these layers.
    """
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    visible = (texts[:, :, None] == texts[:, None, :]) & causal
    recorder, states = _Recorder(layers), {}
    hidden = target.anatomy.embed(tokens)
    masks, rotations = surroundings(target, target.full.types, hidden, positions, positions, visible)
    for index, (layer, kind) in enumerate(zip(target.full.layers, target.full.types, strict=True)):
        if index in before:
            states[index] = hidden
        hidden = run_layer(target, layer, hidden, positions, masks[kind], rotations[kind], recorder)
    return TeacherOutputs(positions, texts, target.norm(hidden), states, recorder.keys, recorder.values)


def surroundings(
    target: Target, types: Sequence[str], hidden: Tensor, positions: Tensor, key_positions: Tensor, visible: Tensor
) -> tuple[dict, dict]:
    """Return masks and rotations by layer type, for (B, M) positions that see (B, M, K) keys at (B, K) positions."""
    anatomy, masks, rotations = target.anatomy, {}, {}
    for kind in set(types):
        seen = visible
        if kind == SLIDING and anatomy.window is not None:
            seen = seen & (positions[:, :, None] - key_positions[:, None, :] < anatomy.window)
        masks[kind] = additive(seen, hidden.dtype, target.share)
        rotations[kind] = target.rotary(hidden, positions, kind)
    return masks, rotations


def run_layer(
    target: Target,
    layer: Callable[..., Any],
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor,
    rotation: object,
    cache: object,
) -> Tensor:
    """Return (B, M, C) hidden states after a layer; `cache` takes its keys and returns those that it sees."""
    return layer(
        hidden,
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=rotation,
        **{target.anatomy.cache_argument: cache},
    )
