"""The three objects that pass between the loop and a drafter: `Context` (a request), `Draft`, and the verified `Step`.

The loop calls ``propose(context) -> Draft``, verifies the draft, and calls ``observe(context, step)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.path import Path, Reuse


@dataclass(eq=False)
class Context:
    """One request, as its drafter sees it.

    Attributes:
        row: the request's row in the cache.
        tokens: prompt and emitted tokens; the last one is the root of the next step's tree.
        prompt_length: number of tokens in the prompt.
        room: depth of the deepest node that could still be emitted before the length limit; do not draft deeper.
        rng: the request's own generator, so that its draft does not depend on other requests.
        rule: the sampling rule; a drafter that samples draws by the same rule.
        rows: number of requests that the present step decodes together.
    """

    row: int
    tokens: list[int]
    prompt_length: int
    room: int
    rng: np.random.Generator
    rule: NextToken = NextToken()
    rows: int = 1

    def distributions(self, logits: Tensor, drafted: Sequence[int] = (), tree: TokenTree | None = None) -> Tensor:
        """Return (n + 1, V) warped distributions: after the `drafted` tokens, and after each node of `tree` below."""
        history = [*self.tokens, *drafted]
        return self.rule.distributions(logits, history, self.prompt_length, tree or TokenTree.empty())

    def uniforms(self, count: int, device: torch.device) -> Tensor:
        """Return (count,) numbers in [0, 1) from the request's own generator."""
        return torch.from_numpy(self.rng.random(count)).to(device)


@dataclass(frozen=True)
class Draft:
    """A proposal.

    Attributes:
        tree: the tokens to verify.
        source: name of the source of the tokens, for records and viewers.
        q: (n, V) the distribution that each node was drawn from, for rejection sampling. None for a draft that is not
            sampled, or whose draws are independent of the verification's: its tokens are compared with the target's.
        target_forwards: full forwards of the target that drafting took; they are counted like all others.
        reuse: hidden states that the verification need not compute again.
        wants_states: whether `observe` gets the hidden states of the verification.
        sources: the source of each node, if the tree has several sources; otherwise empty.
        through: the path that the verification runs through, if the drafts need another one than the full path; it
            gives the root and the candidates the full path's logits.
    """

    tree: TokenTree
    source: str = ""
    q: Tensor | None = None
    target_forwards: int = 0
    reuse: Reuse | None = None
    wants_states: bool = False
    sources: tuple[str, ...] = ()
    through: Path | None = None

    def up_to_depth(self, depth: int) -> Draft:
        """Return the draft without the nodes deeper than `depth`."""
        return self if self.tree.height <= depth else self.restricted_to(self.tree.depths <= depth)

    def restricted_to(self, kept: Tensor) -> Draft:
        """Return the draft with only the nodes in `kept`, (n,) bool, which must contain the parents of its nodes."""
        q = None if self.q is None else self.q[kept.to(self.q.device)]
        reuse = self.reuse
        if reuse is not None:  # states are usable only up to the first node that is dropped
            reuse = replace(reuse, states=reuse.states[: 1 + int(kept.long().cumprod(0).sum())])
        sources = tuple(source for source, keep in zip(self.sources, kept.tolist(), strict=False) if keep)
        return replace(self, tree=self.tree.restricted_to(kept), q=q, reuse=reuse, sources=sources)


@dataclass(frozen=True)
class Step:
    """The result of verifying a draft.

    Attributes:
        draft: the draft that was verified: the proposal, cut to what could still be emitted.
        logits: (n + 1, V) on the target's device, after the root and after each node.
        predictions: (n + 1,) int64 on the CPU: the bonus token if the root, or each node, is the last accepted one.
        nodes: indices of the accepted nodes.
        emitted: the tokens that the step added: the accepted ones and the bonus token, up to a stop.
        distributions: (n + 1, V) the target's, warped; None in greedy decoding, or if the drafter does not want them.
        states: (L + 1, n + 1, C) hidden states before the first and after every layer, if the draft wants them.
        best: (2, n + 1, k) on the CPU: the k likeliest tokens after the root and each node, and their chances,
            renormalised over the k, if the drafter wants them.
    """

    draft: Draft
    logits: Tensor
    predictions: Tensor
    nodes: tuple[int, ...]
    emitted: tuple[int, ...]
    distributions: Tensor | None = None
    states: Tensor | None = None
    best: Tensor | None = None
