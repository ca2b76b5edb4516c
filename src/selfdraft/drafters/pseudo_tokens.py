"""Trained pseudo tokens: one forward verifies and drafts (PaSS, BiTA and gated LoRA: see `models.pseudo`).

Behind the root and the candidates hang k pseudo tokens as probes. Where the accepted tokens end, the target itself says
what comes next, and the probes there say what comes after that: the next step's candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import best_probed, grow
from selfdraft.core.options import option
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import COSTS, Context, Draft, Drafter, DrafterConfig, Step
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


Kind = tuple[int, int, int]  # of a guess: its probe, its rank there, how sure the probe is of it


@dataclass
class Memory:
    """Of one request.

    Attributes:
        levels: by depth, what the last step's probes guess, each guess with its kind and chance.
        worth: how many tokens a draft was expected to add of late, where there were guesses.
    """

    estimates: Estimates = field(default_factory=Estimates)
    levels: list[list[tuple[int, Kind, float]]] = field(default_factory=list)
    worth: float = WORTH


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
        depths = {ROOT: -1}

        def expand(node: int, parent: int, _: int) -> list[tuple[int, float]]:
            depths[node] = depths[parent] + 1
            if depths[node] == len(memory.levels):
                return []
            return [(t, memory.estimates.chance(kind, prior)) for t, kind, prior in memory.levels[depths[node]]]

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
        for level, token in zip(memory.levels, step.emitted, strict=False):
            for guess, kind, _ in level:
                memory.estimates.observe(kind, guess == token)
            if token not in [guess for guess, *_ in level]:
                break  # what was guessed behind another token says nothing of what stands behind this one
        probes = probes_under(step.draft.tree, step.path[-1] if step.path else ROOT)
        at = [probe + 1 for probe in probes]
        if not at:
            memory.levels = []
            return
        if step.states is None:
            best, first = step.best[:, at], step.predictions[at]
        else:  # once more to the host
            best = self.pseudo.resampled(step.states[-1, at], step.emitted[-1], self.rivals).cpu()
            first = best[0, :, 0]
        memory.levels = [self._level(i, *parts) for i, parts in enumerate(zip(best[0], best[1], first, strict=True))]

    def _level(self, number: int, tokens: Tensor, chances: Tensor, first: Tensor) -> list[tuple[int, Kind, float]]:
        """A probe's guesses, the `first` one first, the others by their chances."""
        known = dict(zip(tokens.long().tolist(), chances.tolist(), strict=True))
        token = int(first)
        ranked = {token: known.get(token, min(known.values())), **known}
        ranked = list(ranked.items())[: self.config.branches]
        return [(token, (number, rank, int(6 * chance)), chance) for rank, (token, chance) in enumerate(ranked)]


def probes_under(tree: TokenTree, node: int) -> list[int]:
    """The chain of probes that hangs under a node of the tree, or under its root; none where it was cut off."""
    chain: list[int] = []
    while len(found := ((tree.parents == node) & ~tree.is_candidate).nonzero().flatten()):
        node = int(found[0])
        chain.append(node)
    return chain
