"""Measure the cost of a step outside its forward.

    python experiments/invariance/step_costs.py [nodes] [prefix] [dtype]

For one verification of a tree that is not a chain, on the default model, it prints the time of everything except the
model's layers (making the tree and its mask, the decision, the gather of accepted keys and values, the record), and its
share of the whole step. The times are medians of repeated, interleaved measurements.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.acceptance import follow, match
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.record import Generation
from selfdraft.drafters.base import Draft, Step
from selfdraft.models.cache.attention import additive, visible_slots
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import DTYPES, load_embedded

REPEATS = 30


def draft_tree(nodes: int, vocab: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and parents of a tree at least four levels deep, whose other nodes have random parents."""
    parents = [-1, -1, 0, 1, 2, 3, 4, *rng.integers(0, 7, max(0, nodes - 7)).tolist()][:nodes]
    return torch.from_numpy(rng.integers(0, vocab, nodes)), torch.tensor(parents)


@torch.inference_mode()
def measure(target: Target, nodes: int, prefix: int) -> dict[str, float]:
    """Return the median milliseconds of each part, by name."""
    rng, seconds = np.random.default_rng(0), {}
    text = rng.integers(0, target.vocab_size, prefix).tolist()
    tokens, parents = draft_tree(nodes, target.vocab_size, rng)
    path = (0, 2, 4, 6)  # a branch that is not the first nodes of the tree, so that its keys have to be gathered
    rule, generation = NextToken(), Generation(text)
    target.allocate(1, prefix + nodes + 8)
    target.prefill(0, text)

    def timed(name: str, act: Callable):
        begin = time.perf_counter()
        result = act()
        seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result

    def make_tree() -> TokenTree:
        tree = TokenTree(tokens, parents, torch.ones(nodes, dtype=torch.bool))
        _ = tree.is_chain, tree.depths, tree.sees
        return tree

    def mask(tree: TokenTree) -> None:  # what `Target.forward` does with the mask before the layers
        width = 1 + nodes
        depths, sees = torch.zeros(1, width, dtype=torch.long), torch.eye(width, dtype=torch.bool)[None]
        sees[:, :, 0], depths[0, 1:], sees[0, 1:, 1:] = True, tree.depths, tree.sees
        visible = visible_slots([prefix], depths, sees, prefix + width, None, target.device)
        additive(visible, target.dtype, target.share)

    def decide(logits: torch.Tensor, tree: TokenTree) -> torch.Tensor:
        after = rule.scores(logits, text, prefix, tree).max(-1).indices.cpu()
        follow(tree, match(tree, after), after)
        return after

    for repeat in range(REPEATS + 3):
        if repeat == 3:
            seconds.clear()  # the first repeats allocate memory, so they are not counted
        tree = timed("tree", make_tree)
        (logits,) = timed("forward, with its mask", lambda tree=tree: target.forward([0], [1], [tree]))
        timed("mask", lambda tree=tree: mask(tree))
        after = timed("decide", lambda logits=logits, tree=tree: decide(logits, tree))
        timed("commit", lambda: target.commit(0, path))
        step = Step(Draft(tree), logits, after, path, (*tokens[list(path)].tolist(), 1))
        timed("record", lambda step=step: generation.add(step))
        target.cache.rewind(0, prefix)
    return {name: 1000 * median(times) for name, times in seconds.items()}


@one_line_script("step_costs")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="?", type=int, default=32, help="of the tree, at least 7 (default: 32)")
    parser.add_argument("prefix", nargs="?", type=int, default=300, help="tokens in the cache (default: 300)")
    parser.add_argument("dtype", nargs="?", choices=sorted(DTYPES), default="bfloat16")
    given = parser.parse_args(arguments)
    nodes, prefix, dtype = given.nodes, given.prefix, given.dtype
    if nodes < 7 or prefix < 1:
        raise UserError("nodes: at least 7; prefix: at least 1")
    target = Target(load_embedded(dtype, torch.device("cpu")).model)
    parts = measure(target, nodes, prefix)
    forward = parts.pop("forward, with its mask")
    step = forward + sum(parts.values()) - parts["mask"]  # the forward already includes the mask
    print(
        f"{nodes} nodes after {prefix} tokens, {dtype}, {torch.get_num_threads()} threads: a step takes {step:.2f} ms"
    )
    for name, milliseconds in parts.items():
        print(f"  {name:8s} {milliseconds:7.3f} ms  {milliseconds / step:6.2%}")
    print(f"  together {sum(parts.values()):7.3f} ms  {sum(parts.values()) / step:6.2%}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
