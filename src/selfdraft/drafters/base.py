"""What every drafter is: `propose` a tree, `observe` what became of it.

A drafter knows nothing of caches, masks, timing or acceptance. What it remembers about a request stands in
``context.memory``, so one drafter serves any number of requests at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.options import Options
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.models.pseudo import PseudoTokens
from selfdraft.models.sparse import Reuse
from selfdraft.models.target import Target


@dataclass
class Context:
    """One request, as its drafter sees it.

    Attributes:
        row: the cache row that the request lives in.
        tokens: prompt and emitted tokens; the last one is the root of the next step's tree.
        prompt_length: how many of them are the prompt.
        room: the deepest node that could still be emitted before the length limit; drafting deeper is wasted.
        rng: the request's own generator, so that its draft does not depend on what else runs.
        rule: how the next token is chosen; a drafter that samples draws by the same rule.
        rows: how many requests the present step decodes together.
        memory: the drafter's own.
    """

    row: int
    tokens: list[int]
    prompt_length: int
    room: int
    rng: np.random.Generator
    rule: NextToken = NextToken()
    rows: int = 1
    memory: Any = None

    def distributions(self, logits: Tensor, drafted: Sequence[int] = (), tree: TokenTree | None = None) -> Tensor:
        """(n + 1, V) warped distributions after `drafted` tokens and each node of `tree` behind them."""
        history = [*self.tokens, *drafted]
        return self.rule.distributions(logits, history, self.prompt_length, tree or TokenTree.empty())

    def uniforms(self, count: int, device: torch.device) -> Tensor:
        """(count,) numbers in [0, 1) from the request's own generator."""
        return torch.from_numpy(self.rng.random(count)).to(device)


@dataclass(frozen=True)
class Draft:
    """A proposal.

    Attributes:
        tree: the tokens to verify.
        source: where they came from, for records and viewers.
        q: (n, V) the distribution each node was drawn from, where the draft was sampled. None for a draft that is no
            random draw (or independent of everything that verification draws): it is verified as it stands.
        target_forwards: full forwards of the target that drafting itself took; they are counted like all others.
        reuse: what verification need not compute again.
        wants_states: hand the hidden states of the verification to `observe`.
        sources: where each node came from, of a tree that was filled from several sources; otherwise empty.
        pseudo: what the tree's probes are, where they are pseudo tokens.
    """

    tree: TokenTree
    source: str = ""
    q: Tensor | None = None
    target_forwards: int = 0
    reuse: Reuse | None = None
    wants_states: bool = False
    sources: tuple[str, ...] = ()
    pseudo: PseudoTokens | None = None

    def up_to_depth(self, depth: int) -> Draft:
        """Without the nodes below `depth`."""
        if not len(self.tree) or int(self.tree.depths.max()) <= depth:
            return self
        kept = self.tree.depths <= depth
        return self.restricted_to(kept)

    def restricted_to(self, kept: Tensor) -> Draft:
        """Only the nodes of `kept` (n,) bool, which must hold the parents of all it holds."""
        q = None if self.q is None else self.q[kept.to(self.q.device)]
        reuse = self.reuse
        if reuse is not None:  # what was computed still stands first up to the first node that is dropped
            reuse = replace(reuse, states=reuse.states[: 1 + int(kept.long().cumprod(0).sum())])
        sources = tuple(source for source, keep in zip(self.sources, kept.tolist(), strict=False) if keep)
        return replace(self, tree=self.tree.restricted_to(kept), q=q, reuse=reuse, sources=sources)


@dataclass(frozen=True)
class Step:
    """What became of a draft.

    Attributes:
        draft: as proposed (cut to what could still be emitted).
        logits: (n + 1, V) on the target's device, after the root and after each node.
        predictions: (n + 1,) int64 on the CPU: the token that follows the root, and each node, if the path ends there.
        path: indices of the accepted nodes.
        emitted: the tokens that the step added: the accepted ones and the bonus, up to a stop.
        distributions: (n + 1, V) the target's, warped; None in greedy decoding.
        states: (L + 1, n + 1, C) hidden states before and behind every layer, where the draft wants them.
        best: (2, n + 1, k) on the CPU: the k likeliest tokens at every node, and their chances among themselves, where
            the drafter wants them.
    """

    draft: Draft
    logits: Tensor
    predictions: Tensor
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    distributions: Tensor | None = None
    states: Tensor | None = None
    best: Tensor | None = None


COSTS = ("measured", "flat")  # by what a draft's size is chosen: the target's costs, or as though tokens cost nothing


@dataclass
class DrafterConfig(Options):
    """Base of every drafter's options, which stand in its own file."""

    group: ClassVar[str] = "drafter"
    name: str = "none"

    @property
    def memory(self) -> str:
        """What drafting knows of earlier requests: `warm`, `cold` (nothing, though it could) or `none` (it cannot)."""
        warm = getattr(self, "warm", None)
        return "none" if warm is None else "warm" if warm else "cold"


class Drafter(ABC):
    """Base class. A new drafter is a file beside this one, a YAML in conf/drafter and a line in drafters/__init__.

    Attributes:
        Config: the class of its options; the schema of its YAML.
        tree_parallel: whether it works where processes share out its trees: then it may read what the cache holds, or
            verification computed, through `Target.draft_forward` and `Step` alone.
        best: how many of the target's likeliest tokens at every node `observe` wants. They travel with the verdict: to
            fetch them from the logits would make the host wait for the device once more.
    """

    Config: ClassVar[type[DrafterConfig]]
    tree_parallel: ClassVar[bool] = True
    best: int = 0

    def __init__(self, target: Target, config: DrafterConfig) -> None:
        self.target, self.config = target, config

    def start(self, context: Context) -> None:  # noqa: B027  (optional)
        """A request begins: put what is to be remembered about it into ``context.memory``."""

    @abstractmethod
    def propose(self, context: Context) -> Draft:
        """The tree to verify next, at most ``context.room`` deep."""

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """One draft a context. Overridden by drafters that gain from running the model on all of them at once."""
        return [self.propose(context) for context in contexts]

    def observe(self, context: Context, step: Step) -> None:  # noqa: B027  (optional)
        """The step is done, and ``context.tokens`` holds what it emitted."""

    def explore(self, context: Context) -> None:  # noqa: B027  (optional)
        """Behind `observe`: work that only later drafts gain by, such as a search. A guard leaves it out at a loss."""

    def diagnostics(self, context: Context) -> dict[str, list[int]]:
        """When a request has ended: what is worth knowing about its drafting, as named histograms.

        ``[number of 0s, number of 1s, …]``, so that they can be summed over requests. The last step, which `observe`
        does not see, is not in them.
        """
        return {}
