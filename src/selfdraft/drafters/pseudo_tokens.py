"""Trained pseudo tokens: one forward verifies and drafts (PaSS, BiTA and gated LoRA: see `models.pseudo`).

Behind the root and the candidates hang k pseudo tokens as probes. Where the accepted tokens end, the target itself says
what comes next, and the probes there say what comes after that: the next step's candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import best_probed, grow
from selfdraft.core.options import option
from selfdraft.core.predictions import Weighted, weighted
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import COSTS, Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.pseudo import Branch
from selfdraft.models.target import Target

WORTH, OLD = 0.5, 0.9  # what a draft adds before any was made; and how much of what is known stays at every step
RIVALS = 4  # best tokens of a probe, at least, among which its chances are told


@dataclass
class PseudoTokensConfig(DrafterConfig):
    """Pseudo tokens of the folder `adapter`; up to `nodes` candidates, from the best `branches` tokens of each.

    Without an adapter `count` untrained ones stand in, copies of the mean embedding: that runs, and drafts badly.
    `noise`: of untrained ones, random embeddings and a random LoRA of that size instead, which drafts worse still: for
    trying that drafts change no text. `costs`: as many candidates as pay, and probes only where the accepted tokens are
    likely to end, by the measured cost of a forward and by chances learned while decoding; or `flat`: all of them.
    """

    name: str = "pseudo_tokens"
    adapter: str | None = None
    count: int = option(3, at_least=1)
    branches: int = option(1, at_least=1)
    nodes: int = option(4, at_least=1)
    costs: str = option("measured", choices=COSTS)
    noise: float = option(0.0, at_least=0.0)


Guess = tuple[int, "Kind", float]
Kind = tuple[int, int, int]  # of a guess: its probe, its rank there, how sure the probe is of it


@dataclass
class Memory:
    """Of one request.

    Attributes:
        levels: by depth, what the last step's probes guess behind a branch, or (None) behind any, each guess with its
            kind and chance.
        worth: how many tokens a draft was expected to add of late, where there were guesses.
    """

    estimates: Estimates = field(default_factory=Estimates)
    levels: list[dict[Branch | None, list[Guess]]] = field(default_factory=list)
    worth: float = WORTH

    def guesses(self, branch: Branch) -> list[Guess]:
        """What may follow these tokens, the first of them the one behind the root."""
        level = self.levels[len(branch)] if len(branch) < len(self.levels) else {}
        return level.get(branch, level.get(None, []))


class PseudoTokensDrafter(Drafter):
    """One forward verifies the candidates and finds the next ones."""

    Config = PseudoTokensConfig
    config: PseudoTokensConfig
    tree_parallel = False  # a process would have to hold the probes of nodes that are not its own

    def __init__(self, target: Target, config: PseudoTokensConfig) -> None:
        super().__init__(target, config)
        self.pseudo = target.pseudo_tokens(config.adapter, config.count, config.noise)
        self.costs = target.costs if config.costs == "measured" else None
        self.rivals = min(max(config.branches, RIVALS), target.vocab_size)
        self.best = 0 if self.pseudo.sampler is not None else self.rivals  # a sampler's guesses stand in their place

    def start(self, context: Context) -> None:
        """Nothing is guessed yet: the first step has probes alone."""
        context.memory = Memory()

    def propose(self, context: Context) -> Draft:
        """The likeliest tree of what the probes guessed, each depth by itself, and the next probes under all of it."""
        memory: Memory = context.memory
        branches: dict[int, Branch] = {}

        def expand(node: int, parent: int, token: int) -> list[tuple[int, float]]:
            branches[node] = (*branches[parent], token) if node != ROOT else ()
            return [(t, memory.estimates.chance(kind, prior)) for t, kind, prior in memory.guesses(branches[node])]

        growth = grow(expand, nodes=self.config.nodes, depth=context.room)
        size, ends = len(growth.tokens), None
        if self.costs is not None:
            if memory.levels:
                memory.worth = OLD * memory.worth + (1 - OLD) * sum(growth.probabilities)
            size, ends = best_probed(growth, self.costs.shared_by(context.rows), self.pseudo.count, memory.worth)
            places = growth.places(size)
            ends = [places[node] for node in ends]
        tree = growth.tree(size).probed(self.pseudo.count, self.target.pad_id, ends).up_to_depth(context.room)
        return Draft(tree, "pseudo_tokens", wants_states=self.pseudo.sampler is not None, pseudo=self.pseudo)

    def observe(self, context: Context, step: Step) -> None:
        """Learn how often guesses were right, and read the next ones off the probes where the accepted tokens end.

        When sampling, a probe's first guess is the token drawn there, with the number that will draw the true one: as
        near as it can get, and no harm to exactness, since those numbers alone decide the text.
        """
        memory: Memory = context.memory
        for depth, token in enumerate(step.emitted):
            guesses = memory.guesses(step.emitted[:depth])
            for guess, kind, _ in guesses:
                memory.estimates.observe(kind, guess == token)
            if token not in [guess for guess, *_ in guesses]:
                break  # what was guessed behind another token says nothing of what stands behind this one
        probes = probes_under(step.draft.tree, step.path[-1] if step.path else ROOT)
        at = [probe + 1 for probe in probes]
        memory.levels = []
        if at and step.states is not None:  # once more to the host
            found = self.pseudo.resampled(step.states[-1, at], step.emitted[-1], self.rivals, self.config.branches)
            memory.levels = [
                {branch: self._guesses(number, best) for branch, best in level.items()}
                for number, level in enumerate(found)
            ]
        elif at:
            best, first = weighted(step.best[:, at]), step.predictions[at].tolist()
            memory.levels = [{None: self._guesses(i, *parts)} for i, parts in enumerate(zip(best, first, strict=True))]

    def _guesses(self, number: int, best: Weighted, first: int | None = None) -> list[Guess]:
        """Its best tokens as guesses: the `first` one first where it is not the best, then by chance."""
        known = dict(best)
        ranked = known if first is None else {first: known.get(first, min(known.values())), **known}
        ranked = list(ranked.items())[: self.config.branches]
        return [(token, (number, rank, int(6 * chance)), chance) for rank, (token, chance) in enumerate(ranked)]


def probes_under(tree: TokenTree, node: int) -> list[int]:
    """The chain of probes that hangs under a node of the tree, or under its root; none where it was cut off."""
    chain: list[int] = []
    while len(found := ((tree.parents == node) & ~tree.is_candidate).nonzero().flatten()):
        node = int(found[0])
        chain.append(node)
    return chain
