"""Run our own forwards over a given text, in single tokens and in trees with wrong branches beside the text.

Certificates compare the logits of these forwards. Wrong branches make it the hardest case for masks and cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.families.routing import Notes
from selfdraft.models.forward.target import Target

DEPTH = 7  # depth of a tree, which with its root covers eight tokens of the text


class ForcedText:
    """Computes our logits of a text, tree by tree.

    Every token has a wrong sibling. So slots differ from positions, some tokens must be masked, and committing gathers
    keys: a fault in any of these shows in the logits. In a mode that verifies only chains, the siblings are left out.
    """

    def __init__(self, target: Target, text: Sequence[int], prompt_length: int, notes: Notes | None = None) -> None:
        """Take a text whose first `prompt_length` tokens are the prompt. `stretches` overwrites the target's cache.

        Args:
            notes: keeps the experts that are chosen for each token of the text.
        """
        self.target, self.text, self.prompt_length, self.notes = target, text, prompt_length, notes
        self._siblings = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def stretches(self, bounds: Sequence[int]) -> Iterator[Tensor]:
        """Yield, for each pair of neighbouring bounds, the (n, V) logits after the tokens from one up to the next.

        The forwards are not counted as decoding. Nothing else may use the target before the last stretch is yielded.
        """
        target = self.target
        target.allocate(1, len(self.text) + 2 * DEPTH)
        target.prefill(0, self.text[: bounds[0]])
        if self.notes is not None:
            self.notes.keep()
        for first, end in pairwise(bounds):
            parts = []
            while first < end:
                target.refresh(0, self.text[: first + 1])
                depth = min(DEPTH, end - first - 1, target.longest_draft(0))
                parts.append(self._step(first, depth))
                first += 1 + depth
            yield torch.cat(parts)

    def _step(self, first: int, depth: int) -> Tensor:
        """Forward and commit the token at `first` and `depth` more; return the (depth + 1, V) logits after each."""
        tree, path = self._tree(self.text[first + 1 : first + 1 + depth])
        forwards = self.target.forwards
        (logits,) = self.target.forward([0], [self.text[first]], [tree])
        self.target.commit(0, path)
        self.target.forwards = forwards
        rows = [0, *(1 + node for node in path)]
        if self.notes is not None:
            self.notes.keep(rows)
        return logits[rows]

    def _tree(self, tokens: Sequence[int]) -> tuple[TokenTree, list[int]]:
        """Return a tree of `tokens` with their wrong siblings, and the nodes that hold `tokens`."""
        if self.target.chains_only:
            return TokenTree.chain(tokens), list(range(len(tokens)))
        others = torch.randint(self.target.vocab_size, (len(tokens),), generator=self._siblings)
        nodes = torch.stack([others, torch.tensor(tokens, dtype=torch.long)], dim=1)
        parents = torch.arange(ROOT, 2 * len(tokens) - 1, 2)[: len(tokens), None].expand(-1, 2)
        candidates = torch.ones(nodes.numel(), dtype=torch.bool)
        return TokenTree(nodes.flatten(), parents.flatten(), candidates), list(range(1, nodes.numel(), 2))
