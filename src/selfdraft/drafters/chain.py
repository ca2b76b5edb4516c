"""Draft a chain: a part of the model drafts token by token, as a small model would (sparsity-based drafting).

1. The path policy says which part of the model runs.
2. One forward of that part per token drafts the chain, and *siblings*: other likely tokens beside each drafted one.
3. The length rule (`core.lengths`) decides after each token whether to go on.
4. If the part consists of the model's own first layers, the draft also holds their hidden states, so that the
   verification need not compute them again (*reuse*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.lengths import AdaptiveThreshold, Calibration, DraftLengthRule, ExpectedGain, Threshold
from selfdraft.core.options import choice_name, option
from selfdraft.core.sampling import draw, most_likely
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Draft, PathDrafter, PathDrafterConfig, Step
from selfdraft.drafters.paths.base import PathPolicy
from selfdraft.drafters.siblings import rivals_of, siblings_of
from selfdraft.models.forward.path import Path, Reuse
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.paths.sparse import with_vocabulary

_EMPTY = TokenTree.empty()
BONUS = ("auto", "keep", "forgo")
LENGTHS = ("threshold", "adaptive", "gain")


@dataclass
class ChainConfig(PathDrafterConfig):
    """How long a draft is, how wide, and from which vocabulary.

    With `reuse`, verification continues from what the path's leading layers, which are the target's own, computed while
    drafting. The last drafted token has not been through them yet: `bonus` says what happens with it.
    """

    name: str = choice_name("chain")
    draft_length: int = option(
        4, at_least=1, help="K: maximum number of drafted tokens in a step; more pays where most of them are accepted"
    )
    length: str = option(
        "threshold",
        choices=LENGTHS,
        help="what ends a draft before draft_length tokens: threshold (a token less probable than min_confidence), "
        "adaptive (the same, but the threshold begins at 0.6 and is moved so that 90% of the drafted tokens "
        "are accepted) or gain (one token more is not expected to raise the tokens per second on this "
        "machine)",
    )
    min_confidence: float = option(
        0.0,
        at_least=0.0,
        at_most=1.0,
        help="with length=threshold, a draft ends after the first token that is less probable than this in the "
        "drafting path; 0: always draft_length tokens. Higher values draft less, but surer",
    )
    siblings: bool = option(
        False,
        help="true: also draft the next best tokens beside each drafted one, more where that is less sure, or with "
        "length=gain as many as pay; where verifying more tokens costs little",
    )
    draft_vocabulary: int | None = option(
        None,
        at_least=1,
        help="draft from only this many token ids, those of the prompt first, to make the head cheaper; null: all",
    )
    warm: bool = option(
        False,
        help="true: choose draft_vocabulary by all prompts and answers so far, and let a path that searches go on "
        "with its search; for prompts that resemble each other",
    )
    reuse: bool = option(
        False,
        help="true: verification goes on from the states that the path's first layers computed while drafting, "
        "where these are the full model's; cheaper, with the same outputs",
    )
    bonus: str = option(
        "auto",
        choices=BONUS,
        help="with reuse, what happens to the last drafted token, which has not run through the first layers: keep "
        "(run it, which gains a token if the whole draft is accepted), forgo (leave it out) or auto (decide "
        "in every step by this machine's costs)",
    )
    learn: bool = option(
        False,
        help="true: task=evaluate trains the weights of finetune=exit_adapter or finetune=jump further between "
        "prompts, on the texts that it decodes, and saves them; for texts unlike those of the training. Needs "
        "float32 and model.engine=eager",
    )
    learn_every: int = option(
        16,
        at_least=1,
        help="with learn, number of verifications for each training step; fewer learn faster and take more time",
    )
    learn_rate: float = option(3e-4, at_least=0.0, help="with learn, the learning rate")

    @property
    def longest(self) -> int:
        """See `PathDrafterConfig`."""
        return self.draft_length

    @property
    def label(self) -> str:
        """Return the path's name: a chain is the usual way to draft with a part of the model."""
        return self.path.name if self.path.name != "full" else super().label


@dataclass
class State:
    """The drafter's state for one request.

    Attributes:
        rule: the length rule.
        vocabulary: the ids to draft from; None for all.
        calibration: how often drafted tokens of each confidence were accepted.
        drafted, confidences: the tokens of the last chain, and their probabilities in the drafting path.
        whole, path: the policy's last path, and the same with a head for `vocabulary` only.
        limit: the longest draft that the policy wants, in tokens.
    """

    rule: DraftLengthRule
    vocabulary: list[int] | None
    calibration: Calibration = field(default_factory=Calibration)
    drafted: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    whole: Path | None = None
    path: Path | None = None
    limit: int = 0


@dataclass
class _Chain:
    """A draft as it grows: the chain, the siblings beside it, and the distribution that each token was drawn from.

    Attributes:
        forwards: full forwards of the target that drafting took.
        states: per forward, the (1, C) hidden states after the leading layers, for reuse.
    """

    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    sibling_parents: list[int] = field(default_factory=list)
    sibling_tokens: list[int] = field(default_factory=list)
    sibling_q: list[Tensor] = field(default_factory=list)
    forwards: int = 0
    states: list[Tensor] = field(default_factory=list)

    def cut(self, count: int) -> None:
        """Keep the first `count` tokens, and what was drafted beside them. Only for greedy decoding, which has no q."""
        kept = [at for at, parent in enumerate(self.sibling_parents) if parent < count - 1]
        self.tokens = self.tokens[:count]
        self.sibling_parents = [self.sibling_parents[at] for at in kept]
        self.sibling_tokens = [self.sibling_tokens[at] for at in kept]

    def tree(self) -> TokenTree:
        """Return the tree: first the chain, because drafting left its keys in the first slots, then all leaves."""
        chain = TokenTree.chain(self.tokens)
        if not self.sibling_tokens:
            return chain
        parents = torch.cat([chain.parents, torch.tensor(self.sibling_parents)])
        tokens = torch.cat([chain.tokens, torch.tensor(self.sibling_tokens)])
        return TokenTree(tokens, parents, torch.ones(len(tokens), dtype=torch.bool))


class Chain(PathDrafter):
    """Drafts a chain with the path that the policy chooses."""

    Config = ChainConfig
    config: ChainConfig

    def __init__(self, target: TargetProtocol, config: ChainConfig, costs: Costs, policy: PathPolicy) -> None:
        """Take a policy, and measure what decisions by cost need.

        Raises:
            UserError: `draft_vocabulary` is given, and the path has a vocabulary of its own.
        """
        super().__init__(target, config, costs, policy)
        if config.draft_vocabulary is not None and policy.typical.vocabulary is not None:
            raise UserError("drafter.draft_vocabulary: the path was trained for a vocabulary of its own; leave it out")
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()
        self._counted = np.zeros(target.vocab_size, dtype=np.int64)  # tokens seen, if warm
        self._needs_costs = config.length == "gain" or (config.reuse and config.bonus == "auto")
        self.ask_costs()

    def ask_costs(self) -> None:
        """Ask for the costs of the full model, of the path, and of what verification runs if it reuses its states."""
        if self._needs_costs:
            full, path = self.target.full, self.policy.typical
            self._full, self._path = self.costs.full(), self.costs.of(path)
            self._late = self.costs.of(full.part(path.leading, len(full.layers)))

    def start(self, context: Context) -> None:
        """Begin with a length rule, and nothing drafted yet."""
        super().start(context)
        if self.config.warm:
            self._count(context.tokens)
        some = self.config.draft_vocabulary is not None
        self.states[context] = State(self._rule(), self.vocabulary(context) if some else None)

    def propose(self, context: Context) -> Draft:
        """Return the draft for one request."""
        return self.propose_batch([context])[0]

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return one draft per context; contexts with the same path are drafted together."""
        chains = [_Chain() for _ in contexts]
        groups: dict[int, list[int]] = {}
        for i, context in enumerate(contexts):
            state = self.states[context]
            state.limit = min(context.room, self.policy.longest(context))
            if state.limit > 0:
                groups.setdefault(id(self._path_of(context)), []).append(i)
        for members in groups.values():
            self._draft([contexts[i] for i in members], [chains[i] for i in members])
        return [self._finished(context, chain) for context, chain in zip(contexts, chains, strict=True)]

    def observe(self, context: Context, step: Step) -> None:
        """Count how many tokens of the chain were right, for the length rule and the calibration."""
        super().observe(context, step)
        state = self.states[context]
        if context.rule.sample:
            known = min(len(state.confidences), len(step.draft.tree))
            count = sum(node == depth for depth, node in enumerate(step.nodes[:known]))
        else:  # the emitted tokens also show whether a token that was drafted but not verified was right
            known = min(len(state.confidences), len(step.emitted))
            right = [a == b for a, b in zip(state.drafted[:known], step.emitted, strict=False)]
            count = right.index(False) if False in right else len(right)
        state.rule.learn(state.confidences[:known], count)
        state.calibration.learn(state.confidences[:known], count)
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

    def _path_of(self, context: Context) -> Path:
        """Return the path of the next draft, with the request's own head if it drafts from a part of the vocabulary."""
        state, path = self.states[context], self.policy.path(context)
        if state.vocabulary is None:
            state.path = path
        elif state.whole is not path:
            state.path = with_vocabulary(path, self.target, state.vocabulary)
        state.whole = path
        assert state.path is not None
        return state.path

    def _draft(self, contexts: Sequence[Context], chains: Sequence[_Chain]) -> None:
        """Draft for contexts with the same path: at every depth, one forward of the chains that go on."""
        path = self.states[contexts[0]].path
        assert path is not None
        going = list(range(len(contexts)))
        for depth in range(self.config.draft_length):
            if not going:
                break
            tokens = [chains[i].tokens[-1] if depth else contexts[i].tokens[-1] for i in going]
            keep = [chains[i].states for i in going] if self.config.reuse and path.leading else None
            rows, trees = [contexts[i].row for i in going], [_EMPTY] * len(going)
            logits = self.target.draft_forward(path, rows, depth, tokens, trees, keep=keep)
            with single_threaded(self.target.compiled):
                for i, row_logits in zip(going, logits, strict=True):
                    chains[i].forwards += path is self.target.full
                    self._extend(contexts[i], chains[i], row_logits)
            going = [i for i in going if self._goes_on(contexts[i], chains[i])]

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
            token = int(most_likely(scores))
        chain.tokens.append(token)
        if not self._needs_confidence(context):
            return
        confidence = float(q[0, token])
        chain.confidences.append(confidence)
        if self.config.siblings:
            size = 1 + len(chain.tokens) + len(chain.sibling_tokens)
            rivals = partial(rivals_of, q, confidence)
            leaves = self.states[context].rule.leaves(chain.confidences, rivals, size, sample=rule.sample)
            siblings, left = siblings_of(context, q, token, leaves)
            chain.sibling_tokens += siblings
            chain.sibling_parents += [parent if parent >= 0 else ROOT] * len(siblings)
            chain.sibling_q += left

    def _goes_on(self, context: Context, chain: _Chain) -> bool:
        state = self.states[context]
        return len(chain.tokens) < state.limit and state.rule.goes_on(chain.confidences)

    def _finished(self, context: Context, chain: _Chain) -> Draft:
        """Return the draft, without its last token if forwarding it through the leading layers does not pay."""
        state = self.states[context]
        state.drafted, state.confidences = chain.tokens.copy(), chain.confidences
        if chain.confidences and not context.rule.sample and not self.config.reuse:
            chain.cut(state.rule.verified(chain.confidences))
        if chain.states and not self.config.siblings and not self._bonus_pays(context, chain):
            chain.tokens.pop()
            del chain.q[len(chain.tokens) :]
        q = [*chain.q, *chain.sibling_q]
        reuse = Reuse(state.path.leading, torch.cat(chain.states)) if chain.states and state.path else None
        own, joined = self.config.label, torch.cat(q) if q else None
        draft = Draft(chain.tree(), own, joined, target_forwards=chain.forwards, reuse=reuse)
        return self.finished(context, draft)

    def _bonus_pays(self, context: Context, chain: _Chain) -> bool:
        """Return whether to verify the last drafted token too, which may gain one more token after it.

        Without it, the target's own token at its position is the bonus token, so a right draft loses nothing. With it,
        the leading layers have to run on it first. This pays if it raises the expected tokens per second of the step.
        If only one token was drafted, this decides whether to draft at all.
        """
        k = len(chain.tokens)
        if self.config.bonus != "auto":
            return self.config.bonus == "keep" or k == 1
        sure = chain.confidences
        if context.rule.sample:
            # Whether a drawn token is kept must not depend on the token: the kept ones would no longer be distributed
            # as q. So the last token is assumed to be as sure as the one before it.
            if k == 1:
                return True
            sure = [*sure[:-1], sure[-2]]
        reached = self.states[context].calibration.reaches(sure)
        draft, late = self._path(1), self._late
        seconds, extra = k * draft + late(k), max(self._full(1) - late(1), 0.0) + late(k + 1) - late(k)
        return reached[-1] * seconds > (1 + sum(reached[:-1])) * extra

    def _needs_confidence(self, context: Context) -> bool:
        return self.config.siblings or self._needs_costs or self.states[context].rule.needs_confidence

    def _rule(self) -> DraftLengthRule:
        if self.config.length == "adaptive":
            return AdaptiveThreshold()
        if self.config.length == "gain":
            return ExpectedGain(self._full, self._path(1))
        return Threshold(self.config.min_confidence)

    def _count(self, tokens: Sequence[int]) -> None:
        np.add.at(self._counted, list(tokens), 1)
