"""Measure the cost of a forward of n tokens on this machine:  python scripts/forward_cost.py [bfloat16|float32]

It uses the default model with 256 tokens in the cache, and times the sizes interleaved. It prints median milliseconds,
and multiples of the cost of one token. The faster the cost rises with n, the more of a draft must be accepted to pay.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import torch

from selfdraft.app.errors import one_line_script
from selfdraft.core.tree import TokenTree
from selfdraft.models.loading import DTYPES, load_embedded
from selfdraft.models.target import Target

SIZES, CONTEXT, ROUNDS = (1, 2, 3, 4, 5, 6, 8, 11, 16), 256, 25


@one_line_script("forward_cost")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", nargs="?", choices=sorted(DTYPES), default="bfloat16")
    dtype = parser.parse_args(arguments).dtype
    target = Target(load_embedded(dtype, torch.device("cpu")).model)
    generator = torch.Generator().manual_seed(0)
    target.allocate(1, 2 * CONTEXT)
    target.prefill(0, torch.randint(target.vocab_size, (CONTEXT,), generator=generator).tolist())
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            root, *rest = torch.randint(target.vocab_size, (size,), generator=generator).tolist()
            begin = time.perf_counter()
            target.forward([0], [root], [TokenTree.chain(rest)])
            times[size].append(time.perf_counter() - begin)
    print(f"{dtype}, {torch.get_num_threads()} threads")
    for size in SIZES:
        ms = 1e3 * median(times[size])
        print(f"{size:3d} tokens  {ms:6.1f} ms  {ms / (1e3 * median(times[1])):5.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
