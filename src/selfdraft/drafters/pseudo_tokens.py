"""Trained pseudo tokens: one forward verifies and drafts (PaSS, BiTA and gated LoRA: see `models.trained.pseudo`).

A pseudo token is a learned input embedding that asks the model for a token further ahead. A chain of k of them hangs
below the root and each candidate, as probes. Wherever acceptance ends, the target predicts the bonus token there, and
the probes below that place predict the tokens after it. These are the next step's candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from selfdraft.core.costs import Costs
from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import best_probed, grow
from selfdraft.core.options import choice_name, option
from selfdraft.core.predictions import Weighted, weighted
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import COSTS, Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.trained.pseudo import Branch, PseudoTokens, pseudo_tokens

WORTH, OLD = 0.5, 0.9  # prior number of tokens that a draft is expected to add, and the weight of its older mean
RIVALS = 4  # the chances of a probe's best tokens are renormalised over at least so many of them


@dataclass
class PseudoTokensConfig(DrafterConfig):
    """Which pseudo tokens are used, and how many candidates they give.

    With ``costs=measured`` the chances are learned while decoding, and only candidates at which the accepted tokens are
    likely to end have probes.
    """

    name: str = choice_name("pseudo_tokens")
    adapter: str | None = option(
        None,
        help="folder that finetune=pseudo_tokens wrote; null: untrained ones, copies of the mean embedding, which "
        "run but draft badly",
    )
    count: int = option(
        3,
        at_least=1,
        help="without adapter, number of pseudo tokens: extra inputs of a forward that guess the tokens after the "
        "next one",
    )
    branches: int = option(1, at_least=1, help="number of best tokens considered at each pseudo token")
    nodes: int = option(4, at_least=1, help="maximum number of drafted tokens (nodes of the tree) in a step")
    costs: str = option(
        "measured",
        choices=COSTS,
        help="measured (as many drafted tokens as pay by the measured cost of a forward, and pseudo tokens only "
        "where the accepted tokens are likely to end) or flat (all of them, each with pseudo tokens)",
    )
    noise: float = option(
        0.0,
        at_least=0.0,
        help="without adapter, size of the random embeddings and LoRA, to test that no draft changes the text",
    )


Guess = tuple[int, "Kind", float]
Kind = tuple[int, int, int]  # the kind of a guess: its probe, its rank there, and how sure the probe is, in sixths


@dataclass
class State:
    """The drafter's state for one request.

    Attributes:
        levels: by depth and branch, the guesses of the last step's probes, each with its kind and chance. The key None
            holds the guesses for any branch.
        worth: the mean number of tokens that recent drafts were expected to add, over steps with guesses.
    """

    estimates: Estimates = field(default_factory=Estimates)
    levels: list[dict[Branch | None, list[Guess]]] = field(default_factory=list)
    worth: float = WORTH

    def guesses(self, branch: Branch) -> list[Guess]:
        """Return the guesses for the token after `branch`, the tokens that follow the root."""
        level = self.levels[len(branch)] if len(branch) < len(self.levels) else {}
        return level.get(branch, level.get(None, []))


class PseudoTokensDrafter(Drafter):
    """Verifies the candidates and finds the next ones in one forward."""

    Config = PseudoTokensConfig
    tensor_parallel = False  # has matrices of its own
    config: PseudoTokensConfig
    tree_parallel = False  # a process would need the probes of nodes that other processes verify

    def __init__(self, target: TargetProtocol, config: PseudoTokensConfig, costs: Costs) -> None:
        super().__init__(target, config, costs)
        self.pseudo = self._made()
        self.curve = costs.full() if config.costs == "measured" else None
        self.states: WeakKeyDictionary[Context, State] = WeakKeyDictionary()
        self.rivals = min(max(config.branches, RIVALS), target.vocab_size)
        self.best = 0 if self.guesses_by_heads else self.rivals

    def _made(self) -> PseudoTokens:
        """Return the adapter's pseudo tokens, in place."""
        return pseudo_tokens(self.target, self.config.adapter, self.config.count, self.config.noise)

    @property
    def guesses_by_heads(self) -> bool:
        """Return whether heads of their own read the probes' hidden states, instead of the model's."""
        return self.pseudo.sampler is not None

    def start(self, context: Context) -> None:
        """Begin without guesses: the first step has probes only."""
        self.states[context] = State()

    def propose(self, context: Context) -> Draft:
        """Return the likeliest tree of the probes' guesses, with the next probes under its nodes.

        Without a sampler, the guesses for each depth are independent of the branch.
        """
        state = self.states[context]
        branches: dict[int, Branch] = {}

        def expand(node: int, parent: int, token: int) -> list[tuple[int, float]]:
            branches[node] = (*branches[parent], token) if node != ROOT else ()
            return [(t, state.estimates.chance(kind, prior)) for t, kind, prior in state.guesses(branches[node])]

        growth = grow(expand, nodes=self.config.nodes, depth=context.room)
        size, ends = len(growth.tokens), None
        if self.curve is not None:
            if state.levels:
                state.worth = OLD * state.worth + (1 - OLD) * sum(growth.probabilities)
            size, ends = best_probed(growth, self.curve.shared_by(context.rows), self.pseudo.count, state.worth)
            places = growth.places(size)
            ends = [places[node] for node in ends]
        tree = self._probed(state, growth.tree(size), ends).up_to_depth(context.room)
        return Draft(tree, self.config.name, wants_states=self.wants_states, through=self.pseudo.path)

    def observe(self, context: Context, step: Step) -> None:
        """Learn how often guesses were right, and read the next guesses from the probes after the last accepted node.

        When sampling, a probe's first guess is the token drawn there with the random number that will later draw the
        true token: this guess is the likeliest to match. The output stays exact, because only those numbers decide the
        text.
        """
        state = self.states[context]
        for depth, token in enumerate(step.emitted):
            guesses = state.guesses(step.emitted[:depth])
            for guess, kind, _ in guesses:
                state.estimates.observe(kind, guess == token)
            if token not in [guess for guess, *_ in guesses]:
                break  # the later guesses were made for another prefix
        probes = probes_under(step.draft.tree, step.nodes[-1] if step.nodes else ROOT)
        at = [probe + 1 for probe in probes]
        state.levels = []
        if at and self.guesses_by_heads:  # a second transfer to the host
            found = self.pseudo.resampled(
                self._read(context, step, at), step.emitted[-1], self.rivals, self.config.branches
            )
            state.levels = [
                {branch: self._guesses(number, likely) for branch, likely in level.items()}
                for number, level in enumerate(found)
            ]
            self._keep(state, found)
        elif at:
            assert step.best is not None, "`best` asks for it"
            likeliest, first = weighted(step.best[:, at]), step.predictions[at].tolist()
            both = zip(likeliest, first, strict=True)
            state.levels = [{None: self._guesses(i, *parts)} for i, parts in enumerate(both)]

    def _probed(self, state: State, tree: TokenTree, ends: list[int] | None) -> TokenTree:
        """Return the tree of candidates with probes under the nodes `ends`, or under all and the root if None."""
        return tree.probed(self.pseudo.count, self.target.pad_id, ends)

    @property
    def wants_states(self) -> bool:
        """Return whether the verification has to keep its hidden states for `_read`."""
        return self.guesses_by_heads

    def _read(self, context: Context, step: Step, at: list[int]) -> Tensor:
        """Return (n, C) the normed hidden states of the probes at the given rows."""
        assert step.states is not None, "the draft asks for them"
        return self.pseudo.target.norm(step.states[-1, at])

    def _keep(self, state: State, found: list[dict[Branch, Weighted]]) -> None:
        """Keep what else a step needs of what the heads found."""

    def _guesses(self, number: int, best: Weighted, first: int | None = None) -> list[Guess]:
        """Return the best tokens of probe `number` as guesses: the token `first`, if given, then by chance."""
        known = dict(best)
        ranked = known if first is None else {first: known.get(first, min(known.values())), **known}
        kept = list(ranked.items())[: self.config.branches]
        return [(token, (number, rank, int(6 * chance)), chance) for rank, (token, chance) in enumerate(kept)]


def probes_under(tree: TokenTree, node: int) -> list[int]:
    """Return the chain of probes under a node of the tree, or under its root; empty if it was cut off."""
    chain: list[int] = []
    while len(found := ((tree.parents == node) & ~tree.is_candidate).nonzero().flatten()):
        node = int(found[0])
        chain.append(node)
    return chain
