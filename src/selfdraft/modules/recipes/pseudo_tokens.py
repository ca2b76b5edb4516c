"""Learned pseudo tokens: the full model predicts several tokens ahead in the same forward that verifies.

PaSS (Monea et al. 2023, arXiv 2311.13581), BiTA (Lin et al. 2024, arXiv 2401.12522), and LoRA applied to pseudo tokens
only (Samragh et al. 2025, arXiv 2507.11851), so that all other tokens keep the model's own weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor, nn

from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.training import Blocks
from selfdraft.data.packing import PackedBatch
from selfdraft.models.families.parts import attribute
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.heads import SamplerHead
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.modules.recipes.whole_model import whole_model


@dataclass
class PseudoTokensRecipeConfig(RecipeConfig):
    """Where pseudo tokens are placed in training, and what is trained with them.

    What a LoRA costs in decoding depends more on the number of products it adds (`first_layer`, `matrices`) than on its
    rank.
    """

    name: str = choice_name("pseudo_tokens")
    block: int = option(
        3,
        at_least=1,
        help="number of pseudo tokens: extra inputs of a forward, each of which predicts one token further ahead",
    )
    anchors: int = option(
        3,
        at_least=1,
        help="pseudo tokens are trained after one token in this many; smaller numbers learn more from a text, and "
        "need more memory",
    )
    first_layer: int = option(
        0, at_least=0, help="first layer that gets a LoRA; all later ones get one, too. Later is faster in decoding"
    )
    matrices: list[str] | None = option(
        None,
        help="names of the matrices that get a LoRA, e.g. [q_proj, gate_proj, up_proj]; null: all. Fewer are "
        "faster in decoding",
    )
    rank: int = option(32, at_least=1, help="rank of the LoRA")
    alpha: float = redefault(RecipeConfig, "alpha", 32.0)
    sampler: bool = option(
        True, help="true: train a small network that adjusts each prediction to the token drafted before it"
    )


class PseudoTokensRecipe(FinetuneModule):
    """Trains drafter `pseudo_tokens`. A block's first pseudo token has the position of the token after its anchor."""

    Config = PseudoTokensRecipeConfig
    config: PseudoTokensRecipeConfig
    drafter = "pseudo_tokens"

    @property
    def stride(self) -> int:
        """Positions from one anchor to the next."""
        return self.config.anchors

    def path(self, target: Target) -> Path:
        """Return the whole model: no sublayer is skipped.

        Raises:
            UserError: the LoRA would begin after the model's last layer.
        """
        return whole_model(target, "first_layer", self.config.first_layer)

    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return the trainable copies of all layers; pseudo tokens begin as the mean embedding plus noise."""
        config, weight = self.config, attribute(target.anatomy.embed, "weight", Tensor)
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
            vocabulary=vocabulary,
        )

    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) the pseudo tokens' embeddings, repeated for every block."""
        return self.pseudo.repeat(blocks.index.shape[1], 1).expand(len(batch.tokens), -1, -1)

    def predictions(self, hidden: Tensor, batch: PackedBatch, blocks: Blocks) -> Tensor:
        """Return the hidden states for the head; the sampler, if any, adds the token drafted before each prediction.

        In training this is the text's token at the pseudo token's own position.
        """
        if self.sampler is None:
            return hidden
        with torch.no_grad():
            before = self.target.anatomy.embed(blocks.gathered(batch.tokens))
        return self.sampler(hidden, before)

    def tensors(self) -> dict[str, Tensor]:
        """Return the pseudo tokens and the sampler's weights, by name."""
        sampler = {} if self.sampler is None else dict(self.sampler.named_parameters())
        return {"pseudo": self.pseudo, **{f"sampler.{name}": p for name, p in sampler.items()}}

    def options(self) -> dict[str, Any]:
        """Return no options: the drafter's defaults fit."""
        return {}
