"""A draft path that also gets what the full model knew last: its final hidden state of the last committed token.

Drafts of a few layers lack what the later layers know. The final hidden state, which EAGLE calls the feature (Li et al.
2024, arXiv 2401.15077), has it, and it is there anyway. It is multiplied by a trained matrix, and added to the draft's
first state after the path's leading layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdraft.models.cache.block import Block
from selfdraft.models.forward.path import Path, Runner, States, Trees

Product = Callable[[Tensor], Tensor]
"""Maps (…, C) states to (…, C) states by a trained matrix."""


@dataclass(frozen=True)
class FeaturePath(Path):
    """A path that adds ``feature(final)`` to the root's state after the leading layers.

    Attributes:
        feature: multiplies by a (C, C) matrix; `final` is the full model's final hidden state of the last committed
            token.
    """

    feature: Product = field(kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`. Blocks that do not begin with the root run like those of any other path."""
        if states is None and (block.finals is not None or self.runs_in_two(runner)):
            return self.run_and_keep(runner, block, trees)[1]
        if states is None or block.finals is None:
            return self.drive(runner, block, states=states)
        hidden = self.part(0, self.leading).drive(runner, block, states=states, normed=False)
        later: list[Tensor] = []
        rest = self.part(self.leading, len(self.layers))
        hidden = rest.drive(runner, block, self._with_features(runner, block, hidden), states=later)
        states += later[1:]  # without the input, which follows the layer before it
        return hidden

    def run_and_keep(self, runner: Runner, block: Block, trees: Trees = ()) -> tuple[Tensor, Tensor]:
        """See `Path.run_and_keep`. The states that can be reused are the model's, without the feature."""
        kept = self.part(0, self.leading).drive(runner, block, normed=False)
        rest = self.part(self.leading, len(self.layers))
        return kept, rest.drive(runner, block, self._with_features(runner, block, kept))

    def _with_features(self, runner: Runner, block: Block, hidden: Tensor) -> Tensor:
        """Add the features of the rows' last final hidden states, where they are known, to (B, N, C) states."""
        if block.finals is None:
            return hidden
        unknown = torch.zeros_like(hidden[0, 0])
        finals = [unknown if final is None else final for final in block.finals]
        features = self.feature(torch.stack(finals)[:, None])
        return torch.cat([hidden[:, :1] + features, hidden[:, 1:]], dim=1)
