"""Token recycling (Luo et al. 2024, arXiv 2408.08696): draft from the model's earlier next-token predictions.

Every forward predicts next tokens at each of its nodes, also at rejected ones. For each node's token, the K best of
them are kept (its *edges*). The draft is a tree of fixed shape: the edges of the last token, then the edges of these,
and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.options import choice_name, option
from selfdraft.core.recycling import Adjacency, Template
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.forward.protocol import TargetProtocol

# Prior probability that a token's first, second, … edge is right; the default tree has the most probable nodes.
CHANCES = (0.45, 0.12, 0.07, 0.05, 0.035, 0.03, 0.025, 0.02)


@dataclass
class RecyclingConfig(DrafterConfig):
    """The shape of the tree, and the edges that fill it.

    With `warm`, requests that are decoded together do not overwrite each other's edges: each has its own copy.
    """

    name: str = choice_name("recycling")
    edges: int = option(8, at_least=1, help="K: number of best next tokens that are remembered for each token")
    nodes: int = option(
        80,
        at_least=1,
        help="maximum number of drafted tokens (nodes of the tree), e.g. 16 where verifying more tokens is expensive",
    )
    depth: int = option(6, at_least=1, help="maximum number of drafted tokens one after another (depth of the tree)")
    template: list[int] = option(
        [],
        at_least=0,
        help="the tree's shape, in place of nodes and depth: number of children of the root and of each node, "
        "breadth-first, e.g. [3,2,1] for three tokens, the first with two children and the second with one",
    )
    seed_from_prompt: bool = option(
        True, help="true: until the model has predicted something after a token, remember what follows it in the prompt"
    )
    warm: bool = option(
        False,
        help="true: begin a request with what was remembered in all earlier ones; for prompts that resemble each other",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template and self.template[0] == 0:
            raise UserError(f"drafter.template={self.template}: the root needs a child at least, or nothing is drafted")
        if self.template and max(self.template) > self.edges:
            raise UserError(f"drafter.template={self.template}: at most drafter.edges={self.edges} children each")
        self.shape()

    def shape(self) -> Template:
        """Return the shape of the tree to fill."""
        if not self.template:
            chances = [CHANCES[rank] if rank < len(CHANCES) else CHANCES[-1] for rank in range(self.edges)]
            return Template.likeliest(chances, self.nodes, self.depth)
        try:
            return Template.of(self.template)
        except ValueError as fault:
            raise UserError(f"drafter.template={self.template}: {fault}") from None


class Recycling(Drafter):
    """Drafts the template tree: one gather per level to propose, one top-k to observe."""

    Config = RecyclingConfig
    config: RecyclingConfig

    def __init__(self, target: TargetProtocol, config: RecyclingConfig, costs: Costs) -> None:
        super().__init__(target, config, costs)
        self.template = config.shape()
        self.best = min(config.edges, target.vocab_size)
        self.shared = self._empty() if config.warm else None
        self.edges: WeakKeyDictionary[Context, Adjacency] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with no edges or, if `warm`, those of all earlier requests; the prompt's may be added."""
        self.edges[context] = self._empty() if self.shared is None else self.shared.copy()
        if self.config.seed_from_prompt:
            for adjacency in self._learning(context):
                adjacency.seed(context.tokens)

    def propose(self, context: Context) -> Draft:
        """Return the template, filled below the last token as far as edges are known."""
        tokens, parents = self.template.filled(self.edges[context], context.tokens[-1], context.room)
        tree = TokenTree(torch.from_numpy(tokens), torch.from_numpy(parents), torch.ones(len(tokens), dtype=torch.bool))
        return Draft(tree, source="recycling")

    def observe(self, context: Context, step: Step) -> None:
        """Replace the edges of the root's and every node's token; if a token occurs twice, an accepted node's win."""
        root = context.tokens[-1 - len(step.emitted)]
        tokens = np.concatenate([[root], step.draft.tree.tokens.numpy()])
        assert step.best is not None, "`best` asks for it"
        following = step.best[0].long().numpy()
        accepted = [0, *(node + 1 for node in step.nodes)]
        for adjacency in self._learning(context):
            adjacency.update(tokens, following)
            adjacency.update(tokens[accepted], following[accepted])

    def _learning(self, context: Context) -> list[Adjacency]:
        """Return the request's own edges and, if `warm`, the shared ones for later requests."""
        return [self.edges[context]] if self.shared is None else [self.edges[context], self.shared]

    def _empty(self) -> Adjacency:
        return Adjacency(self.target.vocab_size, self.best)
