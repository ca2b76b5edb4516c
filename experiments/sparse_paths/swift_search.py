"""Count the forwards of SWIFT's search, published and repaired.

    python experiments/sparse_paths/swift_search.py [prompts]

The default model writes 50 tokens for bundled prompts, one of each task family. The published procedure scores
`CANDIDATES` skip sets on them, for each prompt and ratio. Then the repaired one, which scores the first set and tries
neighbours of the incumbent, runs until it reaches the same matchness or has scored as many sets. Printed are the
numbers of scoring forwards until each had its best matchness.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean

import numpy as np
import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.search import SkipSearch
from selfdraft.data.sources import load_bundled
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.paths.swift import matchness
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_embedded
from selfdraft.models.measuring.profiling import costs_on

WINDOW, CANDIDATES, RATIOS, SEEDS = 50, 100, (0.2, 0.45), (0,)


def searched(
    target: Target, tokens: list[int], first: int, ratio: float, seed: int, enough: float | None
) -> list[float]:
    """Return the best matchness after each forward: of the published search or, until `enough`, of the repaired one."""
    repaired, rng = enough is not None, np.random.default_rng(seed)
    search = SkipSearch(len(target.full.layers), ratio, neighbours=repaired)
    curve: list[float] = []
    while len(curve) < CANDIDATES and not (repaired and curve and curve[-1] >= enough):
        candidate = search.best if repaired and not curve else search.candidate(rng)
        search.tell(candidate, matchness(target, candidate, 0, tokens, first, WINDOW))
        curve.append(search.score)
    return curve


@one_line_script("swift_search")
def main(arguments: list[str]) -> None:
    """Print how many forwards each search took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="?", type=int, default=3, help="how many of them (default: 3)")
    count = parser.parse_args(arguments).prompts
    if count < 1:
        raise UserError("prompts: at least 1")
    torch.manual_seed(0)
    loaded = load_embedded("bfloat16", torch.device("cpu"))
    target, chat = Target(loaded.model), Chat(loaded.tokenizer)
    drafter = drafter_for(target, configured("none"), costs_on(target))
    decoder = Decoder(target, drafter, Stopping(frozenset(), WINDOW + 1))
    totals: dict[float, list[tuple[int, int]]] = {ratio: [] for ratio in RATIOS}
    for prompt in load_bundled()[::8][:count]:
        ids = chat.encode([("user", prompt.turns[0])])
        tokens = [*ids, *decoder.decode(ids).output]
        target.allocate(1, len(tokens) + WINDOW)
        target.prefill(0, tokens[:-1])
        for ratio in RATIOS:
            for seed in SEEDS:
                published = searched(target, tokens, len(ids), ratio, seed, None)
                repaired = searched(target, tokens, len(ids), ratio, seed, published[-1])
                reached = published.index(published[-1]) + 1
                totals[ratio].append((reached, len(repaired)))
                print(
                    f"ratio {ratio}: matchness {published[-1]:.2f} after {reached} of {CANDIDATES} forwards; repaired "
                    f"{repaired[-1]:.2f} after {len(repaired)}",
                    flush=True,
                )
    for ratio, pairs in totals.items():
        published, repaired = (mean(column) for column in zip(*pairs, strict=True))
        print(f"ratio {ratio}: mean {published:.0f} forwards, repaired {repaired:.0f}: {repaired / published:.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
