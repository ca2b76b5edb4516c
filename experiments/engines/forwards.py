"""Compare the engines on the default model: the milliseconds of a forward of 1 to 64 tokens, beside the memory's floor.

    python experiments/engines/forwards.py [--context 256] [--rounds 12] [--weights int4]

All engines run in one process on the same model in float32, interleaved. The floor is the time of a sum over as many
bytes as the weights have in float32: no forward that reads all of these can be faster. The native engine reads fewer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.engines.choice import COMPILED, NATIVE, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.weights import SAME, WEIGHTS, round_weights
from selfdraft.models.loading.loading import load_embedded

PAUSE = 0.02  # seconds
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 64)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes, after a pause in which the threads of the engine before it go to sleep."""
    time.sleep(PAUSE)
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def floor(count: int, rounds: int) -> float:
    """Return the seconds of the fastest of several sums over `count` numbers in float32."""
    numbers = torch.ones(count)
    return min(seconds(numbers.sum) for _ in range(rounds))


@one_line_script("forwards")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=256, help="tokens before (default: 256)")
    parser.add_argument("--rounds", type=int, default=12, help="forwards of each size (default: 12)")
    parser.add_argument("--weights", choices=WEIGHTS, default=SAME, help="how the graph stores them (default: same)")
    given = parser.parse_args(arguments)
    if min(given.context, given.rounds) < 1:
        raise UserError("--context and --rounds: at least 1")
    model = load_embedded("float32", torch.device("cpu")).model
    round_weights(model, given.weights)
    if given.context > (most := model.config.max_position_embeddings - max(SIZES)):
        raise UserError(f"--context {given.context}: at most {most}, for {max(SIZES)} tokens more")
    eager, compiled, native = targets = Target(model), Target(model), Target(model)
    print(f"{torch.get_num_threads()} threads")
    for engine, target in ((COMPILED, compiled), (NATIVE, native)):
        print(use_engine(target, engine, weights=given.weights))
    least = floor(eager.parameters, given.rounds)
    print(f"floor: {1e3 * least:.1f} ms, {4e-9 * eager.parameters / least:.1f} GB/s\n")
    for target in targets:
        target.allocate(1, given.context + max(SIZES))
        target.prefill(0, list(range(1, given.context + 1)))
    print("| tokens | eager: fastest, median ms | compiled | native | native's fastest / one token's |")
    print("|---|---|---|---|---|")
    first = 0.0
    for size in SIZES:
        tree = TokenTree.chain(list(range(size - 1)))
        times: list[list[float]] = [[] for _ in targets]
        for _ in range(given.rounds):
            for target, mine in zip(targets, times, strict=True):
                mine.append(1e3 * seconds(lambda: target.forward([0], [5], [tree])))  # noqa: B023 - called at once
        cells = [f"{min(mine):.1f}, {median(mine):.1f}" for mine in times]
        first = first or min(times[2])
        print(f"| {size} | {' | '.join(cells)} | {min(times[2]) / first:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
