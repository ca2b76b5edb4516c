"""Learning while decoding: gradient steps on the draft-only weights between prompts (drafter.learn=true).

Every verification shows what the target wanted after the text so far, and how much of the draft was right. Between two
prompts, the copies of the layers that drafts run through take a gradient step for every `learn_every` verifications:

1. run the target over the finished text, once a text, for the states and keys that drafts read;
2. run the copies at the places at which drafts were verified;
3. lower their divergence from the target's distributions there, rejected drafts counted more than accepted ones.

The idea is DVI's (Bhansali and Heck 2025, arXiv 2510.05421), which trains a LoRA on the head, by distillation first and
by policy gradients later; here the copied layers are trained, by distillation only. Only drafts use these weights, so
the text stays the target's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import default_rng
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.training import Blocks, divergence, weighted_mean
from selfdraft.data.packing import PackedBatch
from selfdraft.decoding.record import Generation
from selfdraft.drafters.base import Drafter
from selfdraft.drafters.chain import Chain, ChainConfig
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.paths.jump import Jump
from selfdraft.drafters.paths.trained import Trained
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import FEATURE, Adapter
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.modules.recipes import RECIPES
from selfdraft.modules.recipes.exit_adapter import ExitAdapterConfig
from selfdraft.modules.recipes.jump import JumpRecipeConfig

RECENT = 16  # texts that steps are taken on: a step repeats an old one half of the time, so that it is not forgotten
LONGEST = 512  # last tokens of a text that are learnt from: bounds a step's time and memory
REJECTED_WEIGHT = 2.0  # of the places where the first drafted token was rejected; others count once


@dataclass
class _Verified:
    """A finished text that steps are taken on.

    Attributes:
        tokens: of prompt and answer. roots, weights: the (n,) places at which drafts were verified, and their weights.
        teacher: the target's outputs over the text; None until a step needs them.
    """

    tokens: list[int]
    roots: list[int]
    weights: list[float]
    teacher: TeacherOutputs | None = None


class OnlineLearner:
    """Trains the weights of a drafter's path on the texts that the drafter decodes.

    Attributes:
        steps: number of gradient steps so far. seconds: that they took, none of them in decoding.
    """

    def __init__(self, target: Target, drafter: Drafter, *, seed: int) -> None:
        """Take copies of the drafter's trained weights.

        Raises:
            UserError: the drafter has no weights that can be trained on this target.
        """
        drafter = drafter.inner if isinstance(drafter, Guard) else drafter
        if not isinstance(drafter, Chain) or not isinstance(drafter.policy, Trained | Jump):
            raise UserError(
                f"drafter.learn=true: drafter={drafter.config.label} has no trained weights to go on with; use "
                "drafter.from=<run of finetune=exit_adapter or finetune=jump>"
            )
        if target.dtype != torch.float32:
            raise UserError("drafter.learn=true trains in float32: use model.dtype=float32")
        if target.compiled:
            raise UserError("drafter.learn=true: this engine has copies of the weights; use model.engine=eager")
        self.drafter, self.policy, self.config = drafter, drafter.policy, drafter.config
        adapter = Adapter.read(self.policy.folder, "drafter.path.adapter")
        self.target, self.seed, self.steps, self.seconds, self.owed, self.seen = target, seed, 0, 0.0, 0, 0
        self.texts: deque[_Verified] = deque(maxlen=RECENT)
        with torch.inference_mode(False):
            self.plain = Target(target.model, packed=False)
            self.recipe = _recipe_of(adapter, self.plain, seed)
            trained = [p for p in self.recipe.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=self.config.learn_rate, weight_decay=0.0)

    def observe(self, generation: Generation) -> dict[str, float | int]:
        """Learn from an answer that has ended; the cache is left as it is.

        Returns:
            `number` of the answer in the stream, `steps` that were taken after it, their `seconds` and mean `loss`.
        """
        begin = time.perf_counter()
        if generation.steps:
            self.texts.append(_verified(generation))
            self.owed += len(generation.steps)
        losses: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            while self.owed >= self.config.learn_every:
                self.owed -= self.config.learn_every
                losses.append(self._step())
            if losses:
                # New module objects, because the old ones may hold packed copies of the old weights.
                self.policy.typical = adapted_path(self.target, self.adapter(), reuse=self.policy.use.reuse)
        spent = time.perf_counter() - begin
        self.seconds += spent
        self.seen += 1
        return {"number": self.seen, "steps": len(losses), "seconds": spent, "loss": sum(losses) / max(len(losses), 1)}

    def adapter(self) -> Adapter:
        """Return a copy of the weights as they are now, as an adapter."""
        now = self.recipe.adapter()
        return Adapter(now.recipe, now.settings, {name: each.detach().clone() for name, each in now.tensors.items()})

    def _step(self) -> float:
        """Take a gradient step on the last text or, every other time, on one of those before it."""
        rng = default_rng((self.seed, self.steps))
        text = self.texts[-1] if self.steps % 2 == 0 else self.texts[int(rng.integers(len(self.texts)))]
        self.steps += 1
        loss = self._loss(text)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.recipe.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, text: _Verified) -> Tensor:
        batch, blocks, weights = _batch(text, self.recipe.config.block, self.target.device)
        teacher = text.teacher = text.teacher or self.recipe.teach(batch)
        given = self.recipe.inputs(batch, blocks, teacher, default_rng(0))
        student = self.recipe.student
        hidden, counted = student(given, blocks, teacher), blocks.valid.flatten(1)
        with torch.no_grad():
            theirs = student.logits(blocks.gathered(teacher.final)[counted])
        ours = student.logits(hidden[counted])
        return weighted_mean(divergence(ours, theirs), weights[counted[0]])


def learns(config: object) -> bool:
    """Return whether a drafter's options ask for learning while decoding."""
    return isinstance(config, ChainConfig) and config.learn


def _recipe_of(adapter: Adapter, plain: Target, seed: int) -> FinetuneModule:
    """Return the recipe that trained an adapter, with its weights, ready to go on.

    Raises:
        UserError: weights of this recipe cannot learn while decoding.
    """
    ids = adapter.tensors.get("vocabulary")
    config = _config_of(adapter)
    config.vocabulary, config.remember = None if ids is None else len(ids), False
    draft_ids = None if ids is None else ids.tolist()
    recipe = RECIPES[config.name](config, lambda device: plain, draft_ids=draft_ids, seed=seed)
    recipe.prepare(plain)
    recipe.adapter().begin_with(adapter, "drafter.learn=true")
    return recipe


def _config_of(adapter: Adapter) -> RecipeConfig:
    layers = sorted({int(name.split(".")[1]) for name in adapter.tensors if name.startswith("layer.")})
    if adapter.recipe == ExitAdapterConfig().name:
        first, feature = int(adapter.settings["first"]), FEATURE in adapter.tensors
        return ExitAdapterConfig(exit_layer=first, twins=layers, feature=feature)
    if adapter.recipe == JumpRecipeConfig().name:
        return JumpRecipeConfig(copies=layers)
    raise UserError(
        f"drafter.learn=true: weights of recipe {adapter.recipe!r:.40} cannot learn while decoding; those of "
        "finetune=exit_adapter and finetune=jump can"
    )


def _verified(generation: Generation) -> _Verified:
    """Return where the drafts of an answer were verified, by its recorded steps."""
    place, roots, weights = len(generation.prompt) - 1, list[int](), list[float]()
    for tokens, _, nodes, bonus, *_ in generation.steps:
        roots.append(place)
        weights.append(REJECTED_WEIGHT if tokens and not nodes else 1.0)
        place += len(nodes) + (bonus is not None)
    return _Verified([*generation.prompt, *generation.output], roots, weights)


def _batch(text: _Verified, size: int, device: torch.device) -> tuple[PackedBatch, Blocks, Tensor]:
    """Return a row of a text's last tokens, blocks of `size` positions from the verified roots on, and their weights.

    The weights are (G * size,), one for each position of the blocks.
    """
    cut = max(len(text.tokens) - LONGEST, 0)
    tokens = torch.tensor([text.tokens[cut:]], device=device)
    kept = [(root - cut, weight) for root, weight in zip(text.roots, text.weights, strict=True) if root >= cut]
    last = tokens.shape[1] - 1
    index = torch.tensor([root for root, _ in kept], device=device)[None, :, None] + torch.arange(size, device=device)
    positions = torch.arange(tokens.shape[1], device=device)[None]
    batch = PackedBatch(tokens, positions, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    weights = torch.tensor([weight for _, weight in kept], device=device).repeat_interleave(size)
    return batch, Blocks(index.clamp(max=last), index <= last), weights


def acceptance_of(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return, for each line of an evaluation that drafted, the share of first drafted tokens that was accepted."""
    firsts = [line["acceptance_by_depth"][0] for line in lines if line.get("acceptance_by_depth")]
    return [first["accepted"] / first["offered"] for first in firsts if first["offered"]]
