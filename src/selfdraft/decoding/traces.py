"""Find what a sparse path would have drafted at every position of the full model's texts, in one forward per text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from selfdraft.core.replay import Trace
from selfdraft.core.sampling import NextToken
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.paths.dynamic import most_similar_skips
from selfdraft.models.paths.sparse import sparse_path

BLOCK = 8  # tokens per replayed block, which sees the full model's keys before it: about the length of a draft
Text = Sequence[Sequence[int]]  # a prompt and the answer to it


class Tracer:
    """Holds the texts in the target's cache, one per row. Nothing else may use the cache meanwhile."""

    def __init__(self, target: TargetProtocol, texts: Sequence[Text], rule: NextToken) -> None:
        """Run the full model over all texts.

        Args:
            texts: prompts, each with its answer.
            rule: the rule by which the answers were decoded; it must be greedy.
        """
        self.target, self.texts, self.rule = target, texts, rule
        longest = max(len(prompt) + len(output) for prompt, output in texts)
        target.allocate(len(texts), 2 * longest)
        for row, (prompt, output) in enumerate(texts):
            target.prefill(row, [*prompt, *output[:-1]])

    def traces(self, skip: SkipSet) -> list[Trace]:
        """Return, for every text, where the path that bypasses `skip` would draft its tokens, and how confidently."""
        path = sparse_path(self.target, skip)
        return self.traces_of([path] * len(self.texts))

    @torch.inference_mode()
    def traces_of(self, paths: Sequence[Path]) -> list[Trace]:
        """Return the same of other paths, one for each text."""
        traces = []
        for row, (path, (prompt, output)) in enumerate(zip(paths, self.texts, strict=True)):
            tokens = [prompt[-1], *output[:-1]]
            logits = self.target.replay(path, row, len(prompt) - 1, tokens, block=BLOCK)
            scores = self.rule.scores(logits, prompt, len(prompt), TokenTree.chain(output[:-1])).float()
            best = scores.argmax(-1)
            confidence = scores.softmax(-1).gather(-1, best[:, None])[:, 0]
            traces.append(Trace(best.cpu().numpy() == np.array(output), confidence.cpu().numpy()))
        return traces

    @torch.inference_mode()
    def most_similar(self, count: int) -> SkipSet:
        """Return the `count` whole layers that CLaSp's dynamic programming skips for most of the texts' last tokens."""
        inner, votes = range(1, len(self.target.full.layers) - 1), Counter[int]()
        for row, (prompt, output) in enumerate(self.texts):
            last, position = output[-1], len(prompt) + len(output) - 1
            states: list[torch.Tensor] = []
            self.target.forward([row], [last], [TokenTree.empty()], keep=[states])
            chosen = most_similar_skips(self.target, row, position, last, states[0][:, 0], count, inner)
            votes.update(chosen.attention)
        skipped = frozenset(layer for layer, _ in sorted(votes.items(), key=lambda v: (-v[1], v[0]))[:count])
        return SkipSet(skipped, skipped)
