"""The cascade, ours: look up first, let the sparse model go on where that is silent or doubtful, and weigh every step.

What followed the last n-gram is the cheapest draft. Where a step promises more by it, the sparse path reads what was
looked up in one forward: where it would have said something else, it branches off there, otherwise it goes on behind.
How much of either is drafted, or nothing at all, is the plan of the highest expected tokens per second, from how often
either was right in this text and from the costs measured on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from selfdraft.core.gains import FADING, Plan, Planner, Rate, lookup_prior
from selfdraft.core.ngrams import NgramIndex, refuse_sizes
from selfdraft.core.options import option
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()
SPARSE_PRIOR = 0.7  # that a sparse token is right, before anything is known


@dataclass
class CascadeConfig(DrafterConfig):
    """Up to `lookup_length` tokens behind the latest of the longest n-grams, up to `sparse_length` sparse ones.

    The sparse path is that of layer_skip. Nothing is drafted where the best plan promises less than `min_gain` times
    the speed of plain decoding; 0 drafts whenever there is something to draft.
    """

    name: str = "cascade"
    ngram_max: int = option(3, at_least=1)
    ngram_min: int = option(1, at_least=1)
    lookup_length: int = option(10, at_least=1)
    sparsity: float = option(0.2, at_least=0.0, below=1.0)
    skip_attention: list[int] | None = option(None, at_least=0)
    skip_mlp: list[int] | None = option(None, at_least=0)
    sparse_length: int = option(4, at_least=0)
    min_gain: float = option(1.0, at_least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sizes(self.ngram_min, self.ngram_max)


@dataclass
class Memory:
    """Of one request: its text, how often either source is right in it, and what the last draft was made of.

    Attributes:
        looked_up: by the length of the n-gram that matched. matched: that length in the last draft.
        plan: of the last draft. split: how many looked-up tokens its sparse branch hangs behind.
    """

    index: NgramIndex
    looked_up: dict[int, Rate]
    sparse: Rate = field(default_factory=lambda: Rate(SPARSE_PRIOR))
    matched: int = 0
    plan: Plan = Plan(0, 0, 1.0)
    split: int = 0


class Cascade(Drafter):
    """Lookups, then the sparse model, as the expected gain has it."""

    Config = CascadeConfig
    config: CascadeConfig

    def __init__(self, target: Target, config: CascadeConfig) -> None:
        """Build the sparse path, and measure what it costs.

        Raises:
            UserError: for layers that the model does not have.
        """
        super().__init__(target, config)
        layers = len(target.full.layers)
        skip = SkipSet.named_or_spread(layers, config.skip_attention, config.skip_mlp, config.sparsity)
        self.path = target.sparse_path(skip)
        sparse_costs = target.costs_of(self.path)
        self.planner = Planner(target.costs, sparse_costs, config.lookup_length, config.sparse_length)

    def start(self, context: Context) -> None:
        """Nothing but the priors."""
        sizes = range(self.config.ngram_min, self.config.ngram_max + 1)
        context.memory = Memory(
            NgramIndex(self.config.ngram_min, self.config.ngram_max),
            {n: Rate(lookup_prior(n)) for n in sizes},
        )

    def propose(self, context: Context) -> Draft:
        """A chain looked up, with the sparse model's branch in it or behind it; or either; or nothing."""
        memory: Memory = context.memory
        memory.index.extend(context.tokens[len(memory.index) :])
        memory.matched, found = memory.index.match(min(self.config.lookup_length, context.room))
        rate = memory.looked_up[memory.matched]() if found else 0.0
        memory.plan = self.planner.best(rate, len(found), memory.sparse(), context.room)
        if memory.plan.speedup < self.config.min_gain:
            memory.plan = Plan(0, 0, 1.0)
        chain = found[: memory.plan.looked_up]
        memory.split, branch = self._branch(context, chain, memory.plan.sparse) if memory.plan.sparse else (0, [])
        return Draft(_hung(chain, memory.split, branch), "cascade")

    def observe(self, context: Context, step: Step) -> None:
        """Learn how far either source was right."""
        memory: Memory = context.memory
        for rate in (*memory.looked_up.values(), memory.sparse):
            rate.fade(FADING)
        size, plan = len(step.draft.tree), memory.plan
        chain = min(plan.looked_up, size)
        along = sum(node < chain for node in step.path)
        if chain:
            memory.looked_up[memory.matched].learn(along, chain)
        if size > chain and along == memory.split:
            memory.sparse.learn(len(step.path) - along, size - chain)

    @torch.inference_mode()
    def _branch(self, context: Context, chain: list[int], count: int) -> tuple[int, list[int]]:
        """`count` sparse tokens, and behind how many of the chain's: those that the sparse model agrees with.

        They are its best tokens also where sampling: no random draws, they are verified as they stand.
        """
        tree, history = TokenTree.chain(chain), context.tokens
        root = [history[-1]]
        logits = self.target.draft_forward(self.path, [context.row], 0, root, [tree])[0]
        best = context.rule.scores(logits, history, context.prompt_length, tree).argmax(-1).tolist()
        split = next((i for i, token in enumerate(chain) if best[i] != token), len(chain))
        branch = [best[split]]
        while len(branch) < count:
            offset = split + len(branch)  # what was looked up behind the split is overwritten: nobody sees it
            logits = self.target.draft_forward(self.path, [context.row], offset, branch[-1:], [_EMPTY])[0]
            said = [*history, *chain[:split], *branch]
            branch.append(int(context.rule.scores(logits, said, context.prompt_length, _EMPTY).argmax()))
        return split, branch


def _hung(chain: list[int], split: int, branch: list[int]) -> TokenTree:
    """The chain, and the branch behind its first `split` tokens."""
    if not branch:
        return TokenTree.chain(chain)
    first = split - 1 if split else ROOT
    parents = [*range(-1, len(chain) - 1), first, *range(len(chain), len(chain) + len(branch) - 1)]
    tokens = torch.tensor([*chain, *branch])
    return TokenTree(tokens, torch.tensor(parents), torch.ones(len(tokens), dtype=torch.bool))
