"""task=trace: show one answer step by step: the drafts, and which of their tokens were accepted."""

from __future__ import annotations

from pathlib import Path

import torch

from selfdraft.app.build import build_bench, use_threads
from selfdraft.app.console import make_console
from selfdraft.app.schemas import Config, TraceConfig
from selfdraft.decoding.stopping import POSITIONS
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.trace import print_trace, trace_steps


def trace(config: Config, folder: Path) -> None:
    """Answer `prompt`, or the dataset's first one, and write every step to trace.json in `folder`.

    Raises:
        UserError: the dataset, model or drafter cannot be used.
    """
    task = config.task
    assert isinstance(task, TraceConfig)
    prompt = config.prompt or config.dataset.load()[0].turns[0]
    use_threads(config.hardware)
    console = make_console(soft_wrap=True)
    with console.status(f"loading {config.model.label}"):
        bench = build_bench(config, torch.device(config.hardware.torch_device), references=[])
    generation = bench.drafter.decode(bench.chat.encode([("user", prompt)]), seed=config.seed)
    steps, counts = trace_steps(generation, bench.chat.decode), generation.counts
    write_json_atomic(
        folder / "trace.json",
        {
            "model": config.model.label,
            "drafter": config.drafter.label,
            "prompt": prompt,
            "prompt_ids": generation.prompt,
            "output_ids": generation.output,
            "text": bench.chat.decode(generation.output),
            "ended": generation.ended,
            "new_tokens": counts.new_tokens,
            "target_forwards": counts.target_forwards,
            "acceptance_by_depth": counts.acceptance_by_depth(),
            "diagnostics": generation.diagnostics,
            "steps": steps,
        },
    )
    print_trace(steps, console, task.branches)
    console.print(
        f"{counts.new_tokens} tokens in {counts.target_forwards} target forwards, "
        f"{counts.new_tokens / counts.target_forwards:.2f} a forward ({config.drafter.label}, {config.model.dtype})"
    )
    if generation.ended == POSITIONS:
        console.print("warning: the answer ended where the model had no more positions")
    console.print(f"every step: {folder / 'trace.json'}")
