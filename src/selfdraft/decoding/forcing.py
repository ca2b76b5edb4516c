"""A given text through our own forwards, in the hardest way that drafting has: trees with wrong branches in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.target import Target

DEPTH = 7  # of a tree: with its root, eight tokens of the text


class ForcedText:
    """Our logits of a text, tree by tree.

    Beside every token hangs another one, its sibling. So tokens have other slots than positions, some must not be seen,
    and committing gathers keys: what is wrong with any of these shows in the logits. In a mode that verifies only
    chains, the siblings are left out.
    """

    def __init__(self, target: Target, text: Sequence[int], prompt_length: int) -> None:
        """Take a text, of which `prompt_length` tokens are the prompt. What the target's cache holds is overwritten."""
        self.target, self.text, self.prompt_length = target, text, prompt_length
        self._siblings = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def stretches(self, bounds: Sequence[int]) -> Iterator[Tensor]:
        """Yield (n, V) logits, stretch by stretch: after the tokens from one bound up to the next.

        The forwards are not counted as decoding. Nothing else may use the target before the last stretch.
        """
        target = self.target
        target.allocate(1, len(self.text) + 2 * DEPTH)
        target.prefill(0, self.text[: bounds[0]])
        for first, end in pairwise(bounds):
            parts = []
            while first < end:
                target.refresh(0, self.text[: first + 1])
                depth = min(DEPTH, end - first - 1, target.longest_draft(0))
                parts.append(self._step(first, depth))
                first += 1 + depth
            yield torch.cat(parts)

    def _step(self, first: int, depth: int) -> Tensor:
        """Forward and commit the token at `first` and the `depth` tokens after it."""
        tree, path = self._tree(self.text[first + 1 : first + 1 + depth])
        forwards = self.target.forwards
        (logits,) = self.target.forward([0], [self.text[first]], [tree])
        self.target.commit(0, path)
        self.target.forwards = forwards
        return logits[[0, *(1 + node for node in path)]]

    def _tree(self, tokens: Sequence[int]) -> tuple[TokenTree, list[int]]:
        """The tree, and the nodes that hold `tokens`."""
        if self.target.chains_only:
            return TokenTree.chain(tokens), list(range(len(tokens)))
        others = torch.randint(self.target.vocab_size, (len(tokens),), generator=self._siblings)
        nodes = torch.stack([others, torch.tensor(tokens, dtype=torch.long)], dim=1)
        parents = torch.arange(ROOT, 2 * len(tokens) - 1, 2)[: len(tokens), None].expand(-1, 2)
        candidates = torch.ones(nodes.numel(), dtype=torch.bool)
        return TokenTree(nodes.flatten(), parents.flatten(), candidates), list(range(1, nodes.numel(), 2))
