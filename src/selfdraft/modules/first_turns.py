"""Let the contenders of a bench answer prompts in this process, without a Trainer: for short comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from selfdraft.core.errors import UserError
from selfdraft.decoding.loop import Request
from selfdraft.modules.bench import Bench


class Asked(NamedTuple):
    """A prompt as token ids, with its name and its family."""

    id: str
    family: str
    ids: list[int]


def compare_first_turns(
    bench: Bench, prompts: Sequence[Asked], *, repeats: int = 1, tell: Callable[[int], object] = lambda done: None
) -> list[dict]:
    """Return a line for each prompt, as task=compare writes it; which contender begins changes from prompt to prompt.

    Args:
        tell: called with the number of finished prompts.

    Raises:
        UserError: a prompt is longer than the model allows.
    """
    positions = bench.baseline.target.max_positions
    for prompt in prompts:
        if len(prompt.ids) >= positions:
            raise UserError(
                f"prompt {prompt.id} has {len(prompt.ids)} tokens, but this model has {positions} positions"
            )
    lines = []
    with torch.inference_mode():
        bench.warm_up()
        for number, prompt in enumerate(prompts):
            (done,) = bench.measure([Request(prompt.ids, key=prompt.id)], repeats=repeats, position=number)
            about = {"id": prompt.id, "turn": 0, "category": prompt.family, "family": prompt.family, "text": ""}
            memory = max(bench.memory.peaks.values(), default=0.0)
            lines.append({**about, **done.comparison(), "peak_memory_mb": memory})
            tell(number + 1)
    return lines
