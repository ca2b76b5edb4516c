"""What checkpoints of layers that keep a state cost, and what drafting gains there.

    python experiments/hybrids/checkpoints.py [FAMILY ...]

Each family is a model of the shape of a small published one, with random weights in float32: times and bytes are those
of trained weights, and texts are not. So each is measured twice: as it is, and with small weights at the end of each
sublayer. One of the two texts repeats itself, the other hardly does: which one depends on the family. The one that does
is as easy for lookups as a text that can be copied from the prompt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.families.state_cache import checkpoint_bytes
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.measuring.profiling import costs_on

NEW_TOKENS, ROUNDS, CONTEXT = 48, 5, 128
PROMPTS = [[5, 17, 3, 60, 42, 8, 9, 11] * 8, [*range(100, 140)] * 2, [64, 12] * 20]
COLUMNS = (
    "family",
    "million weights",
    "checkpoint, MB",
    "copying it, ms",
    "forward of 1, ms",
    "of 9",
    "of 25",
    "weights",
    "pool: tokens per forward",
    "replays",
    "pool / plain",
)
LAST = ("o_proj", "out_proj", "down_proj", "w2")  # the matrices that end sublayers
DAMPED = 0.02
SHAPES: dict[str, dict[str, object]] = {
    "lfm2": {  # LFM2-350M
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
    },
    "falcon_h1": {  # Falcon-H1-0.5B
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "vocab_size": 32784,
    },
}


def model_of(family: str) -> PreTrainedModel:
    """Return a random model of a family's shape."""
    config = AutoConfig.for_model(family, **SHAPES[family], bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def forward_ms(target: StatefulTarget, tokens: int) -> float:
    """Return the median milliseconds of a forward of a chain, without the checkpoint before it."""
    taken, chain = [], TokenTree.chain(list(range(1, tokens)))
    for _ in range(ROUNDS):
        copied, begun = target.copied_s, time.perf_counter()
        target.forward([0], [1], [chain])
        taken.append(time.perf_counter() - begun - (target.copied_s - copied))
        target.commit(0, range(len(chain)))
    return 1e3 * median(taken)


def decoded(decoder: Decoder, prompt: list[int]) -> tuple[list[int], float, int]:
    """Return an answer, its seconds of decoding and its forwards."""
    found = decoder.decode(prompt)
    return list(found.output), found.clock.decode_s, found.counts.target_forwards


def drafted(target: StatefulTarget) -> list[str]:
    """Return the cells of the pool beside plain decoding.

    Raises:
        AssertionError: texts differ.
    """
    costs, stopping = costs_on(target), Stopping(frozenset(), NEW_TOKENS)  # type: ignore[arg-type]
    plain, pool = (Decoder(target, drafter_for(target, configured(name), costs), stopping) for name in ("none", "pool"))
    seconds, forwards = {"none": 0.0, "pool": 0.0}, 0
    target.replays = 0
    for prompt in PROMPTS:
        text, slow, _ = decoded(plain, prompt)
        found, fast, count = decoded(pool, prompt)
        assert found == text, "the pool's text differs"
        forwards += count
        seconds = {"none": seconds["none"] + slow, "pool": seconds["pool"] + fast}
    return [
        f"{len(PROMPTS) * NEW_TOKENS / forwards:.2f}",
        f"{target.replays} of {forwards}",
        f"{seconds['none'] / seconds['pool']:.2f}",
    ]


@torch.inference_mode()
def measure(family: str) -> Iterator[str]:
    """Yield a family's rows of the table: random weights as they are, and with the last ones of sublayers damped."""
    model = model_of(family)
    target = StatefulTarget(model)
    target.allocate(1, 0)
    target.prefill(0, list(range(CONTEXT)))
    one, nine, twenty_five = (forward_ms(target, tokens) for tokens in (1, 9, 25))
    copied = target.copied_s
    for _ in range(ROUNDS):
        target.forward([0], [1], [TokenTree.chain([2])])
        target.commit(0, [])
    checkpoint = 1e3 * (target.copied_s - copied) / ROUNDS
    size = checkpoint_bytes(target.cache.held[0]) / 1e6
    cells = [
        family,
        f"{sum(p.numel() for p in model.parameters()) / 1e6:,.0f}",
        f"{size:.2f}",
        f"{checkpoint:.2f}",
        *(f"{milliseconds:.0f}" for milliseconds in (one, nine, twenty_five)),
    ]
    yield row([*cells, "as they are", *drafted(target)])
    for name, parameter in model.named_parameters():
        if name.endswith(tuple(f"{last}.weight" for last in LAST)):
            parameter.mul_(DAMPED)
    yield row([*[""] * len(cells), f"last ones × {DAMPED}", *drafted(StatefulTarget(model))])


def row(cells: Sequence[str]) -> str:
    """Return a row of the table."""
    return f"| {' | '.join(cells)} |"


@one_line_script("checkpoints")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(SHAPES)}; all, if none is named")
    families = parser.parse_args(arguments).families or list(SHAPES)
    if unknown := [family for family in families if family not in SHAPES]:
        raise UserError(f"there is no shape of {unknown[0]!r:.60}; there are {', '.join(SHAPES)}")
    print(row(COLUMNS))
    print("|---" * len(COLUMNS) + "|")
    for family in families:
        for line in measure(family):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
