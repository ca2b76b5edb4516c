"""The base class of all drafters of panel (b): a sparse path of the model drafts token by token.

A subclass chooses the path. This file drafts the chain and its siblings, decides when the chain ends, and hands over
the hidden states that the verification may reuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.lengths import AdaptiveThreshold, Calibration, ExpectedGain, Rule, Threshold
from selfdraft.core.options import option
from selfdraft.core.sampling import draw
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.drafters.siblings import children, siblings_of
from selfdraft.models.adapter import Adapter
from selfdraft.models.sparse import Path, Reuse
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()
BONUS = ("auto", "keep", "forgo")
LENGTHS = ("threshold", "adaptive", "gain")


@dataclass
class SparseConfig(DrafterConfig):
    """How long a draft is, how wide, and from which vocabulary.

    Up to `draft_length` tokens are drafted. `length`: `threshold` ends the draft after the first token whose
    probability in the sparse model is below `min_confidence`; `adaptive` begins with a threshold of 0.6 and moves it
    towards an acceptance rate of 0.9; `gain` drafts on while that raises the expected tokens per second at this
    machine's costs. `siblings`: adds the next best tokens at every depth as leaves: the less sure the drafted token,
    the more leaves, or with `gain` as many as pay. `draft_vocabulary`: the number of token ids that may be drafted,
    those of the prompt first (of all prompts and answers so far, if `warm`).
    """

    draft_length: int = option(4, at_least=1)
    length: str = option("threshold", choices=LENGTHS)
    min_confidence: float = option(0.0, at_least=0.0, at_most=1.0)
    siblings: bool = False
    draft_vocabulary: int | None = option(None, at_least=1)
    warm: bool = False


@dataclass
class Memory:
    """The drafter's state for one request.

    Attributes:
        rule: the length rule.
        calibration: how often drafted tokens of each confidence were accepted.
        drafted, confidences: the tokens of the last chain, and their probabilities in the sparse model.
        limit: the longest draft, in tokens.
        own: a subclass's own state.
    """

    path: Path
    rule: Rule
    calibration: Calibration = field(default_factory=Calibration)
    drafted: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    limit: int = 10_000
    own: Any = None


@dataclass
class _Chain:
    """A draft as it grows: the chain, the siblings beside it, and the distribution that each token was drawn from."""

    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    sibling_parents: list[int] = field(default_factory=list)
    sibling_tokens: list[int] = field(default_factory=list)
    sibling_q: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def tree(self) -> TokenTree:
        """Return the tree: first the chain, because drafting left its keys in the first slots, then all leaves."""
        chain = TokenTree.chain(self.tokens)
        if not self.sibling_tokens:
            return chain
        parents = torch.cat([chain.parents, torch.tensor(self.sibling_parents)])
        tokens = torch.cat([chain.tokens, torch.tensor(self.sibling_tokens)])
        return TokenTree(tokens, parents, torch.ones(len(tokens), dtype=torch.bool))


class SparseDrafter(Drafter):
    """Base class. A subclass gives a request its path by `path_for`, or all requests one path by `use`.

    Attributes:
        reuse, bonus: see `EarlyExitConfig`.
    """

    config: SparseConfig
    reuse = False
    bonus = "keep"

    def __init__(self, target: Target, config: SparseConfig) -> None:
        super().__init__(target, config)
        self._counted = np.zeros(target.vocab_size, dtype=np.int64)  # tokens seen, if warm
        self._costs = target.costs if self._needs_costs() else None
        self._path_costs = self._late_costs = None

    def use(self, skip: SkipSet) -> None:
        """Draft through the path without the sublayers `skip`; for subclasses whose path does not change."""
        self.skip = skip
        self._set_path(self.target.sparse_path(skip))

    def use_adapter(self, folder: str, options: Sequence[str]) -> None:
        """Draft through the path that an adapter was trained for, with its weights.

        Args:
            options: names of the options that set the skip set; they must be left out, because the adapter sets it.

        Raises:
            UserError: the adapter cannot be used, or one of `options` or `draft_vocabulary` is given as well.
        """
        plain = type(self.config)()
        for name in (*options, "draft_vocabulary"):
            if getattr(self.config, name) != getattr(plain, name):
                raise UserError(f"drafter.{name}: an adapter drafts through what it was trained for; leave it out")
        self._set_path(self.target.adapted_path(Adapter.read(folder)))
        self.skip = self.path.skip

    def _set_path(self, path: Path) -> None:
        self.path = path
        if self._costs is not None:
            self._path_costs = self.target.costs_of(path)
            layers = len(self.target.full.layers)
            self._late_costs = self.target.costs_of(self.target.full.part(path.leading, layers))

    def path_for(self, context: Context) -> Path:
        """Return the request's path. Called once, when the request begins."""
        if self.config.draft_vocabulary is None:
            return self.path
        return self.target.sparse_path(self.skip, vocabulary=self.vocabulary(context))

    def start(self, context: Context) -> None:
        """Begin with a path and a length rule, and nothing drafted yet."""
        if self.config.warm:
            self._count(context.tokens)
        context.memory = Memory(self.path_for(context), self._rule())

    def propose(self, context: Context) -> Draft:
        """Return the draft for one request."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return one draft per context; contexts with the same path are drafted together."""
        drafts: dict[int, Draft] = {}
        groups: dict[int, list[int]] = {}
        for i, context in enumerate(contexts):
            groups.setdefault(id(context.memory.path), []).append(i)
        for members in groups.values():
            together = [contexts[i] for i in members]
            drafts |= zip(members, self._draft(together[0].memory.path, together), strict=True)
        return [drafts[i] for i in range(len(contexts))]

    def observe(self, context: Context, step: Step) -> None:
        """Tell the length rule and the calibration how many tokens of the chain were right."""
        memory: Memory = context.memory
        if context.rule.sample:
            known = min(len(memory.confidences), len(step.draft.tree))
            stood = sum(node == depth for depth, node in enumerate(step.path[:known]))
        else:  # the emitted tokens also show whether a token that was drafted but not verified was right
            known = min(len(memory.confidences), len(step.emitted))
            right = [a == b for a, b in zip(memory.drafted[:known], step.emitted, strict=False)]
            stood = right.index(False) if False in right else len(right)
        memory.rule.learn(memory.confidences[:known], stood)
        memory.calibration.learn(memory.confidences[:known], stood)
        if self.config.warm:
            self._count(step.emitted)

    def vocabulary(self, context: Context) -> list[int]:
        """Return the `draft_vocabulary` token ids to draft from: the most frequent first, then the lowest ids.

        The lowest ids of a byte-pair vocabulary are its earliest merges, which are frequent in general.
        """
        counts = self._counted.copy() if self.config.warm else np.zeros_like(self._counted)
        if not self.config.warm:
            np.add.at(counts, context.tokens, 1)
        return np.argsort(-counts, kind="stable")[: self.config.draft_vocabulary].tolist()

    def forward(
        self,
        path: Path,
        contexts: Sequence[Context],
        depth: int,
        tokens: Sequence[int],
        keep: Sequence[list[Tensor]] | None,
    ) -> list[Tensor]:
        """Run one sparse forward and return its logits; subclasses may select keys."""
        rows = [context.row for context in contexts]
        return self.target.draft_forward(path, rows, depth, tokens, [_EMPTY] * len(rows), keep=keep)

    def _draft(self, path: Path, contexts: Sequence[Context]) -> list[Draft]:
        """Draft for contexts with the same path: at every depth, one sparse forward of the chains that go on."""
        chains = [_Chain() for _ in contexts]
        reuse = self.reuse and path.leading > 0
        going = [i for i, context in enumerate(contexts) if min(context.room, context.memory.limit) > 0]
        for depth in range(self.config.draft_length):
            if not going:
                break
            tokens = [chains[i].tokens[-1] if depth else contexts[i].tokens[-1] for i in going]
            keep = [chains[i].states for i in going] if reuse else None
            logits = self.forward(path, [contexts[i] for i in going], depth, tokens, keep)
            for i, row_logits in zip(going, logits, strict=True):
                self._extend(contexts[i], chains[i], row_logits)
            going = [i for i in going if self._goes_on(contexts[i], chains[i])]
        return [self._finished(path, c, chain, reuse) for c, chain in zip(contexts, chains, strict=True)]

    def _extend(self, context: Context, chain: _Chain, logits: Tensor) -> None:
        """Add the next token to a chain, and its siblings, from (1, V) logits."""
        rule, parent = context.rule, len(chain.tokens) - 1
        scores = rule.scores(logits, [*context.tokens, *chain.tokens], context.prompt_length, _EMPTY)
        if rule.sample:
            q = rule.probabilities(scores)
            token = int(draw(q, context.uniforms(1, logits.device)))
            chain.q.append(q)
        else:
            # The softmax over the vocabulary is left out where nothing needs the confidence.
            q = scores.float().softmax(-1) if self._needs_confidence(context) else scores
            token = int(scores.argmax())
        chain.tokens.append(token)
        if not self._needs_confidence(context):
            return
        confidence = float(q[0, token])
        chain.confidences.append(confidence)
        if self.config.siblings:
            size = 1 + len(chain.tokens) + len(chain.sibling_tokens)
            count = children(context.memory.rule, chain.confidences, q, size, sample=rule.sample)
            siblings, left = siblings_of(context, q, token, count)
            chain.sibling_tokens += siblings
            chain.sibling_parents += [parent if parent >= 0 else ROOT] * len(siblings)
            chain.sibling_q += left

    def _goes_on(self, context: Context, chain: _Chain) -> bool:
        memory: Memory = context.memory
        return len(chain.tokens) < min(context.room, memory.limit) and memory.rule.goes_on(chain.confidences)

    def _finished(self, path: Path, context: Context, chain: _Chain, reuse: bool) -> Draft:
        """Return the draft, without its last token if forwarding it through the leading layers does not pay."""
        context.memory.drafted, context.memory.confidences = chain.tokens.copy(), chain.confidences
        if reuse and chain.tokens and not self.config.siblings and not self._bonus_pays(context, chain):
            chain.tokens.pop()
            del chain.q[len(chain.tokens) :]
        q = [*chain.q, *chain.sibling_q]
        states = Reuse(path.leading, torch.cat(chain.states)) if chain.states else None
        return Draft(chain.tree(), self.config.name, torch.cat(q) if q else None, reuse=states)

    def _bonus_pays(self, context: Context, chain: _Chain) -> bool:
        """Return whether to verify the last drafted token too, which may gain one more token after it.

        Without it, the target's own token at its position is the bonus token, so a right draft loses nothing. With it,
        the leading layers have to run on it first. This pays if it raises the expected tokens per second of the step.
        If only one token was drafted, this decides whether to draft at all.
        """
        k = len(chain.tokens)
        if self.bonus != "auto":
            return self.bonus == "keep" or k == 1
        assert self._costs is not None and self._path_costs is not None and self._late_costs is not None
        sure = chain.confidences
        if context.rule.sample:
            # Whether a drawn token is kept must not depend on the token: the kept ones would no longer be distributed
            # as q. So the last token is assumed to be as sure as the one before it.
            if k == 1:
                return True
            sure = [*sure[:-1], sure[-2]]
        reached = context.memory.calibration.reaches(sure)
        draft, late = self._path_costs(1), self._late_costs
        seconds, extra = k * draft + late(k), max(self._costs(1) - late(1), 0.0) + late(k + 1) - late(k)
        return reached[-1] * seconds > (1 + sum(reached[:-1])) * extra

    def _needs_costs(self) -> bool:
        return self.config.length == "gain" or (self.reuse and self.bonus == "auto")

    def _needs_confidence(self, context: Context) -> bool:
        return self.config.siblings or self._needs_costs() or context.memory.rule.needs_confidence

    def _rule(self) -> Rule:
        if self.config.length == "adaptive":
            return AdaptiveThreshold()
        if self.config.length == "gain":
            assert self._costs is not None and self._path_costs is not None
            return ExpectedGain(self._costs, self._path_costs(1))
        return Threshold(self.config.min_confidence)

    def _count(self, tokens: Sequence[int]) -> None:
        np.add.at(self._counted, list(tokens), 1)
