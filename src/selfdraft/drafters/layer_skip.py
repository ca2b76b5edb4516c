"""Layer skipping, panel (b): the model without some of its sublayers drafts token by token.

Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), with a fixed skip set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.options import option
from selfdraft.core.sampling import draw
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()


@dataclass
class LayerSkipConfig(DrafterConfig):
    """Skip an even share `sparsity` of the sublayers, or exactly those named in `skip_attention` and `skip_mlp`.

    Up to `draft_length` tokens are drafted; drafting ends early with the first token whose probability in the sparse
    model is below `min_confidence`.
    """

    name: str = "layer_skip"
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    skip_attention: list[int] | None = option(None, at_least=0)
    skip_mlp: list[int] | None = option(None, at_least=0)
    draft_length: int = option(4, at_least=1)
    min_confidence: float = option(0.0, at_least=0.0, at_most=1.0)


class LayerSkip(Drafter):
    """Drafts a chain token by token through a sparse path of the target."""

    Config = LayerSkipConfig
    config: LayerSkipConfig

    def __init__(self, target: Target, config: LayerSkipConfig) -> None:
        """Build the sparse path.

        Raises:
            UserError: for layers that the model does not have.
        """
        super().__init__(target, config)
        layers = len(target.full.layers)
        if config.skip_attention is None and config.skip_mlp is None:
            skip = SkipSet.spread(layers, config.sparsity)
        else:
            skip = SkipSet.of(layers, config.skip_attention or (), config.skip_mlp or ())
        self.path = target.sparse_path(skip)

    def propose(self, context: Context) -> Draft:
        """One chain."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """One chain a context, all drafted together: at every depth one sparse forward of those that go on."""
        drafted: list[list[int]] = [[] for _ in contexts]
        q: list[list[Tensor]] = [[] for _ in contexts]
        going = [i for i, context in enumerate(contexts) if context.room > 0]
        for depth in range(self.config.draft_length):
            if not going:
                break
            tokens = [drafted[i][-1] if depth else contexts[i].tokens[-1] for i in going]
            rows = [contexts[i].row for i in going]
            logits = self.target.draft_forward(self.path, rows, depth, tokens, [_EMPTY] * len(going))
            still = []
            for i, row_logits in zip(going, logits, strict=True):
                token, distribution = self._next(contexts[i], drafted[i], row_logits)
                drafted[i].append(token)
                if contexts[i].rule.sample:
                    q[i].append(distribution)
                if self._sure(distribution, token) and len(drafted[i]) < contexts[i].room:
                    still.append(i)
            going = still
        return [
            Draft(TokenTree.chain(tokens), "layer_skip", torch.cat(rows) if rows else None)
            for tokens, rows in zip(drafted, q, strict=True)
        ]

    def _next(self, context: Context, drafted: list[int], logits: Tensor) -> tuple[int, Tensor]:
        """The next drafted token, and the (1, V) distribution that it was drawn from, or is the argmax of."""
        rule = context.rule
        scores = rule.scores(logits, [*context.tokens, *drafted], context.prompt_length, _EMPTY)
        if rule.sample:
            distribution = rule.probabilities(scores)
            return int(draw(distribution, context.uniforms(1, logits.device))), distribution
        needed = self.config.min_confidence > 0  # a softmax over the vocabulary that nobody asks for is left out
        return int(scores.argmax()), scores.float().softmax(-1) if needed else scores

    def _sure(self, distribution: Tensor, token: int) -> bool:
        """Whether the token just drafted is probable enough to go on behind it."""
        return self.config.min_confidence <= 0 or float(distribution[0, token]) >= self.config.min_confidence
