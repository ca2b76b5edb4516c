"""Suffix decoding (after Oliaro et al. 2024, arXiv 2411.04975): what followed the longest match becomes a tree.

The text's end is matched, however long, with prompt, output and (warm) earlier requests. Branches carry an estimate of
their probability from counts, and the tree takes the most probable ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from selfdraft.core.growth import best_size, grow
from selfdraft.core.options import option
from selfdraft.core.suffix import SuffixAutomaton, SuffixText
from selfdraft.drafters.base import COSTS, Context, Draft, Drafter, DrafterConfig
from selfdraft.models.target import Target


@dataclass
class SuffixConfig(DrafterConfig):
    """The `max_nodes` most probable nodes, none below `min_probability`, at most `branches` under one parent.

    `branches=1` drafts a chain. `costs`: of those nodes, as many as pay by the measured cost of a forward, or, `flat`,
    all. `warm`: matches are looked for in earlier requests too, prompts and answers.
    """

    name: str = "suffix"
    max_nodes: int = option(32, at_least=1)
    branches: int = option(4, at_least=1)
    min_probability: float = option(0.02, at_least=0.0, at_most=1.0)
    costs: str = option("measured", choices=COSTS)
    warm: bool = False


class Suffix(Drafter):
    """The longest match and its own suffixes say what may follow; so does each node of the tree, with its match."""

    Config = SuffixConfig
    config: SuffixConfig

    def __init__(self, target: Target, config: SuffixConfig) -> None:
        super().__init__(target, config)
        self.costs = target.costs if config.costs == "measured" else None
        self.shared = SuffixAutomaton()

    def start(self, context: Context) -> None:
        """A new text; the prompt enters the automaton with the first proposal."""
        context.memory = SuffixText(self.shared if self.config.warm else SuffixAutomaton())

    def propose(self, context: Context) -> Draft:
        """Best-first from the match of the text's end; nothing where nothing matches, or nothing pays."""
        text: SuffixText = context.memory
        text.read_on(context.tokens)
        growth = grow(
            partial(self._expand, text.automaton, [text.match()]),
            nodes=self.config.max_nodes,
            depth=context.room,
            least=self.config.min_probability,
        )
        size = len(growth.tokens)
        if self.costs is not None:
            size = best_size(growth.probabilities, self.costs.shared_by(context.rows))
        return Draft(growth.tree(size), source="suffix")

    def _expand(
        self, automaton: SuffixAutomaton, matches: list[tuple[int, int]], node: int, parent: int, token: int
    ) -> list[tuple[int, float]]:
        """What may follow a node; its match is kept for its children, the root's first."""
        if node >= 0:
            matches.append(automaton.advance(*matches[parent + 1], token))
        return automaton.chances(*matches[node + 1], self.config.branches)
