"""One request of one drafter, stepped by hand: its drafts, and the results that it observes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from made import made
from selfdraft.core.predictions import best_tokens
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, Step
from stub_target import StubTarget, successor

ROOMY = 100


def begin(
    config: DrafterConfig, prompt: Sequence[int], target: StubTarget | None = None, room: int = ROOMY, seed: int = 0
) -> tuple[Drafter, Context]:
    """Return a drafter with one prefilled request in row 0."""
    target = target or StubTarget(successor)
    drafter = made(target, config)
    context = Context(0, list(prompt), len(prompt), room, np.random.default_rng(seed))
    target.allocate(1, 0)
    target.cache.reserve(1000)
    target.prefill(0, list(prompt)[:-1])
    drafter.start(context)
    return drafter, context


def drafted(drafter: Drafter, context: Context) -> list[int]:
    """The next draft of a drafter that proposes chains of candidates."""
    tree = drafter.propose(context).tree
    assert tree.is_chain and bool(tree.is_candidate.all())
    return tree.tokens.tolist()


def observe(drafter: Drafter, context: Context, block: Sequence[int], predictions: Sequence[int]) -> None:
    """One step as the loop makes it, with predictions given by hand; the matching prefix is accepted."""
    accepted = 0
    while accepted < len(block) and block[accepted] == predictions[accepted]:
        accepted += 1
    emitted = tuple(predictions[: accepted + 1])
    context.tokens += emitted
    context.room -= len(emitted)
    tensor = torch.tensor(predictions)
    logits = torch.nn.functional.one_hot(tensor, 64).float()
    best = best_tokens(logits, drafter.best) if drafter.best else None
    drafter.observe(
        context, Step(Draft(TokenTree.chain(block)), logits, tensor, tuple(range(accepted)), emitted, best=best)
    )
