"""Suffix decoding (after Oliaro et al. 2024, arXiv 2411.04975): draft a tree of what followed the longest match.

It looks up the longest end of the text that occurs earlier: in the prompt, in the output or, if `warm`, in other
requests. How often each continuation followed there gives it an estimated probability. The tree takes the most probable
nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from selfdraft.core.costs import Costs
from selfdraft.core.growth import grow_to_pay
from selfdraft.core.options import choice_name, option
from selfdraft.core.suffix import SuffixAutomaton, SuffixText
from selfdraft.drafters.base import COSTS, COSTS_HELP, Context, Draft, Drafter, DrafterConfig
from selfdraft.models.forward.protocol import TargetProtocol


@dataclass
class SuffixConfig(DrafterConfig):
    """How large the tree grows, and which texts are searched."""

    name: str = choice_name("suffix")
    max_nodes: int = option(
        32,
        at_least=1,
        help="maximum number of drafted tokens (nodes of the tree) in a step; the most probable ones are taken",
    )
    branches: int = option(4, at_least=1, help="maximum number of different next tokens after a node; 1 drafts a chain")
    min_probability: float = option(
        0.02, at_least=0.0, at_most=1.0, help="do not draft tokens with a lower estimated probability of being accepted"
    )
    costs: str = option("measured", choices=COSTS, help=COSTS_HELP)
    warm: bool = option(
        False, help="true: also look for matches in earlier requests of the run; for prompts that resemble each other"
    )


class Suffix(Drafter):
    """Predicts what may follow the text, and each node of the tree, from the longest match and its suffixes."""

    Config = SuffixConfig
    config: SuffixConfig

    def __init__(self, target: TargetProtocol, config: SuffixConfig, costs: Costs) -> None:
        super().__init__(target, config, costs)
        self.curve = costs.full() if config.costs == "measured" else None
        self.shared = SuffixAutomaton()
        self.texts: WeakKeyDictionary[Context, SuffixText] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin a new text; the prompt enters the automaton with the first proposal."""
        self.texts[context] = SuffixText(self.shared if self.config.warm else SuffixAutomaton())

    def propose(self, context: Context) -> Draft:
        """Return the tree grown best-first from the text's match; empty if nothing matches or nothing pays."""
        text = self.texts[context]
        text.read_on(context.tokens)
        growth, size = grow_to_pay(
            partial(self._expand, text.automaton, [text.match()]),
            nodes=self.config.max_nodes,
            depth=context.room,
            least=self.config.min_probability,
            costs=None if self.curve is None else self.curve.shared_by(context.rows),
        )
        return Draft(growth.tree(size), source="suffix")

    def _expand(
        self, automaton: SuffixAutomaton, matches: list[tuple[int, int]], node: int, parent: int, token: int
    ) -> list[tuple[int, float]]:
        """Return what may follow a node, and append its match to `matches`, which begins with the root's."""
        if node >= 0:
            matches.append(automaton.advance(*matches[parent + 1], token))
        return automaton.chances(*matches[node + 1], self.config.branches)
