"""Jacobi-based drafting: the full model predicts a block of tokens at once, and refines its own predictions.

Santilli et al. 2023 (arXiv 2305.10427). Two modes:

* `fused`: one forward per step refines *and* verifies. The tokens that match are accepted; the predictions after them
  are kept as guesses for the next step.
* `literal`: N forwards refine the block, then one more verifies it, so a step takes N + 1 forwards. With a sparse path,
  the refining forwards are cheaper.

How a block begins is in `core.blocks`, the arithmetic of one iteration in `core.jacobi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selfdraft.core.blocks import INITS, BlockInit, Kind
from selfdraft.core.chains import Chains, Chances, lookup_chances
from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.jacobi import Convergence, by_block, carried_block, is_fixed_point, next_iterate, sub_block_ends
from selfdraft.core.options import choice_name, option
from selfdraft.core.sampling import draw, most_likely
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import COSTS, Context, Draft, PathDrafter, PathDrafterConfig, Step
from selfdraft.drafters.paths.base import PathPolicy
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol

MODES = ("auto", "fused", "literal")
ORDERS = ("jacobi", "gauss_seidel")
# Prior probabilities that the first token of a block is right, and each token after a right one, by how it was made.
PRIORS = {"carried": (0.1, 0.3), "filled": (0.05, 0.3), "other": (0.02, 0.2)}


@dataclass
class JacobiConfig(PathDrafterConfig):
    """How a block begins, how it is refined, and how many of them there are.

    In fused mode the guesses left over from a pass are kept, and `init` appends guesses up to W; after N passes a fresh
    block begins. With ``init=previous_tail`` the guesses are kept for good (see `core.blocks.BlockInit`).

    In literal mode `path` refines and the target verifies. With a sparse path the two families meet: a sparse model
    refines a block.
    """

    presets: ClassVar[dict[str, str]] = {"full": "jacobi", "layer_skip": "sparse_jacobi"}
    name: str = choice_name("jacobi")
    window: int = option(8, at_least=1, help="W: number of tokens that are guessed and refined together (the block)")
    refine_steps: int = option(
        2,
        at_least=1,
        help="N: refinements of a block before a new one begins; more make more tokens right, and each costs a forward",
    )
    init: str = option(
        "ngram",
        choices=INITS,
        help="the first guesses of a block: prompt_random (tokens drawn from the prompt), repeat_last (the last "
        "token), pad (the padding token), ngram (what followed when the last tokens occurred before) or "
        "previous_tail (the guesses left over, which are then kept for good)",
    )
    mode: str = option(
        "auto",
        choices=MODES,
        help="fused (every forward verifies the guesses and refines them), literal (N forwards that refine, then "
        "one that verifies) or auto (fused if the full model refines, literal if drafter/path is a part of "
        "it)",
    )
    candidates: int | None = option(
        None,
        at_least=1,
        help="number of blocks that are begun at once, as branches of one tree; the one that matches furthest is "
        "carried on. null: 2 in fused mode, 1 in literal mode",
    )
    costs: str = option(
        "measured",
        choices=COSTS,
        help="in fused mode, how much of each block is verified: measured (as many tokens as pay by the measured "
        "cost of a forward) or flat (all of them)",
    )
    order: str = option(
        "jacobi",
        choices=ORDERS,
        help="in literal mode, how a block is refined: jacobi (all of it at once) or gauss_seidel (sub-blocks in "
        "turn, each from the newest values before it: more tokens are right, for a forward each)",
    )
    sub_blocks: int = option(2, at_least=1, help="number of sub-blocks with order=gauss_seidel")

    @property
    def literal(self) -> bool:
        """Return whether the mode is literal."""
        return self.mode == "literal" or (self.mode == "auto" and self.path.name != "full")

    @property
    def begun(self) -> int:
        """Return the number of blocks that are begun at once."""
        return self.candidates or (1 if self.literal else 2)

    @property
    def longest(self) -> int:
        """See `PathDrafterConfig`."""
        return self.window

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "fused" and self.path.name != "full":
            raise UserError(
                f"drafter/path={self.path.name} cannot verify, and with drafter.mode=fused the forward that refines "
                "also verifies: use drafter.mode=literal"
            )
        if self.order == "gauss_seidel" and not self.literal:
            raise UserError(
                "drafter.order=gauss_seidel refines a block in several forwards, and drafter.mode=fused has only one: "
                "use drafter.mode=literal"
            )


@dataclass
class Block:
    """A request's block between two steps.

    Attributes:
        guesses: refined guesses for the positions after the root.
        q: (len(guesses), V) the distributions that they were drawn from.
        passes: number of passes since the block was started.
        number: number of blocks started so far, this one included.
        iterates: the (k, up to W) input of each refining forward of the present step.
        tried: the blocks of the present step.
        carried: the index of the block that continues the guesses; the others are new.
    """

    init: BlockInit
    guesses: list[int] = field(default_factory=list)
    q: Tensor | None = None
    passes: int = 0
    number: int = 0
    iterates: list[Tensor] = field(default_factory=list)
    tried: Chains[Kind] = field(default_factory=lambda: Chains(_expected))
    carried: int = 0
    record: Convergence = field(default_factory=Convergence)


class Jacobi(PathDrafter):
    """Blocks of up to `window` guesses, refined up to `refine_steps` times before they are started afresh by `init`."""

    Config = JacobiConfig
    config: JacobiConfig

    def __init__(self, target: TargetProtocol, config: JacobiConfig, costs: Costs, policy: PathPolicy) -> None:
        super().__init__(target, config, costs, policy)
        self.curve = costs.full() if config.costs == "measured" and not config.literal else None
        self.blocks: WeakKeyDictionary[Context, Block] = WeakKeyDictionary()

    def start(self, context: Context) -> None:
        """Begin with an empty block."""
        super().start(context)
        prompt = context.tokens[: context.prompt_length]
        self.blocks[context] = Block(BlockInit(self.config.init, prompt, self.target.pad_id, context.rng))

    def propose(self, context: Context) -> Draft:
        """Return the blocks to try, each as a chain of candidates."""
        block = self.blocks[context]
        if self.config.init != "previous_tail" and (self.config.literal or block.passes >= self.config.refine_steps):
            block.guesses, block.q = [], None
        if not block.guesses:
            block.passes, block.number = 0, block.number + 1
        block.iterates = []
        width = min(self.config.window, context.room)
        draft = self._literal(context, block, width) if self.config.literal else self._fused(context, block, width)
        return self.finished(context, draft)

    def observe(self, context: Context, step: Step) -> None:
        """Take the next iterate from the pass: its predictions, or fresh draws from its distributions."""
        super().observe(context, step)
        block, tree = self.blocks[context], step.draft.tree
        block.tried.learn(step.emitted)
        nodes, kept = tree.branch_through(step.nodes), len(step.nodes)  # of the block that matched furthest
        tokens = tree.tokens[nodes].tolist()
        best = next((i for i, tried in enumerate(block.tried.found.values()) if tried[: len(tokens)] == tokens), 0)
        block.passes += 1
        if best != block.carried:
            block.passes, block.number = 1, block.number + 1
        at = len(context.tokens) - len(step.emitted)
        for iterate in (*(each[best].tolist() for each in block.iterates), tokens):
            if iterate:
                block.record.passes.append((block.number, at, iterate))
        after = torch.tensor([0, *(node + 1 for node in nodes)])
        if step.distributions is None or self.curve is not None:
            # When sampling, each position has a random number of its own, with which its prediction was drawn. The
            # verification uses the same number, so it often draws the same token. And since these guesses are only
            # compared with the verification's own draws, the text does not depend on how much is drafted.
            block.guesses = carried_block(step.predictions[after], kept).tolist()
        else:
            block.q = carried_block(step.distributions[after.to(step.distributions.device)], kept)
            block.guesses = draw(block.q, context.uniforms(len(block.q), block.q.device)).tolist()

    def diagnostics(self, context: Context) -> dict[str, list[int]]:
        """Return histograms of how the blocks converged."""
        return self.blocks[context].record.histograms(context.tokens)

    def iterates(self, context: Context) -> list[tuple[int, int, list[int]]]:
        """Return the input of every pass, see `Drafter`."""
        return self.blocks[context].record.passes

    def _fused(self, context: Context, block: Block, width: int) -> Draft:
        """Return blocks that the verification also refines: whole ones, or the first tokens of each that pay."""
        make = block.init.blocks if self.curve is None else block.init.beginnings
        block.tried.found = make(context.tokens, block.guesses, block.passes, width, self.config.begun)
        block.carried = next((i for i, (made, *_) in enumerate(block.tried.found) if made in ("filled", "carried")), 0)
        if self.curve is not None:
            return Draft(TokenTree.merged(block.tried.paying(self.curve.shared_by(context.rows))), self.config.label)
        branches = list(block.tried.found.values())
        if not context.rule.sample:
            return Draft(TokenTree.merged(branches), self.config.label)
        tree = TokenTree.separate(branches)
        return Draft(tree, self.config.label, self._drawn_from(block, branches, tree.tokens))

    def _drawn_from(self, block: Block, branches: Sequence[Sequence[int]], tokens: Tensor) -> Tensor | None:
        """Return the (n, V) distribution of each token: the last pass's for carried guesses, one-hot for others.

        As in speculative Jacobi decoding, each guess is a fresh draw from the previous iterate's distribution.
        """
        if block.q is None or not len(block.q) or not len(tokens):
            return None
        q = _certain(tokens, block.q)
        start = sum(map(len, branches[: block.carried]))
        drawn = block.q[: len(branches[block.carried])]
        q[start : start + len(drawn)] = drawn
        return q

    def _literal(self, context: Context, block: Block, width: int) -> Draft:
        """Return whole blocks after `refine_steps` refining forwards."""
        block.tried.found = block.init.blocks(context.tokens, block.guesses, block.passes, width, self.config.begun)
        branches, block.carried = list(block.tried.found.values()), 0
        guesses = torch.tensor(branches, dtype=torch.long)
        q = self._drawn_from(block, branches, guesses.flatten()) if context.rule.sample else None
        if not width:
            return Draft(TokenTree.empty(), self.config.label)
        path = self.policy.path(context)
        guesses, q = self._refined(context, path, guesses, None if q is None else q.unflatten(0, guesses.shape))
        block.tried.found = dict(zip(block.tried.found, guesses.tolist(), strict=True))
        passes = len(block.iterates) if path is self.target.full else 0
        q = None if q is None else q.flatten(0, 1)
        return Draft(TokenTree.chains(guesses), self.config.label, q, target_forwards=passes)

    def _refined(self, context: Context, path: Path, guesses: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (k, W) guesses after `refine_steps` refinements, or fewer up to a fixed point, and their q."""
        width = guesses.shape[1]
        ends = sub_block_ends(width, self.config.sub_blocks if self.config.order == "gauss_seidel" else 1)
        for _ in range(self.config.refine_steps):
            before = guesses
            for start, end in zip([0, *ends], ends, strict=False):
                guesses, q = self._pass(context, path, guesses, q, start, end)
            if not context.rule.sample and any(map(is_fixed_point, before, guesses)):
                break
        return guesses, q

    def _pass(
        self, context: Context, path: Path, guesses: Tensor, q: Tensor | None, start: int, end: int
    ) -> tuple[Tensor, Tensor | None]:
        """Refine the positions from `start` on by one forward over the first `end` positions."""
        block = self.blocks[context]
        seen, rule = guesses[:, :end], context.rule
        block.iterates.append(seen)
        tree, count = TokenTree.chains(seen), len(guesses)
        logits = self.target.draft_forward(path, [context.row], 0, [context.tokens[-1]], [tree])[0]
        guesses = guesses.clone()
        if not rule.sample:
            after = most_likely(rule.scores(logits, context.tokens, context.prompt_length, tree)).cpu()
            guesses[:, start:end] = torch.stack([next_iterate(each)[start:] for each in by_block(after, count)])
            return guesses, None
        p = by_block(context.distributions(logits, tree=tree), count)[:, start:end]
        drawn = draw(p.flatten(0, 1), context.uniforms(count * (end - start), p.device))
        guesses[:, start:end] = drawn.view(count, -1).cpu()
        # Guesses that have been refined were drawn from p; the others are certain.
        q = _certain(guesses, p) if q is None else q.clone()
        q[:, start:end] = p
        return guesses, q


def _expected(kind: Kind) -> Chances:
    """Return what to expect of blocks of a kind, before any was tried."""
    return lookup_chances(*kind[1:]) if kind[0] == "ngram" else Chances(*PRIORS[kind[0]])


def _certain(guesses: Tensor, like: Tensor) -> Tensor:
    """Return the (…, V) one-hot distributions of (…) guesses."""
    return torch.nn.functional.one_hot(guesses.long(), like.shape[-1]).to(like)
