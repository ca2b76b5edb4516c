"""Learned pseudo tokens: the full model predicts several tokens ahead in the forward that verifies.

PaSS (Monea et al. 2023, arXiv 2311.13581), BiTA (Lin et al. 2024, arXiv 2401.12522), and LoRA that only pseudo tokens
feel (Samragh et al. 2025, arXiv 2507.11851), so that all other tokens keep the model's own weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.lessons import Blocks
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.data.packing import PackedBatch
from selfdraft.models.pseudo import SamplerHead
from selfdraft.models.sparse import Path
from selfdraft.models.student import Student
from selfdraft.models.target import Target
from selfdraft.models.teacher import Lesson
from selfdraft.modules.finetune import FinetuneModule, RecipeConfig


@dataclass
class PseudoTokensRecipeConfig(RecipeConfig):
    """`block` pseudo tokens behind an anchor every `anchors` places; LoRA in the layers from `first_layer` on.

    `matrices`: only those of their matrices so called, such as q_proj: what a LoRA costs in decoding hangs on how many
    products it adds, more than on its rank.
    `sampler`: a small head that tells every prediction which token was drafted before it.
    """

    name: str = "pseudo_tokens"
    block: int = option(3, at_least=1)
    anchors: int = option(3, at_least=1)
    first_layer: int = option(0, at_least=0)
    matrices: list[str] | None = None
    rank: int = option(32, at_least=1)
    alpha: float = option(32.0, at_least=0.001)
    sampler: bool = True
    vocabulary: int | None = None


class PseudoTokensRecipe(FinetuneModule):
    """Drafts with `pseudo_tokens`. A block's first pseudo token stands where the token behind its anchor will."""

    Config = PseudoTokensRecipeConfig
    config: PseudoTokensRecipeConfig
    drafter = "pseudo_tokens"

    @property
    def stride(self) -> int:
        """Places from one anchor to the next."""
        return self.config.anchors

    def path(self, target: Target) -> Path:
        """The whole model.

        Raises:
            UserError: for a LoRA that begins behind its last layer.
        """
        layers, first = len(target.full.layers), self.config.first_layer
        if first >= layers:
            raise UserError(
                f"finetune.first_layer={first}: this model has {layers} layers; begin at one of 0 to {layers - 1}"
            )
        return target.sparse_path(SkipSet())

    def make_student(self, target: Target, path: Path, words: Tensor | None) -> Student:
        """Twins of all layers. Pseudo tokens begin as the average token does, a little apart from each other."""
        config, weight = self.config, target.anatomy.embed.weight
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(config.block, weight.shape[1], generator=generator).to(weight)
        self.pseudo = nn.Parameter(weight.detach().mean(0) + 0.5 * weight.detach().std(0) * noise)
        self.sampler = SamplerHead(weight.shape[1]).to(weight) if config.sampler else None
        return Student(
            target,
            path,
            rank=config.rank,
            alpha=config.alpha,
            lora_from=config.first_layer,
            lora_on=config.matrices or (),
            vocabulary=words,
        )

    def inputs(self, batch: PackedBatch, blocks: Blocks, lesson: Lesson, rng: Generator) -> Tensor:
        """The pseudo tokens, block by block."""
        return self.pseudo.repeat(blocks.index.shape[1], 1).expand(len(batch.tokens), -1, -1)

    def predictions(self, hidden: Tensor, batch: PackedBatch, blocks: Blocks) -> Tensor:
        """With the sampler: the token that stands where a pseudo token does is what was drafted before its own."""
        if self.sampler is None:
            return hidden
        with torch.no_grad():
            before = self.target.anatomy.embed(blocks.gathered(batch.tokens))
        return self.sampler(hidden, before)

    def tensors(self) -> dict[str, Tensor]:
        """The pseudo tokens and the sampler."""
        sampler = {} if self.sampler is None else dict(self.sampler.named_parameters())
        return {"pseudo": self.pseudo, **{f"sampler.{name}": p for name, p in sampler.items()}}

    def options(self) -> dict[str, Any]:
        """As the drafter has them."""
        return {}
