"""Measure how the time of a forward grows with its tokens, its context and its rows, and what limits it.

    python experiments/growth/growth.py [--rounds 4] [--grows tokens]

The default model runs in float32, in one process: its layers one by one from Python ("eager"), and in C++ ("native").
"floor ms" is the least time in which memory can deliver the weights and the cache of the native engine, and "products
ms" the least time for the arithmetic, at the speed of a large matrix product. The column "bound by" names the larger of
the two, or "the rest" if the time beyond it is larger than both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.engines.choice import NATIVE, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import load_embedded
from selfdraft.models.measuring.floor import bandwidth, traffic
from selfdraft.models.measuring.profiling import fastest_of

NODES, CONTEXTS, ROWS = (1, 2, 4, 8, 16, 32, 64), (128, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16)
CONTEXT = 256  # tokens before the forwards whose tokens or rows grow


@dataclass(frozen=True)
class Case:
    """One forward: rows of so many tokens each, after so much context."""

    grows: str
    tokens: int = 1
    context: int = CONTEXT
    rows: int = 1


def cases(grows: str | None) -> list[Case]:
    """Return the forwards of one group, or of all, each from small to large."""
    grown = [Case("tokens", tokens=n) for n in NODES] + [Case("context", context=c) for c in CONTEXTS]
    grown += [Case("rows", rows=n) for n in ROWS]
    return [case for case in grown if grows in (None, case.grows)]


def prepared(target: Target, case: Case) -> None:
    """Give the target a cache of just the size that is needed, with the same context in every row."""
    target.cache = KVCache(len(target.full.layers), case.rows, case.context + case.tokens)
    target.prefill(0, [i % 1000 for i in range(case.context)])
    for row in range(1, case.rows):
        target.cache.move(0, row)


def job(target: Target, case: Case) -> Callable[[], object]:
    """Return a forward of a chain in every row."""
    trees = [TokenTree.chain(list(range(1, case.tokens)))] * case.rows
    return lambda: target.forward(list(range(case.rows)), [5] * case.rows, trees)


def bound(ms: float, floor: float, product: float) -> str:
    """Return what takes most of a forward's milliseconds: reading memory, the arithmetic of products, or the rest."""
    around = ms - max(floor, product)
    return "the rest" if around > max(floor, product) else "memory" if floor > product else "products"


def flops_per_ms(target: Target) -> float:
    """Return the multiplications and additions of a large product per millisecond."""
    size = 1536
    left = torch.ones(size, size)
    jobs = {"product": lambda: left @ left}
    return 2 * size**3 / (1e3 * fastest_of(target, jobs, 2)["product"])


@one_line_script("growth")
def main(arguments: list[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="forwards of each kind, the fastest counts (default: 4)")
    parser.add_argument("--grows", choices=("tokens", "context", "rows"), help="only one of the tables (default: all)")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        raise UserError("--rounds: at least 1")
    model = load_embedded("float32", torch.device("cpu")).model
    targets = {"eager": Target(model), "native": Target(model)}
    print(f"{torch.get_num_threads()} threads; {use_engine(targets['native'], NATIVE)}")
    speed, flops, measured = 0.0, 0.0, []
    for case in cases(given.grows):
        for target in targets.values():
            prepared(target, case)
        jobs = {name: job(target, case) for name, target in targets.items()}
        # Each by itself: the threads of layers that run one by one go on asking for work for a while.
        ms = {name: 1e3 * fastest_of(targets[name], {name: work}, given.rounds)[name] for name, work in jobs.items()}
        read, plain = traffic(targets["native"], case.context), traffic(targets["eager"], case.context)
        measured.append((case, ms, read, plain.weights / 4))  # 4 bytes a weight
        # Measured again each time, because other work on the machine can only make them look slower.
        speed, flops = max(speed, bandwidth(torch.device("cpu"), rounds=3)), max(flops, flops_per_ms(targets["eager"]))
        print(f"measured {case}", file=sys.stderr)
    print(f"memory: {speed / 1e9:.1f} GB/s; large products: {flops / 1e6:.0f} GFLOP/s")
    heading = ""
    for case, ms, read, weights in measured:
        if case.grows != heading:
            heading = case.grows
            print(f"\n| {heading} | floor ms | products ms | eager ms | x floor | native ms | x floor | bound by |")
            print("|---|---|---|---|---|---|---|---|")
        floor = 1e3 * (read.weights + case.rows * read.cache) / speed
        product = 2 * weights * case.tokens * case.rows / flops  # each weight is used once a token
        cells = " | ".join(f"{ms[name]:.1f} | {ms[name] / floor:.1f}" for name in targets)
        shown = {"tokens": case.tokens, "context": case.context, "rows": case.rows}[heading]
        print(f"| {shown} | {floor:.1f} | {product:.1f} | {cells} | {bound(ms['native'], floor, product)} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
