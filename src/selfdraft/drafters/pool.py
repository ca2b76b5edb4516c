"""Draft one tree from several sources: suffix matches, Jacobi trajectories and recycled tokens.

Every source names tokens that may follow a node, each with a chance. A token that several sources name becomes one
node. The drafter learns while decoding how often guesses of each kind (which sources agree, how sure each is, how deep)
were right. Every step drafts the tree with the most expected tokens per second at the measured costs, or nothing.

A part of the model (`path_source`) may be a further source. It is asked for tokens where that is expected to pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import Growth, grow_to_pay
from selfdraft.core.options import choice_name, option
from selfdraft.core.predictions import PredictionTable, weighted
from selfdraft.core.suffix import SuffixAutomaton, SuffixText
from selfdraft.core.tree import ROOT
from selfdraft.drafters.base import COSTS, COSTS_HELP, Context, Draft, PathDrafter, PathDrafterConfig, Step
from selfdraft.drafters.path_source import Answer, PathSource
from selfdraft.drafters.paths.base import PathPolicy
from selfdraft.models.forward.protocol import TargetProtocol

SOURCES = ("suffix", "trajectory", "recycling")
ORDER = 3  # the longest context, in tokens, for which predictions are kept
# Prior probabilities that a guess is right: a prediction for a context of 1, 2 or 3 tokens; a prediction for a context
# when one for a longer context is known; and a guess left over from the last forward.
RELIABILITY = (0.35, 0.8, 0.95)
SUPERSEDED = 0.1
LEFT_OVER = 0.05
DEEP = 2  # nodes at this depth and deeper share their estimates
NEVER = (0, 0, False)  # a token that no prediction names
UNASKED = -1  # the sparse path was not asked at this node


@dataclass
class PoolConfig(PathDrafterConfig):
    """How large the tree grows, and from what.

    `path` is a further source: a part of the model that is asked for tokens where that pays. The full path is never
    asked.
    """

    presets: ClassVar[dict[str, str]] = {"full": "pool", "layer_skip": "cascade"}
    name: str = choice_name("pool")
    sources: list[str] = option(
        list(SOURCES),
        choices=SOURCES,
        help="where guesses come from, any of suffix (what followed the longest match of the text's end earlier in "
        "it), trajectory (what the model predicted earlier after the same two or three tokens, and "
        "predictions left over) and recycling (what it predicted after the same token)",
    )
    max_nodes: int = option(32, at_least=1, help="maximum number of drafted tokens (nodes of the tree) in a step")
    edges: int = option(
        4, at_least=1, help="number of predicted next tokens that are kept of each forward, for each of its tokens"
    )
    branches: int = option(4, at_least=1, help="maximum number of different continuations considered for each match")
    min_probability: float = option(
        0.01, at_least=0.0, at_most=1.0, help="do not draft tokens with a lower estimated probability of being accepted"
    )
    costs: str = option("measured", choices=COSTS, help=COSTS_HELP)
    warm: bool = option(
        False,
        help="true: keep what was seen and learned from one request to the next; for prompts that resemble each other",
    )
    sparse_length: int = option(
        1,
        at_least=1,
        help="maximum number of tokens that the part of the model in drafter/path adds to a draft, where that pays",
    )

    @property
    def longest(self) -> int:
        """See `PathDrafterConfig`."""
        return self.sparse_length

    @property
    def reuses(self) -> bool:
        """See `PathDrafterConfig`, and `PathSource`."""
        return self.sparse_length == 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UserError(f"drafter.sources=[]: name at least one of {', '.join(SOURCES)}")


# (how sure the suffix match is, the model's prediction, whether left over, depth, how sure the sparse path is)
Kind = tuple


@dataclass
class State:
    """The drafter's state for one request.

    With `warm`, all requests share the automaton and the estimates; each has its own table, which falls back on the
    shared one.

    Attributes:
        left_over: what the last forward predicted at the rejected nodes of a chain: for each depth of the next tree,
            the token that may follow a node there.
        growing: how the last draft grew.
    """

    automaton: SuffixAutomaton
    table: PredictionTable
    estimates: Estimates
    text: SuffixText
    left_over: list[int] = field(default_factory=list)
    growing: _Growing | None = None


class Pool(PathDrafter):
    """Drafts one tree from all sources."""

    Config = PoolConfig
    config: PoolConfig

    def __init__(self, target: TargetProtocol, config: PoolConfig, costs: Costs, policy: PathPolicy) -> None:
        super().__init__(target, config, costs, policy)
        measured = costs if config.costs == "measured" else None
        self.curve = None if measured is None else measured.full()
        self.best = min(config.edges, target.vocab_size)
        self.source = None
        if config.path.name != "full":
            self.source = PathSource(target, policy, measured, guesses=self.best, longest=config.sparse_length)
        self.shared = self._empty()
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with an empty state or, if `warm`, with the state that earlier requests left."""
        super().start(context)
        warm, shared = self.config.warm, self.shared if self.config.warm else self._empty()
        table = PredictionTable(earlier=shared.table) if warm else shared.table
        self.states[context] = State(shared.automaton, table, shared.estimates, SuffixText(shared.automaton))

    def ask_costs(self) -> None:
        """Ask for the costs of the path, if it is a source whose tokens do not count as free."""
        if self.source is not None and self.curve is not None:
            self.source.ask_costs(self.costs)

    def propose(self, context: Context) -> Draft:
        """Return the best tree of up to `max_nodes`, cut to the size that pays most."""
        state = self.states[context]
        state.text.read_on(context.tokens)
        growing, growth, size = self._grown(context, None)
        answer = self._asked(context, growth, size)
        if answer is not None:
            growing, growth, size = self._grown(context, answer)
        state.growing = growing
        sources, reuse = tuple(growing.sources[n] for n in growth.order(size)), answer.reuse if answer else None
        return self.finished(context, Draft(growth.tree(size), "pool", sources=sources, reuse=reuse))

    def observe(self, context: Context, step: Step) -> None:
        """Learn which kinds of guesses were right along the emitted tokens, and the predictions at every node."""
        super().observe(context, step)
        state = self.states[context]
        for kinds, token in state.growing.along(step.emitted) if state.growing else ():  # no tree grew if not asked
            for guess, kind in kinds.items():
                state.estimates.observe(kind, guess == token)
        if state.growing and (answer := state.growing.answer) is not None:
            PathSource.learn(state.estimates, answer, step.emitted)
        state.growing = None
        contexts = [tuple(context.tokens[: -len(step.emitted)][-ORDER:])]
        for parent, token in zip(step.draft.tree.parents.tolist(), step.draft.tree.tokens.tolist(), strict=True):
            contexts.append((*contexts[parent + 1][1 - ORDER :], token))
        assert step.best is not None, "`best` asks for it"
        predicted = weighted(step.best)
        # Accepted nodes are recorded last: if a context occurs twice, the last record counts.
        accepted = [0, *(node + 1 for node in step.nodes)]
        order = [*(i for i in range(len(predicted)) if i not in accepted), *accepted]
        state.table.record([contexts[i] for i in order], [predicted[i] for i in order])
        state.left_over = step.predictions[len(accepted) :].tolist() if step.draft.tree.is_chain else []

    def _grown(self, context: Context, answer: Answer | None) -> tuple[_Growing, Growth, int]:
        """Return a tree of up to `max_nodes`, and how many of its nodes pay."""
        growing = _Growing(self.config, self.states[context], context.tokens, answer)
        growth, size = grow_to_pay(
            growing.expand,
            nodes=self.config.max_nodes,
            depth=context.room,
            least=self.config.min_probability,
            costs=None if self.curve is None else self.curve.shared_by(context.rows),
            whole=self.source is not None,  # what is not drafted helps to decide whether to ask the path
        )
        return growing, growth, size

    def _asked(self, context: Context, growth: Growth, size: int) -> Answer | None:
        """Return the path's answer, if there is a path and asking it pays."""
        longest = self.policy.longest(context)
        if self.source is None or not min(context.room, longest):
            return None
        estimates = self.states[context].estimates
        question = self.source.question(estimates, growth, size, context.room, context.rows, longest)
        return None if question is None else self.source.ask(context, question)

    def _empty(self) -> State:
        automaton = SuffixAutomaton()
        return State(automaton, PredictionTable(), Estimates(), SuffixText(automaton))


def exclusive(guesses: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return (token, chance) pairs, surest first, with chances cut so that their sum is at most 1.

    Only one token can come next, but the chances of disagreeing sources were learned separately. So each guess gets at
    most the chance that the surer ones leave.
    """
    left, out = 1.0, []
    for token, chance in sorted(guesses, key=lambda guess: -guess[1]):
        out.append((token, min(chance, left)))
        left -= out[-1][1]
    return out


class _Growing:
    """Names the tokens that may follow each node, with their chances, merged over all sources.

    Lists are indexed by node + 1; the root's entry is first. The `_name_…` methods add to `priors`, the highest chance
    that a source gives a token, and to `surest`, the source that gives it.
    """

    def __init__(self, config: PoolConfig, state: State, text: list[int], answer: Answer | None) -> None:
        self.config, self.state, self.answer = config, state, answer
        self.contexts: list[tuple[int, ...]] = [tuple(text[-ORDER:])]
        self.matches = [state.text.match()]
        self.branches: list[tuple[int, ...]] = [()]  # the tokens that lead to the node
        self.children: dict[tuple[int, int], int] = {}  # (parent, token) -> node
        self.kinds: list[dict[int, Kind]] = []  # by token that is named at the node
        self.surest: list[dict[int, str]] = []  # likewise: the source that gives it the highest chance
        self.sources: list[str] = []  # the source that is surest of the node's token; by node, without the root

    def expand(self, node: int, parent: int, token: int) -> list[tuple[int, float]]:
        """Return the tokens that may follow a node, with their chances; see `growth.Expand`."""
        if node != ROOT:
            self.contexts.append((*self.contexts[parent + 1][1 - ORDER :], token))
            self.matches.append(self.state.automaton.advance(*self.matches[parent + 1], token))
            self.branches.append((*self.branches[parent + 1], token))
            self.sources.append(self.surest[parent + 1][token])
            self.children[parent, token] = node
        priors: dict[int, float] = {}
        surest: dict[int, str] = {}
        matched = self._name_continuations(node, priors, surest)
        predicted = self._name_predictions(node, priors, surest)
        left_over = self._name_left_over(node, priors, surest)
        asked = self._name_asked(node, priors, surest)
        deep, unasked = min(len(self.branches[node + 1]), DEEP), 0 if asked else UNASKED
        kinds = {
            t: (matched.get(t, 0), predicted.get(t, NEVER), t == left_over, deep, asked.get(t, unasked)) for t in priors
        }
        self.kinds.append(kinds)
        self.surest.append(surest)
        chance = self.state.estimates.chance
        return exclusive([(token, chance(kinds[token], prior)) for token, prior in priors.items()])

    def along(self, tokens: Sequence[int]) -> Iterator[tuple[dict[int, Kind], int]]:
        """Yield, for each node that `tokens` lead through, the kind of every token named there and the true token.

        A token on the way may have been named without becoming a node, because it did not pay; it becomes one here.
        """
        node = ROOT
        for token in tokens:
            yield self.kinds[node + 1], token
            following = self.children.get((node, token))
            if following is None and token in self.kinds[node + 1]:
                following = len(self.sources)
                self.expand(following, node, token)
            if following is None:
                return
            node = following

    def _name_continuations(self, node: int, priors: dict[int, float], surest: dict[int, str]) -> dict[int, int]:
        """Name the tokens that followed the suffix match. Return how sure each is, in eighths, from 1."""
        if "suffix" not in self.config.sources:
            return {}
        found = self.state.automaton.chances(*self.matches[node + 1], self.config.branches)
        priors.update(found)
        surest.update((token, "suffix") for token, _ in found)
        return {token: 1 + int(8 * chance) for token, chance in found}

    def _name_predictions(self, node: int, priors: dict[int, float], surest: dict[int, str]) -> dict[int, Kind]:
        """Name what the model predicted after the same last tokens.

        Returns:
            By token: how many last tokens matched, how sure it is, in sixths, and whether a longer context is known.
        """
        named: dict[int, Kind] = {}
        superseded = False
        for length, following in self.state.table.after(self.contexts[node + 1]):
            source = "recycling" if length == 1 else "trajectory"
            if source not in self.config.sources:
                continue
            reliability = SUPERSEDED if superseded else RELIABILITY[length - 1]
            for token, weight in following:
                if token in named:
                    continue
                named[token] = length, int(6 * weight), superseded
                if reliability * weight > priors.get(token, 0.0):
                    priors[token], surest[token] = reliability * weight, source
            superseded = True
        return named

    def _name_left_over(self, node: int, priors: dict[int, float], surest: dict[int, str]) -> int | None:
        """Name and return the token that the last forward predicted for this depth, if there is one."""
        depth, left_over = len(self.branches[node + 1]), self.state.left_over
        if "trajectory" not in self.config.sources or depth >= len(left_over):
            return None
        token = left_over[depth]
        if priors.get(token, 0.0) < LEFT_OVER:
            priors[token], surest[token] = LEFT_OVER, "trajectory"
        return token

    def _name_asked(self, node: int, priors: dict[int, float], surest: dict[int, str]) -> dict[int, int]:
        """Name the path's guesses, if it was asked here. Return how sure each is, in eighths, from 1.

        The path has seen the whole text, so the chances of tokens that only other sources name are multiplied by the
        chance that its best guess is wrong.
        """
        guesses = self.answer.guesses.get(self.branches[node + 1]) if self.answer else None
        if not guesses:
            return {}
        answered, left = dict(guesses), 1 - guesses[0][1]
        for token in priors:
            if token not in answered:
                priors[token] *= left
        for token, chance in answered.items():
            if chance > priors.get(token, 0.0):
                priors[token], surest[token] = chance, "sparse"
        return {token: 1 + int(8 * chance) for token, chance in answered.items()}
