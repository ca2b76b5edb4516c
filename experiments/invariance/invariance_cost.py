"""Measure the cost of decoding.shape_invariant.

    python experiments/invariance/invariance_cost.py [FILE] [--prompts N] [--tokens N]

The default model runs in bfloat16 twice in one process, plain and shape-invariant. Each drafter decodes the first turn
of every prompt with both; which one is first alternates from prompt to prompt. FILE holds prompts as dataset=jsonl
takes them; without it, bundled prompts are used, evenly spread over the families.

Printed are ratios of decode seconds, invariant over plain, so that a ratio above 1 is a cost. They are given for each
token emitted and for each target forward, as the median over prompts and for all prompts together, with 95 % bootstrap
intervals. At near ties the two may write different texts, and more drafts may be accepted in one of them. This affects
seconds per forward less than seconds per token. Both include the drafter's own work.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.statistics import paired_bootstrap
from selfdraft.data.prompts import Prompt
from selfdraft.data.sources import load_bundled, load_jsonl
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import LoadedModel, load_embedded
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.models.reference.invariance import make_shape_invariant

NAMES = ("none", "prompt_lookup", "jacobi", "layer_skip")
PLAIN, INVARIANT = "plain", "invariant"


@dataclass(frozen=True)
class Pair:
    """One prompt, decoded by the plain and by the invariant target."""

    plain: Generation
    invariant: Generation

    @property
    def same(self) -> bool:
        """Whether both wrote the same text."""
        return self.plain.output == self.invariant.output


def per_token(run: Generation) -> float:
    """Return the decode seconds for each token emitted."""
    return run.clock.decode_s / run.counts.new_tokens


def per_forward(run: Generation) -> float:
    """Return the decode seconds for each target forward."""
    return run.clock.decode_s / run.counts.target_forwards


def decoders(loaded: LoadedModel, new_tokens: int) -> dict[str, dict[str, Decoder]]:
    """Return a decoder for each drafter and mode. Both targets pack the same model, so that only the mode differs.

    Raises:
        UserError: forwards cannot be made shape-invariant on this machine.
    """
    targets = {PLAIN: Target(loaded.model), INVARIANT: Target(loaded.model)}
    make_shape_invariant(targets[INVARIANT])
    stopping, costs = Stopping(loaded.eos, new_tokens), {mode: costs_on(target) for mode, target in targets.items()}
    return {
        name: {
            mode: Decoder(target, drafter_for(target, configured(name), costs[mode]), stopping)
            for mode, target in targets.items()
        }
        for name in NAMES
    }


def measure(both: dict[str, Decoder], prompts: list[list[int]], name: str) -> list[Pair]:
    """Decode every prompt with both decoders, after decoding the first prompt once without counting it."""
    for decoder in both.values():
        decoder.decode(prompts[0])
    pairs = []
    for number, prompt in enumerate(prompts):
        order = (PLAIN, INVARIANT) if number % 2 == 0 else (INVARIANT, PLAIN)
        runs = {mode: both[mode].decode(prompt) for mode in order}
        pairs.append(Pair(runs[PLAIN], runs[INVARIANT]))
        ratio = per_token(runs[INVARIANT]) / per_token(runs[PLAIN])
        print(f"{name}: {number + 1} of {len(prompts)}, {ratio:.2f} a token", file=sys.stderr)
    return pairs


def row(name: str, pairs: list[Pair]) -> str:
    """Return a line of the table."""
    cells = [name, f"{sum(pair.same for pair in pairs)} of {len(pairs)}"]
    for runs in ([pair.plain for pair in pairs], [pair.invariant for pair in pairs]):
        cells.append(f"{1e3 * _total(runs, 'new_tokens'):.2f} / {1e3 * _total(runs, 'target_forwards'):.2f}")
    for cost, count in ((per_token, "new_tokens"), (per_forward, "target_forwards")):
        ratios = [cost(pair.invariant) / cost(pair.plain) for pair in pairs]

        def overall(drawn: np.ndarray, count: str = count) -> float:
            some = [pairs[int(number)] for number in drawn]
            return _total([p.invariant for p in some], count) / _total([p.plain for p in some], count)

        numbers = range(len(pairs))  # resampled instead of ratios, as totals need each prompt's seconds and counts
        for interval in (paired_bootstrap(ratios, seed=0), paired_bootstrap(numbers, seed=0, statistic=overall)):
            cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*interval))
    return f"| {' | '.join(cells)} |"


def _total(runs: list[Generation], count: str) -> float:
    """Return the decode seconds per token or forward over all runs: summed first, divided last."""
    return float(np.sum([r.clock.decode_s for r in runs]) / np.sum([getattr(r.counts, count) for r in runs]))


def chosen(path: Path | None, count: int) -> list[Prompt]:
    """Return `count` prompts, evenly spread over their source, or all prompts if there are no more."""
    prompts = load_bundled() if path is None else load_jsonl(path)
    return [prompts[i * len(prompts) // count] for i in range(count)] if count < len(prompts) else prompts


@one_line_script("invariance_cost")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="prompts, as dataset=jsonl takes them")
    parser.add_argument("--prompts", type=int, default=12, help="how many of them (default: 12)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens, at most (default: 64)")
    given = parser.parse_args(arguments)
    if min(given.prompts, given.tokens) < 1:
        raise UserError("--prompts and --tokens: at least 1")
    prompts = chosen(given.file, given.prompts)
    loaded = load_embedded("bfloat16", torch.device("cpu"))
    chat, by_drafter = Chat(loaded.tokenizer), decoders(loaded, given.tokens)
    ids = [chat.encode([("user", prompt.turns[0])]) for prompt in prompts]
    table = [row(name, measure(both, ids, name)) for name, both in by_drafter.items()]
    print(f"{len(ids)} prompts, up to {given.tokens} tokens each, bfloat16, {torch.get_num_threads()} threads\n")
    print("| drafter | same text | plain: ms a token / forward | invariant: ms a token / forward ", end="")
    print("| ratio a token: median [95 % CI] | over all | ratio a forward: median [95 % CI] | over all |")
    print("|---" * 8 + "|")
    print("\n".join(table))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
