"""Draft-only layers in training: twins of the target's layers with trainable parts, behind the target's own keys.

While drafting, a draft path sees the keys and values that the *full* model left of all committed tokens, and its own of
the tokens drafted since. It is trained the same way: the target is run over a text once, and the twins are run over
blocks of it, each seeing the target's keys before the block and its own within.

Shapes: B rows of packed text, N tokens a row, M = G * K positions that are trained (see `core.lessons`), C hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from selfdraft.core.lessons import Blocks
from selfdraft.models.adapter import Adapter
from selfdraft.models.anatomy import SLIDING
from selfdraft.models.attention import additive
from selfdraft.models.lightcopy import light_copy
from selfdraft.models.sparse import Path
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


class _Behind:
    """What a student's layers write to: the target's keys come first, then their own."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        lesson = self.lesson
        return torch.cat([lesson.keys[layer_idx], keys], 2), torch.cat([lesson.values[layer_idx], values], 2)

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
    masks, rotations = _surroundings(target, target.full.types, hidden, positions, positions, visible)
    for index, (layer, kind) in enumerate(zip(target.full.layers, target.full.types, strict=True)):
        if index in before:
            states[index] = hidden
        hidden = _through(target, layer, hidden, positions, masks[kind], rotations[kind], recorder)
    return Lesson(positions, texts, target.norm(hidden), states, recorder.keys, recorder.values)


class Student(nn.Module):
    """The trainable twins of a draft path's layers, from layer `first` on.

    Attributes:
        indices: of the layers that the twins stand for.
        vocabulary: (v,) ids drafted from; None for all.
    """

    def __init__(
        self,
        target: Target,
        path: Path,
        *,
        first: int = 0,
        rank: int = 0,
        alpha: float = 1.0,
        lora_from: int = 0,
        whole: Sequence[int] = (),
        norm: bool = False,
        vocabulary: Tensor | None = None,
    ) -> None:
        """Twins of the layers of `path`, the target's weights frozen beneath.

        Args:
            first: layers before this one are the target's own, and are not run.
            rank, alpha: of LoRA (Hu et al. 2021, arXiv 2106.09685) on every matrix of the twins from layer `lora_from`
                on; rank 0 for none.
            whole: layers that are trained altogether, without LoRA. norm: train a final norm for drafts.
        """
        super().__init__()
        target.model.requires_grad_(False)
        gone = path.skip.whole_layers()
        every = [i for i in range(len(target.full.layers)) if i not in gone]
        kept = [(i, layer, kind) for i, layer, kind in zip(every, path.layers, path.types, strict=True) if i >= first]
        self.indices, self.types = [i for i, *_ in kept], [kind for *_, kind in kept]
        self.first, self.scale = first, alpha / rank if rank else 0.0
        twins = [copy.deepcopy(layer) if i in whole else light_copy(layer, _keep) for i, layer, _ in kept]
        self.layers, self.whole = nn.ModuleList(twins), tuple(whole)
        if rank:
            names = [
                f"{at}.{name}"
                for at, (i, twin) in enumerate(zip(self.indices, twins, strict=True))
                for name, module in twin.named_modules()
                if i >= lora_from and i not in whole and isinstance(module, nn.Linear)
            ]
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), self.layers)
        for at, i in enumerate(self.indices):
            if i in whole:
                self.layers[at].requires_grad_(True)
        self.norm = copy.deepcopy(target.norm).requires_grad_(True) if norm else None
        self._target = [target]  # in a list: not a part of what is trained, moved or saved
        self.register_buffer("vocabulary", vocabulary, persistent=False)

    @property
    def target(self) -> Target:
        """The model whose twin this is."""
        return self._target[0]

    def forward(
        self,
        hidden: Tensor,
        blocks: Blocks,
        lesson: Lesson,
        *,
        states: list[Tensor] | None = None,
        dropped: Collection[int] = (),
    ) -> Tensor:
        """(B, M, C) hidden states behind the norm.

        Args:
            hidden: (B, M, C) what the first twin gets. states: gets the normed hidden states behind every twin but
                the last. dropped: twins that are left out this time, by their number.
        """
        positions, starts = blocks.gathered(lesson.positions), blocks.index[..., 0].repeat_interleave(blocks.size, 1)
        texts, places = blocks.gathered(lesson.texts), torch.arange(lesson.texts.shape[1], device=hidden.device)
        own = torch.arange(positions.shape[1], device=hidden.device)
        committed = (texts[:, :, None] == lesson.texts[:, None, :]) & (places < starts[..., None])
        together = own[:, None] // blocks.size == own // blocks.size
        drafted = (together & (own <= own[:, None])).expand(len(hidden), -1, -1)
        seen = torch.cat([committed, drafted], dim=2)
        key_positions = torch.cat([lesson.positions, positions], dim=1)
        masks, rotations = _surroundings(self.target, self.types, hidden, positions, key_positions, seen)
        memory, norm = _Behind(lesson), self.norm or self.target.norm
        for at, (layer, kind) in enumerate(zip(self.layers, self.types, strict=True)):
            if at not in dropped:
                hidden = _through(self.target, layer, hidden, positions, masks[kind], rotations[kind], memory)
            if states is not None and at + 1 < len(self.layers):
                states.append(norm(hidden))
        return norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, v) of normed (…, C) hidden states, the target's or the student's."""
        head, cap = self.target.head, self.target.anatomy.softcap
        if self.vocabulary is None:
            logits = head(hidden)
        else:
            bias = None if head.bias is None else head.bias[self.vocabulary]
            logits = functional.linear(hidden, head.weight[self.vocabulary], bias)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def words(self, logits: Tensor) -> Tensor:
        """(…) ids of the likeliest tokens of (…, v) logits."""
        best = logits.argmax(-1)
        return best if self.vocabulary is None else self.vocabulary[best]

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, named as an `Adapter` names it."""
        found: dict[str, Tensor] = {}
        for index, layer in zip(self.indices, self.layers, strict=True):
            if index in self.whole:
                found |= {f"layer.{index}.{name}": p for name, p in layer.named_parameters()}
            for name, module in layer.named_modules():
                if isinstance(module, LoraLayer):
                    found[f"lora.{index}.{name}.A"] = module.lora_A["default"].weight
                    found[f"lora.{index}.{name}.B"] = module.lora_B["default"].weight
        if self.norm is not None:
            found |= {f"norm.{name}": p for name, p in self.norm.named_parameters()}
        if self.vocabulary is not None:
            found["vocabulary"] = self.vocabulary
        return found

    def adapter(self, recipe: str, path: Path, **more: object) -> Adapter:
        """What was trained, and where it belongs."""
        skip = {"skip_attention": sorted(path.skip.attention), "skip_mlp": sorted(path.skip.mlp)}
        return Adapter(recipe, {"scale": self.scale, "first": self.first, **skip, **more}, self.tensors())


def _keep(_: str, module: nn.Module) -> nn.Module | None:
    """Twins are made of whatever the path has."""
    return None


def _surroundings(
    target: Target, types: Sequence[str], hidden: Tensor, positions: Tensor, key_positions: Tensor, visible: Tensor
) -> tuple[dict, dict]:
    """Masks and rotations by layer type, of (B, M) positions that see (B, M, K) keys at (B, K) positions."""
    anatomy, masks, rotations = target.anatomy, {}, {}
    for kind in set(types):
        seen = visible
        if kind == SLIDING and anatomy.window is not None:
            seen = seen & (positions[:, :, None] - key_positions[:, None, :] < anatomy.window)
        masks[kind] = additive(seen, hidden.dtype, target.share)
        rotations[kind] = anatomy.rotary(hidden, positions, *([kind] if anatomy.rotary_per_type else []))
    return masks, rotations


def _through(
    target: Target, layer: nn.Module, hidden: Tensor, positions: Tensor, mask: Tensor, rotation: object, memory: object
) -> Tensor:
    return layer(
        hidden,
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=rotation,
        **{target.anatomy.cache_argument: memory},
    )
