"""Token recycling (Luo et al. 2024, arXiv 2408.08696): what the model thought of at any node is kept as a draft.

After every forward the K best next tokens at each node, of rejected ones too, become the edges of that node's token.
The draft is a tree of fixed shape, filled from these edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from selfdraft.core.errors import UserError
from selfdraft.core.options import option
from selfdraft.core.recycling import Adjacency, Template
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.target import Target

# How often a token's first, second, … edge is right: the weights by which the default tree's nodes are chosen.
CHANCES = (0.45, 0.12, 0.07, 0.05, 0.035, 0.03, 0.025, 0.02)


@dataclass
class RecyclingConfig(DrafterConfig):
    """`edges` next tokens kept of every token (K), and a tree of `nodes` nodes, at most `depth` deep, filled from them.

    `template`: the tree's shape instead, as the number of children of the root and of each node, breadth-first, e.g.
    [3,2,1] for three tokens of which the first has two and the second has one behind it. `seed_from_prompt`: pairs of
    the prompt are edges too, until a forward knows better. `warm`: a request begins with the edges that all before it
    have left, and overwrites them for itself: of requests decoded together, none undoes what another has just found.
    """

    name: str = "recycling"
    edges: int = option(8, at_least=1)
    nodes: int = option(80, at_least=1)
    depth: int = option(6, at_least=1)
    template: list[int] = option([], at_least=0)
    seed_from_prompt: bool = True
    warm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template and self.template[0] == 0:
            raise UserError(f"drafter.template={self.template}: the root needs a child at least, or nothing is drafted")
        if self.template and max(self.template) > self.edges:
            raise UserError(f"drafter.template={self.template}: at most drafter.edges={self.edges} children each")
        self.shape()

    def shape(self) -> Template:
        """The tree to fill."""
        if not self.template:
            chances = [CHANCES[rank] if rank < len(CHANCES) else CHANCES[-1] for rank in range(self.edges)]
            return Template.likeliest(chances, self.nodes, self.depth)
        try:
            return Template.of(self.template)
        except ValueError as fault:
            raise UserError(f"drafter.template={self.template}: {fault}") from None


class Recycling(Drafter):
    """One gather a level to propose, one top-k to observe."""

    Config = RecyclingConfig
    config: RecyclingConfig

    def __init__(self, target: Target, config: RecyclingConfig) -> None:
        super().__init__(target, config)
        self.template = config.shape()
        self.best = min(config.edges, target.vocab_size)
        self.shared = self._empty() if config.warm else None

    def start(self, context: Context) -> None:
        """No edges but the prompt's, or those of all requests so far."""
        context.memory = self._empty() if self.shared is None else self.shared.copy()
        if self.config.seed_from_prompt:
            for adjacency in self._learning(context):
                adjacency.seed(context.tokens)

    def propose(self, context: Context) -> Draft:
        """The template, filled below the last token as far as edges are known."""
        tokens, parents = self.template.filled(context.memory, context.tokens[-1], context.room)
        tree = TokenTree(torch.from_numpy(tokens), torch.from_numpy(parents), torch.ones(len(tokens), dtype=torch.bool))
        return Draft(tree, source="recycling")

    def observe(self, context: Context, step: Step) -> None:
        """New edges of the root's token and of every node's. A token that stands twice keeps the accepted node's."""
        root = context.tokens[-1 - len(step.emitted)]
        tokens = np.concatenate([[root], step.draft.tree.tokens.numpy()])
        following = step.best[0].long().numpy()
        accepted = [0, *(node + 1 for node in step.path)]
        for adjacency in self._learning(context):
            adjacency.update(tokens, following)
            adjacency.update(tokens[accepted], following[accepted])

    def _learning(self, context: Context) -> list[Adjacency]:
        """A request's own edges, and those that it leaves to later ones."""
        return [context.memory] if self.shared is None else [context.memory, self.shared]

    def _empty(self) -> Adjacency:
        return Adjacency(self.target.vocab_size, self.best)
