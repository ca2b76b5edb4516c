"""Train layers for drafting: copies of the target's layers, which read the target's own keys.

The training imitates drafting. There, a draft path sees the *full* model's keys and values of all committed tokens, and
its own of the tokens drafted since. So the target is run over a text once, and the trainable copies are then run over
blocks of it. Each block sees the target's keys before it and its own keys within.

Shapes: B rows of packed text, N tokens a row, M = G * K trained positions (see `core.training`), C hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from selfdraft.core.errors import UserError
from selfdraft.core.training import Blocks
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.families.parts import matrix
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.adapter import FEATURE, JUMP, Adapter
from selfdraft.models.training.teacher import TeacherOutputs, run_layer, surroundings


class _StudentCache:
    """The cache that the trained layers read: the target's keys first, then their own."""

    def __init__(self, teacher: TeacherOutputs) -> None:
        self.teacher = teacher

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        teacher = self.teacher
        return torch.cat([teacher.keys[layer_idx], keys], 2), torch.cat([teacher.values[layer_idx], values], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class Student(nn.Module):
    """The trainable copies of a draft path's layers, from layer `first` on.

    Attributes:
        indices: the layers of the model that were copied.
        vocabulary: (v,) ids drafted from; None for all.
    """

    vocabulary: Tensor | None

    def __init__(
        self,
        target: Target,
        path: Path,
        *,
        first: int = 0,
        rank: int = 0,
        alpha: float = 1.0,
        lora_from: int = 0,
        lora_on: Collection[str] = (),
        whole: Sequence[int] = (),
        norm: bool = False,
        feature: bool = False,
        jump: bool = False,
        vocabulary: Tensor | None = None,
    ) -> None:
        """Make trainable copies of the layers of `path`; the target's own weights are frozen.

        Args:
            first: layers before this one are the target's own, and are not run.
            rank, alpha: of the LoRA (Hu et al. 2021, arXiv 2106.09685) on every matrix of the copies from layer
                `lora_from` on; rank 0 for none. lora_on: only matrices whose names end with one of these; empty: all.
            whole: layers whose weights are all trained, without LoRA. norm: train a final norm for drafts.
            feature: train the matrix of `FeaturePath.feature`; it begins as zeros.
            jump: train that of `JumpPath.jump`; it begins as the identity.
        """
        super().__init__()
        target.model.requires_grad_(False)
        gone = path.skip.whole_layers()
        every = [i for i in range(len(target.full.layers)) if i not in gone]
        kept = [(i, layer, kind) for i, layer, kind in zip(every, path.layers, path.types, strict=True) if i >= first]
        self.indices, self.types = [i for i, *_ in kept], [kind for *_, kind in kept]
        self.first, self.scale = first, alpha / rank if rank else 0.0
        copies = [copy.deepcopy(layer) if i in whole else light_copy(layer, _keep) for i, layer, _ in kept]
        self.layers, self.whole = nn.ModuleList(copies), tuple(whole)
        if rank:
            names = [
                f"{at}.{name}"
                for at, (i, layer) in enumerate(zip(self.indices, copies, strict=True))
                for name, module in layer.named_modules()
                if i >= lora_from and i not in whole and type(module) is nn.Linear
                if not lora_on or name.rpartition(".")[2] in lora_on
            ]
            if unknown := set(lora_on) - {name.rpartition(".")[2] for name in names}:
                raise UserError(
                    f"finetune.matrices: no layer of this model that gets a LoRA has '{min(unknown)}'; "
                    f"there are {', '.join(sorted(_linears(copies)))}"
                )
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), self.layers)
        for at, i in enumerate(self.indices):
            if i in whole:
                self.layers[at].requires_grad_(True)
        self.norm = copy.deepcopy(target.norm).requires_grad_(True) if norm else None
        width = target.model.config.hidden_size
        self.feature, self.jump = (
            nn.Linear(width, width, bias=False, device=target.device) if wanted else None for wanted in (feature, jump)
        )
        if self.feature is not None:
            nn.init.zeros_(self.feature.weight)
        if self.jump is not None:
            nn.init.eye_(self.jump.weight)
        self._target = [target]  # in a list, so that torch does not train, move or save it
        self._divided: dict[int, nn.Module] = {}
        self.register_buffer("vocabulary", vocabulary, persistent=False)

    @property
    def target(self) -> Target:
        """The model that this student drafts for."""
        return self._target[0]

    def divide(self) -> None:
        """Read frozen weights within the target's layers, which have been divided (see `shards.shard_layers`)."""
        layers = self.target.full.layers
        self._divided = {at: layers[i] for at, i in enumerate(self.indices) if i not in self.whole}

    def forward(
        self,
        hidden: Tensor,
        blocks: Blocks,
        teacher: TeacherOutputs,
        *,
        states: list[Tensor] | None = None,
        dropped: Collection[int] = (),
    ) -> Tensor:
        """Return (B, M, C) hidden states after the norm.

        Args:
            hidden: (B, M, C) input of the first layer. states: gets the normed hidden states after every layer but the
                last. dropped: layers to leave out this time, as indices into `layers`.
        """
        positions, starts = blocks.gathered(teacher.positions), blocks.index[..., 0].repeat_interleave(blocks.size, 1)
        texts, places = blocks.gathered(teacher.texts), torch.arange(teacher.texts.shape[1], device=hidden.device)
        own = torch.arange(positions.shape[1], device=hidden.device)
        committed = (texts[:, :, None] == teacher.texts[:, None, :]) & (places < starts[..., None])
        together = own[:, None] // blocks.size == own // blocks.size
        drafted = (together & (own <= own[:, None])).expand(len(hidden), -1, -1)
        seen = torch.cat([committed, drafted], dim=2)
        key_positions = torch.cat([teacher.positions, positions], dim=1)
        masks, rotations = surroundings(self.target, self.types, hidden, positions, key_positions, seen)
        cache, norm = _StudentCache(teacher), self.norm or self.target.norm
        if self._divided and torch.is_grad_enabled() and not hidden.requires_grad:
            # Divided layers are gathered in the backward pass, and freed, where gradients go in and out.
            hidden = hidden.detach().requires_grad_()
        for at, kind in enumerate(self.types):
            if (layer := self._layer(at, at in dropped)) is not None:
                hidden = run_layer(self.target, layer, hidden, positions, masks[kind], rotations[kind], cache)
            if states is not None and at + 1 < len(self.layers):
                states.append(norm(hidden))
        return norm(hidden)

    def _layer(self, at: int, dropped: bool) -> Callable[..., Any] | None:
        """Return what runs a layer; None if nothing does.

        Where a divided layer is dropped, its input is handed on: the process still has to gather it with the others.
        """
        layer = None if dropped else self.layers[at]
        return partial(self._divided[at], run=layer or _hand_on) if at in self._divided else layer

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (…, v) logits of normed (…, C) hidden states, the target's or the student's."""
        head, cap = matrix(self.target.head), self.target.anatomy.softcap
        if self.vocabulary is None:
            logits = head(hidden)
        else:
            bias = None if head.bias is None else head.bias[self.vocabulary]
            logits = functional.linear(hidden, head.weight[self.vocabulary], bias)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def token_ids(self, logits: Tensor) -> Tensor:
        """Return the (…) most likely token ids of (…, v) logits."""
        best = logits.argmax(-1)
        return best if self.vocabulary is None else self.vocabulary[best]

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors under the names that `Adapter` uses."""
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
        if self.feature is not None:
            found[FEATURE] = self.feature.weight
        if self.jump is not None:
            found[JUMP] = self.jump.weight
        if self.vocabulary is not None:
            found["vocabulary"] = self.vocabulary
        return found

    def adapter(self, recipe: str, path: Path, **more: object) -> Adapter:
        """Return the trained tensors with the settings that `adapted_path` needs."""
        skip = {"skip_attention": sorted(path.skip.attention), "skip_mlp": sorted(path.skip.mlp)}
        return Adapter(recipe, {"scale": self.scale, "first": self.first, **skip, **more}, self.tensors())


def _linears(layers: Sequence[nn.Module]) -> set[str]:
    """Return the names of these layers' matrices, without the modules that they belong to."""
    return {n.rpartition(".")[2] for layer in layers for n, m in layer.named_modules() if type(m) is nn.Linear}


def _hand_on(hidden: Tensor, **_: object) -> Tensor:
    """Take the place of a layer that is dropped; a copy, because FSDP's hooks want no view of what they gave."""
    return hidden.clone()


def _keep(_: str, module: nn.Module) -> nn.Module | None:
    """Keep every module of the path, whatever it is."""
    return None
