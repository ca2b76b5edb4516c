"""Fused refinement: one forward verifies the present block and refines the next one on gated rows.

Gated LoRA as in "Your LLM Knows the Future" (Samragh et al. 2025, arXiv 2507.11851) and I-DLM, with the previous step's
predictions fed back as the rows' inputs; the heads are those of DSpark, the loss is KL or LK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.training import (
    Blocks,
    blocks_from,
    divergence,
    missed_acceptance,
    wanted_positions,
    weighted_mean,
)
from selfdraft.data.packing import PackedBatch
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.heads import ConfidenceHead, DraftHeads, MarkovHead, SamplerHead
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import TeacherOutputs
from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.modules.recipes.whole_model import whole_model

LOSSES = {"kl": divergence, "lk": missed_acceptance}
NONE = -1  # in the tokens that are fed back: no prediction


@dataclass
class FusedJacobiRecipeConfig(RecipeConfig):
    """Where gated rows enter the model, what they are given, and what is trained with them.

    A gated row begins at layer `enter` with the hidden state of the token that it follows, so earlier layers cost it
    nothing in training. What its LoRA costs in decoding depends more on the number of products (`matrices`) than on its
    rank.
    """

    name: str = choice_name("fused_jacobi")
    block: int = option(
        4,
        at_least=1,
        help="number of gated rows: extra tokens of a forward, each of which predicts one token further ahead",
    )
    anchors: int = option(
        3,
        at_least=1,
        help="gated rows are trained after one token in this many; smaller numbers learn more from a text, and "
        "need more memory",
    )
    enter: int = option(
        12,
        at_least=0,
        help="layer at which gated rows enter the model; it and all later layers get a LoRA. Later is cheaper",
    )
    matrices: list[str] | None = option(
        None,
        help="names of the matrices that get a LoRA, e.g. [q_proj, gate_proj, up_proj]; null: all. Fewer are "
        "faster in decoding",
    )
    rank: int = option(32, at_least=1, help="rank of the LoRA")
    alpha: float = redefault(RecipeConfig, "alpha", 32.0)
    loss: str = option(
        "kl",
        choices=tuple(LOSSES),
        help="kl (divergence from the target's probabilities) or lk (the acceptance rate itself, and the "
        "divergence as long as little is accepted)",
    )
    decay: float = option(
        0.8,
        at_least=0.01,
        at_most=1.0,
        help="weight of a row's loss relative to the row before it; below 1, near tokens count more, because far "
        "ones are useless without them",
    )
    feedback: float = option(
        0.5,
        at_least=0.0,
        at_most=1.0,
        help="share of the steps in which rows get what a step before predicted for their positions, as with "
        "drafter.feedback; in the others they get mask embeddings",
    )
    sampler: int = option(
        1152,
        at_least=0,
        help="width of a small network that adjusts a prediction to the token drafted before it; 0: none",
    )
    markov_rank: int = option(
        0, at_least=0, help="rank of added logits that depend only on the token drafted before; 0: none"
    )
    confidence: bool = option(
        True,
        help="true: train a small network that tells how likely a prediction is right, by which the drafter "
        "decides what to draft",
    )


class FusedJacobiRecipe(FinetuneModule):
    """Trains drafter `fused_jacobi`. A block's first row has the position of the token after the one it follows."""

    Config = FusedJacobiRecipeConfig
    config: FusedJacobiRecipeConfig
    drafter = "fused_jacobi"

    @property
    def stride(self) -> int:
        """Positions from one anchor to the next."""
        return self.config.anchors

    def path(self, target: Target) -> Path:
        """Return the whole model: no sublayer is skipped.

        Raises:
            UserError: rows would enter after the model's last layer.
        """
        return whole_model(target, "enter", self.config.enter)

    def make_student(self, target: Target, path: Path, vocabulary: Tensor | None) -> Student:
        """Return the trainable copies of the layers that gated rows run through, and make all else that is trained."""
        config, size = self.config, int(target.model.config.hidden_size)
        device, ids = target.device, target.vocab_size if vocabulary is None else len(vocabulary)
        self.mask = nn.Parameter(torch.zeros(config.block, size, device=device))
        self.feed = nn.Linear(size, size, device=device)
        nn.init.zeros_(self.feed.weight)
        nn.init.zeros_(self.feed.bias)
        self.heads = DraftHeads(
            SamplerHead(size, config.sampler) if config.sampler else None,
            MarkovHead(size, ids, config.markov_rank) if config.markov_rank else None,
            ConfidenceHead(size) if config.confidence else None,
        ).to(device)
        return Student(
            target,
            path,
            first=config.enter,
            rank=config.rank,
            alpha=config.alpha,
            lora_on=config.matrices or (),
            vocabulary=vocabulary,
        )

    def states_before(self) -> tuple[int, ...]:
        """Return the layer before which gated rows enter."""
        return (self.config.enter,)

    def inputs(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator) -> Tensor:
        """Return (B, M, C) the rows' inputs where no prediction is fed back."""
        return self._given(blocks, teacher, None)

    def loss(self, batch: PackedBatch, rng: Generator) -> Tensor:
        """Return the loss of every row that counts, those of later rows weighted less, and the confidence's."""
        blocks = self.blocks(batch, int(rng.integers(self.stride)), answers_only=self.config.answers_only)
        teacher, fed = self.teach(batch), None
        feeds = rng.random() < self.config.feedback
        if self._most(feeds):  # if any process runs that step, all do: they may share the layers
            after = self.after_a_step(batch, blocks, teacher, rng)
            blocks, fed = after if feeds else (blocks, None)
        hidden = self.student(self._given(blocks, teacher, fed), blocks, teacher)
        counted = blocks.valid.flatten(1)
        with torch.no_grad():
            theirs = self.student.logits(blocks.gathered(teacher.final)[counted])
        hidden, before = hidden[counted], self._embedded(blocks.gathered(batch.tokens)[counted])
        ours = self.heads.logits(hidden, before, self.student.logits)
        depths = torch.arange(blocks.size, device=hidden.device).expand(blocks.index.shape).flatten(1)[counted]
        weights = self.config.decay**depths
        loss = weighted_mean(LOSSES[self.config.loss](ours, theirs), weights)
        if self.heads.confidence is not None:
            right = (ours.argmax(-1) == theirs.argmax(-1)).float()
            sure = self.heads.confidence(hidden.detach(), before)
            loss = loss + weighted_mean(
                functional.binary_cross_entropy_with_logits(sure, right, reduction="none"), weights
            )
        return loss

    def right(self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, fed: Tensor | None = None) -> Tensor:
        """Return (B, G, K) whether each prediction is the target's most likely token.

        Args:
            fed: (B, G, K) predictions that are fed back, see `after_a_step`; None for none.
        """
        hidden = self.student(self._given(blocks, teacher, fed), blocks, teacher)
        counted, agree = blocks.valid.flatten(1), torch.zeros_like(blocks.valid.flatten(1))
        theirs = self.target.head(blocks.gathered(teacher.final)[counted]).argmax(-1)
        before = self._embedded(blocks.gathered(batch.tokens)[counted])
        ours = self.student.token_ids(self.heads.logits(hidden[counted], before, self.student.logits))
        agree[counted] = ours == theirs
        return agree.view_as(blocks.valid)

    @torch.no_grad()
    def after_a_step(
        self, batch: PackedBatch, blocks: Blocks, teacher: TeacherOutputs, rng: Generator
    ) -> tuple[Blocks, Tensor]:
        """Return the blocks of the steps after those of `blocks`, and (B, G, K) what these fed back to them.

        The rows of `blocks` predict a chain, which is verified: the next rows follow its last accepted token, and get
        the predictions for their positions. The first of them is known to be wrong if the chain was rejected there, so
        the second choice takes its place. In half of the blocks the chain is cut somewhere before, because drafts are
        as long as pays: then the first choice may be right.
        """
        hidden = self.student(self._given(blocks, teacher, None), blocks, teacher)
        best = self._chain(hidden.unflatten(1, blocks.index.shape[1:]), blocks.index[..., 0], batch.tokens)
        size = blocks.size
        after = (blocks.index + 1).clamp(max=batch.tokens.shape[1] - 1)
        truth = batch.tokens.gather(1, after.flatten(1)).view_as(after)
        accepted = ((best[..., 0] == truth) & blocks.valid).long().cumprod(-1).sum(-1)
        draws = torch.from_numpy(rng.random((2, *accepted.shape))).to(accepted.device)
        shorter = draws[0] < 0.5
        ends = torch.where(shorter, (draws[1] * (accepted + 1)).long(), accepted)
        places = ends[..., None] + torch.arange(size, device=ends.device)
        fed = best[..., 0].gather(-1, places.clamp(max=size - 1))
        second = best[..., 1].gather(-1, places[..., :1].clamp(max=size - 1))[..., 0]
        fed[..., 0] = torch.where(shorter, fed[..., 0], second)
        fed = fed.masked_fill(places >= size, NONE)
        wanted = wanted_positions(batch.texts, batch.answers, answers_only=self.config.answers_only)
        # A block that does not count begins where it did: it must not get the keys of another text.
        first = torch.where(blocks.valid[..., 0], blocks.index[..., 0] + ends + 1, blocks.index[..., 0])
        following = blocks_from(first, batch.texts, wanted, size)
        same = batch.texts.gather(1, first.clamp(max=batch.texts.shape[1] - 1)) == batch.texts.gather(
            1, blocks.index[..., 0]
        )
        valid = following.valid & (same & blocks.valid[..., 0])[..., None]
        return Blocks(following.index, valid), fed

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that is trained besides the LoRA, by name."""
        feed = {f"feed.{name}": p for name, p in self.feed.named_parameters()} if self.config.feedback else {}
        return {"mask": self.mask, **feed, **self.heads.tensors()}

    def options(self) -> dict[str, Any]:
        """Return no options: the drafter's defaults fit."""
        return {}

    def _given(self, blocks: Blocks, teacher: TeacherOutputs, fed: Tensor | None) -> Tensor:
        """Return (B, M, C) inputs of the rows; `fed`: (B, G, K) predictions fed back, NONE for none."""
        followed = blocks.before(teacher.states[self.config.enter], teacher.texts)
        followed = followed.unflatten(1, blocks.index.shape[1:])[:, :, :1]
        given = self.mask.expand(*blocks.index.shape, -1)
        if fed is not None:
            known = self.feed(self._embedded(fed.clamp(min=0)))
            given = torch.where((fed != NONE)[..., None], known, given)
        return (followed + given).flatten(1, 2)

    def _chain(self, hidden: Tensor, first: Tensor, tokens: Tensor) -> Tensor:
        """Return (B, G, K, 2) the two best tokens of each row, after the best of the row before.

        Args:
            hidden: (B, G, K, C). first: (B, G) position of the token before the first prediction.
        """
        before, found = tokens.gather(1, first), []
        for row in range(hidden.shape[2]):
            said = self.heads.logits(hidden[:, :, row], self._embedded(before), self.student.logits)
            best = said.topk(2, dim=-1).indices
            best = best if self.student.vocabulary is None else self.student.vocabulary[best]
            found.append(best)
            before = best[..., 0]
        return torch.stack(found, dim=2)

    @torch.no_grad()
    def _embedded(self, tokens: Tensor) -> Tensor:
        """Return (…, C) the embeddings of (…) token ids, as the first layer gets them."""
        return self.target.anatomy.embed(tokens)
