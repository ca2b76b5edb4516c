"""Trained Jacobi drafting: one forward verifies this step's draft and makes the next step's.

The draft itself is verified as usual. Each node at which acceptance is likely to end also gets extra positions below it
(*gated rows*), and only these use the trained weights (see `models.trained.fused`). Their inputs are the predictions of
the step before, and they predict the tokens after that node. The rows below the last accepted node make the next draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfdraft.core.options import choice_name, option, redefault
from selfdraft.core.predictions import Weighted
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Step
from selfdraft.drafters.pseudo_tokens import PseudoTokensConfig, PseudoTokensDrafter, State
from selfdraft.models.trained.fused import FusedRows, fused_rows
from selfdraft.models.trained.pseudo import Branch


@dataclass
class FusedJacobiConfig(PseudoTokensConfig):
    """Which gated rows are used, and how many candidates they give."""

    name: str = choice_name("fused_jacobi")
    adapter: str | None = option(
        None, help="folder that finetune=fused_jacobi wrote; null: untrained weights, which run but draft badly"
    )
    count: int = option(
        3,
        at_least=1,
        help="without adapter, number of gated rows: extra tokens of a forward that guess what comes after the draft",
    )
    branches: int = option(3, at_least=1, help="number of best tokens considered at each gated row")
    nodes: int = option(8, at_least=1, help="maximum number of drafted tokens (nodes of the tree) in a step")
    costs: str = redefault(PseudoTokensConfig, "costs", "measured")
    feedback: bool = option(
        True,
        help="true: gated rows also get what the step before predicted for their positions, if the weights were "
        "trained with that",
    )
    noise: float = option(
        0.0, at_least=0.0, help="without adapter, size of the random weights, to test that no draft changes the text"
    )


@dataclass
class FusedState(State):
    """The drafter's state for one request.

    Attributes:
        chain: for each depth after the root, the best tokens of the likeliest branch, the best first.
    """

    chain: list[list[int]] = field(default_factory=list)


class FusedJacobi(PseudoTokensDrafter):
    """Verifies the present block and refines the next one in one forward."""

    Config = FusedJacobiConfig
    tensor_parallel = False  # has matrices of its own
    config: FusedJacobiConfig
    pseudo: FusedRows
    guesses_by_heads = True
    wants_states = False  # the path itself keeps the last ones

    def _made(self) -> FusedRows:
        return fused_rows(self.target, self.config.adapter, self.config.count, self.config.noise)

    def start(self, context: Context) -> None:
        """Begin without predictions: the first step has mask embeddings only."""
        self.states[context] = FusedState()

    def _probed(self, state: State, tree: TokenTree, ends: list[int] | None) -> TokenTree:
        """Return the tree with gated rows, which hold the tokens that are fed back to them."""
        probed, size = super()._probed(state, tree, ends), len(tree)
        assert isinstance(state, FusedState)
        if not (self.config.feedback and self.pseudo.feeds and state.chain):
            return probed
        tokens, parents = probed.tokens.clone(), probed.parent_list
        depths = probed.depths.tolist()
        for node in range(size, len(probed)):
            tokens[node] = self._fed(state, tree, parents[node], depths[node] - 1, size)
        return TokenTree(tokens, probed.parents, probed.is_candidate)

    def _fed(self, state: FusedState, tree: TokenTree, parent: int, depth: int, size: int) -> int:
        """Return the prediction for a gated row at `depth`; the padding token if there is none.

        The row after an end gets the best token that is not drafted there: acceptance ends where all of those are
        wrong.
        """
        best = state.chain[depth] if depth < len(state.chain) else []
        if parent < size:
            branch = _branch(tree, parent)
            known = [token for token, *_ in state.guesses(branch)]
            drafted = {
                token for token, above in zip(tree.tokens.tolist(), tree.parent_list, strict=True) if above == parent
            }
            best = [token for token in [*known, *best] if token not in drafted]
        return best[0] if best else self.target.pad_id

    def _read(self, context: Context, step: Step, at: Sequence[int]) -> Tensor:
        return self.pseudo.states_of(context.row, at)

    def _keep(self, state: State, found: list[dict[Branch, Weighted]]) -> None:
        assert isinstance(state, FusedState)
        state.chain = [[token for token, _ in next(iter(level.values()))] for level in found]

    def observe(self, context: Context, step: Step) -> None:
        """Learn how often guesses were right, and read the next ones, see `PseudoTokensDrafter`."""
        state = self.states[context]
        assert isinstance(state, FusedState)
        state.chain = []
        super().observe(context, step)


def _branch(tree: TokenTree, node: int) -> Branch:
    """Return the tokens that lead from the root to a node."""
    tokens: list[int] = []
    while node != ROOT:
        tokens.append(int(tree.tokens[node]))
        node = tree.parent_list[node]
    return tuple(reversed(tokens))
