"""Compares two targets of one model that run their layers by different engines."""

from __future__ import annotations

import numpy as np
import torch

from random_trees import random_tree
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.cache import BLOCK
from selfdraft.models.forward.target import Target
from subjects import PROMPTS

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def assert_same_logits(one: Target, other: Target) -> None:
    """Of trees in several rows, in one that is not the first, in rows out of order, and after the cache had to grow."""
    targets, rng = (one, other), np.random.default_rng(0)
    for target in targets:
        target.allocate(3, 8)
        for row, prompt in enumerate(PROMPTS[:3]):
            target.prefill(row, prompt)
    for step, rows in enumerate(([0, 1, 2], [1], [2, 0], [0], [0])):
        trees = [random_tree(rng, size, 96) if size else TokenTree.empty() for size in rng.integers(0, 9, len(rows))]
        trees = trees if step else [TokenTree.empty()] * 3
        if step == 4:
            for target in targets:
                target.prefill(0, [step] * BLOCK)  # past what was allocated
        for theirs, ours in zip(*(t.forward(rows, [5] * len(rows), trees) for t in targets), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        for target in targets:
            for row, tree in zip(rows, trees, strict=True):
                target.commit(row, [] if len(tree) == 0 else [len(tree) - 1])
