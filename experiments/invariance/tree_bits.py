"""Compare trees with single tokens in shape-invariant forwards.

    python experiments/invariance/tree_bits.py [bfloat16|float32]

It runs random trees through the default model, and compares every node's logits, bit by bit, with those of its branch
decoded token by token. Nodes whose ancestors are in adjoining slots, as in a chain, and other nodes are counted
separately.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.progress import track

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import DTYPES, load_embedded
from selfdraft.models.reference.invariance import make_shape_invariant
from selfdraft.models.reference.teacher_forced import teacher_forced

TREES, NODES, PREFIXES = 6, 12, (100, 300, 505, 700)


@one_line_script("tree_bits")
def main(arguments: list[str]) -> None:
    """Print how many nodes have the same bits as single tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", nargs="?", choices=sorted(DTYPES), default="bfloat16")
    dtype = parser.parse_args(arguments).dtype
    target = Target(load_embedded(dtype, torch.device("cpu")).model)
    make_shape_invariant(target)
    generator = torch.Generator().manual_seed(0)
    same = {"adjoining": [], "apart": []}
    for index in track(range(TREES), description="trees"):
        prefix = torch.randint(target.vocab_size, (PREFIXES[index % len(PREFIXES)],), generator=generator).tolist()
        parents = [int(torch.randint(-1, i, (), generator=generator)) if i else ROOT for i in range(NODES)]
        tokens = torch.randint(target.vocab_size, (NODES,), generator=generator)
        tree = TokenTree(tokens, torch.tensor(parents), torch.ones(NODES, dtype=torch.bool))
        target.allocate(1, len(prefix) + NODES + 2)
        target.prefill(0, prefix[:-1])
        logits = target.forward([0], [prefix[-1]], [tree])[0]
        for node in range(NODES):
            branch = [i for i in range(NODES) if bool(tree.sees[node, i])]
            single = teacher_forced(target, [*prefix, *tokens[branch].tolist()], len(prefix) - 1, 1)[-1]
            kind = "adjoining" if branch == list(range(len(branch))) else "apart"
            same[kind].append(torch.equal(single, logits[node + 1]))
    for kind, equal in same.items():
        print(f"{dtype}: ancestors {kind}: {sum(equal)} of {len(equal)} nodes have the bits of single tokens")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
