"""A draft path of the model's last layers only, whose input is predicted and not computed by the layers before them.

The predicted state of a new token is made from its own embedding and the final hidden state of the token before it, by
two trained matrices. All layers before the path's first one are thus left out. From the second drafted token on, the
final hidden state is the path's own, as in EAGLE (Li et al. 2024, arXiv 2401.15077).

Shapes: B rows of one forward, N tokens a row, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from selfdraft.core.tree import ROOT
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.path import Runner, States, Trees
from selfdraft.models.paths.feature import FeaturePath, Product

EPSILON = 1e-6  # keeps states that are zero as they are


def evened(hidden: Tensor) -> Tensor:
    """Return (…, C) states divided by their root mean square, so that all of them are of one size."""
    return functional.rms_norm(hidden, hidden.shape[-1:], eps=EPSILON)


@dataclass(frozen=True)
class JumpPath(FeaturePath):
    """A path whose input is ``jump(evened(embedding)) + feature(evened(final))`` at every token.

    `final` is the full model's final hidden state of the token before, if that is committed, and this path's own if it
    was drafted; zeros if neither is known. The tokens of one block are run one depth after the other, because each
    needs the final state of its parent.

    Attributes:
        jump: multiplies by a (C, C) matrix.
    """

    jump: Product = field(kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`."""
        if block.tokens.shape[1] == 1 and states is None:
            return self._one(runner, block)
        layers = self.part(0, len(self.layers))
        embedded = self.jump(evened(runner.anatomy.embed(block.tokens.to(runner.device))))
        before, hidden = torch.zeros_like(embedded), torch.zeros_like(embedded)
        before[:, 0] = self._before(block, embedded)
        parents = _parents(block, trees).to(embedded.device)
        rows = torch.arange(len(embedded), device=embedded.device)[:, None]
        for depth in range(int(block.depths.max()) + 1):
            settled = int((block.depths < depth).all(0).long().cumprod(0).sum())
            if depth:
                before[:, 1:] = hidden[rows, parents[:, 1:]]
            given = embedded[:, settled:] + self.feature(evened(before[:, settled:]))
            hidden[:, settled:] = layers.drive(runner, block, given, since=settled)
        if states is not None:
            layers.drive(runner, block, embedded + self.feature(evened(before)), states=states)
        self._leave(block, hidden)
        return hidden

    def _one(self, runner: Runner, block: Block) -> Tensor:
        """Return (B, 1, C) for one token a row, as chains are drafted, with as few small operations as can be."""
        embedded = self.jump(evened(runner.anatomy.embed(block.tokens.to(runner.device))))
        before = self._before(block, embedded)[:, None]
        hidden = self.drive(runner, block, embedded + self.feature(evened(before)))
        self._leave(block, hidden)
        return hidden

    def _leave(self, block: Block, hidden: Tensor) -> None:
        """Leave the final states for the tokens that follow these in their rows."""
        if _drafts_on(block):
            for b, row in enumerate(block.rows):
                block.cache.drafted[row] = block.starts[b], hidden[b]

    def run_and_keep(self, runner: Runner, block: Block, trees: Trees = ()) -> tuple[Tensor, Tensor]:
        """See `Path.run_and_keep`. No leading layer is run, so what can be reused are the embeddings."""
        return runner.anatomy.embed(block.tokens.to(runner.device)), self.run(runner, block, trees)

    def _before(self, block: Block, like: Tensor) -> Tensor:
        """Return (B, C) the final hidden state of the token before each row's first one; zeros where it is unknown."""
        finals: Sequence[Tensor | None] = block.finals or [None] * len(block.rows)
        if block.finals is None and _drafts_on(block):
            finals = [
                block.cache.drafted_before(row, start) for row, start in zip(block.rows, block.starts, strict=True)
            ]
        unknown = torch.zeros_like(like[0, 0])
        return torch.stack([unknown if final is None else final for final in finals])


def _drafts_on(block: Block) -> bool:
    """Return whether the tokens come right after the text in their row, unlike those of a replay."""
    return list(block.first_positions) == list(block.starts)


def _parents(block: Block, trees: Trees) -> Tensor:
    """Return (B, N) the place in the block of each token's parent; tokens that have none are given place 0."""
    rows, width = block.tokens.shape
    parents = torch.zeros(rows, width, dtype=torch.long, device=block.tokens.device)
    if not trees:  # a plain text
        parents[:, 1:] = torch.arange(width - 1)
    for b, tree in enumerate(trees):
        parents[b, 1 : 1 + len(tree)] = tree.parents - ROOT
    return parents
