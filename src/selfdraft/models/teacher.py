"""What the target teaches: its hidden states, keys and values over packed texts, kept for the epochs to come.

Shapes: B rows of packed text, N tokens a row, M positions that are run, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfdraft.models.anatomy import SLIDING
from selfdraft.models.attention import additive
from selfdraft.models.target import Target


@dataclass(frozen=True)
class Lesson:
    """What the target made of a batch.

    Attributes:
        positions, texts: (B, N) of the batch.
        final: (B, N, C) hidden states behind the final norm.
        states: by layer, (B, N, C) hidden states before it, where asked for.
        keys, values: by layer, (B, H, N, D), where asked for.
    """

    positions: Tensor
    texts: Tensor
    final: Tensor
    states: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class LessonBook:
    """Lessons of rows that will come again: the target is run over every row once, not once an epoch.

    Kept in bfloat16 in the host's memory, which is as much as a target in that dtype would have had to say. A row is
    taught alone and given as it is kept from the first time on: what is learnt of it depends neither on the rows beside
    it nor on when a training was resumed.
    """

    def __init__(self, teach: Callable[[Tensor, Tensor, Tensor], Lesson]) -> None:
        """`teach`: the lesson of (B, N) tokens, positions and texts."""
        self.teach, self._rows = teach, {}

    def __call__(self, tokens: Tensor, positions: Tensor, texts: Tensor) -> Lesson:
        """The lesson of a batch."""
        rows = [self._row(*row) for row in zip(tokens, positions, texts, strict=True)]

        def together(parts: list[Tensor]) -> Tensor:
            return torch.stack([_as_wide(part, tokens.shape[1]) for part in parts]).to(tokens.device, self._dtype)

        return Lesson(
            positions,
            texts,
            together([row.final for row in rows]),
            {layer: together([row.states[layer] for row in rows]) for layer in rows[0].states},
            {layer: together([row.keys[layer] for row in rows]) for layer in rows[0].keys},
            {layer: together([row.values[layer] for row in rows]) for layer in rows[0].values},
        )

    def _row(self, tokens: Tensor, positions: Tensor, texts: Tensor) -> Lesson:
        """Of a row, without the padding behind it."""
        real = texts >= 0
        tokens, positions, texts = tokens[real], positions[real], texts[real]
        # Its tokens and where its texts begin: neither alone says what sees what.
        key = torch.stack([tokens, texts]).cpu().numpy().tobytes()
        if key not in self._rows:
            lesson = self.teach(tokens[None], positions[None], texts[None])
            self._dtype = lesson.final.dtype
            states, keys, values = (
                {layer: _kept(part) for layer, part in parts.items()}
                for parts in (lesson.states, lesson.keys, lesson.values)
            )
            self._rows[key] = Lesson(positions, texts, _kept(lesson.final), states, keys, values)
        return self._rows[key]


def _kept(part: Tensor) -> Tensor:
    return part[0].to("cpu", torch.bfloat16, copy=True)


def _as_wide(part: Tensor, width: int) -> Tensor:
    """(…, N, D) of a row, padded to `width` places."""
    return functional.pad(part, (0, 0, 0, width - part.shape[-2]))


class _Recorder:
    """What the target's layers write to: keeps the keys of some, and lets all see their own block."""

    def __init__(self, layers: Collection[int]) -> None:
        self.layers, self.keys, self.values = layers, {}, {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer_idx in self.layers:
            self.keys[layer_idx], self.values[layer_idx] = keys, values
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@torch.no_grad()
def teach(
    target: Target,
    tokens: Tensor,
    positions: Tensor,
    texts: Tensor,
    *,
    layers: Collection[int],
    before: Collection[int] = (),
) -> Lesson:
    """Run the target over packed texts.

    Args:
        tokens, positions, texts: (B, N); texts see only themselves.
        layers: whose keys and values are wanted. before: before which layers hidden states are.
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
    return Lesson(positions, texts, target.norm(hidden), states, recorder.keys, recorder.values)


def surroundings(
    target: Target, types: Sequence[str], hidden: Tensor, positions: Tensor, key_positions: Tensor, visible: Tensor
) -> tuple[dict, dict]:
    """Masks and rotations by layer type, of (B, M) positions that see (B, M, K) keys at (B, K) positions."""
    anatomy, masks, rotations = target.anatomy, {}, {}
    for kind in set(types):
        seen = visible
        if kind == SLIDING and anatomy.window is not None:
            seen = seen & (positions[:, :, None] - key_positions[:, None, :] < anatomy.window)
        masks[kind] = additive(seen, hidden.dtype, target.share)
        rotations[kind] = target.rotary(hidden, positions, kind)
    return masks, rotations


def run_layer(
    target: Target, layer: nn.Module, hidden: Tensor, positions: Tensor, mask: Tensor, rotation: object, memory: object
) -> Tensor:
    """(B, M, C) hidden states behind a layer, whose keys and values go to `memory`, and come back with others."""
    return layer(
        hidden,
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=rotation,
        **{target.anatomy.cache_argument: memory},
    )
