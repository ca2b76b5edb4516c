"""A path that is given the full model's final hidden state of the last committed token.

EAGLE (Li et al. 2024, arXiv 2401.15077) calls that state the feature: it knows more about what comes next than the
states of the first layers do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdraft.models.block import Block
from selfdraft.models.parts import Matrix
from selfdraft.models.path import Path, Runner, States, Trees


@dataclass(frozen=True)
class FeaturePath(Path):
    """A path that adds ``feature(final)`` to the root's state after the leading layers.

    Attributes:
        feature: a (C, C) matrix; `final` is the full model's final hidden state of the last committed token.
    """

    feature: Matrix = field(kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`. Blocks that do not begin with the root run like those of any other path."""
        if block.finals is None:
            return self.drive(runner, block, states=states)
        hidden = self.part(0, self.leading).drive(runner, block, states=states, normed=False)
        hidden = torch.cat([hidden[:, :1] + self._features(runner, block), hidden[:, 1:]], dim=1)
        later: States = None if states is None else []
        rest = self.part(self.leading, len(self.layers))
        hidden = rest.drive(runner, block, hidden, states=later)
        if states is not None and later is not None:
            states += later[1:]  # without the input, which follows the layer before it
        return hidden

    def _features(self, runner: Runner, block: Block) -> Tensor:
        """Return the (B, 1, C) features of the rows' last final hidden states; zeros where one is not known."""
        unknown = torch.zeros(self.feature.weight.shape[1], dtype=runner.dtype, device=runner.device)
        finals = [unknown if final is None else final for final in block.finals or ()]
        return self.feature(torch.stack(finals)[:, None])
