"""task=trace: show one answer step by step: the drafts, and which of their tokens were accepted."""

from __future__ import annotations

import torch

from selfdraft.app.options.schema_tasks import TraceConfig
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts
from selfdraft.decoding.loop import Request
from selfdraft.decoding.stopping import POSITIONS
from selfdraft.modules.task_logs import logged_steps
from selfdraft.tracking.display.trace import print_trace, trace_steps
from selfdraft.tracking.files.atomic import write_json_atomic


def trace(run: Run) -> None:
    """Answer `prompt`, or the dataset's first one, and write every step to trace.json in the run's folder.

    Raises:
        UserError: the dataset, model or drafter cannot be used.
    """
    config, folder, console = run.config, run.folder, run.console
    task = config.task
    assert isinstance(task, TraceConfig)
    asked = [("user", config.prompt)] if config.prompt else config.dataset.load()[0].beginning
    refuse_a_run_that_cannot_fit(config, certify=False)
    run.begin(started=folder / "trace.json", facts=adapter_facts(config.drafter))
    with console.status(f"loading {config.model.label}"):
        bench = build_bench(config, torch.device(config.hardware.torch_device), references=[])
    request = Request(bench.chat.encode(asked), config.seed)
    *_, generation = logged_steps(bench.drafter.run([request]), run.logger)
    steps, counts = trace_steps(generation, bench.chat.decode), generation.counts
    result = {
        "task": "trace",
        "model": config.model.label,
        "drafter": config.drafter.label,
        "prompt": asked[-1][1],
        "prompt_ids": generation.prompt,
        "output_ids": generation.output,
        "text": bench.chat.decode(generation.output),
        "ended": generation.ended,
        "new_tokens": counts.new_tokens,
        "target_forwards": counts.target_forwards,
        "acceptance_by_depth": counts.acceptance_by_depth(),
        "diagnostics": generation.diagnostics,
    }
    write_json_atomic(folder / "trace.json", {**result, "steps": steps})
    run.log(result)
    print_trace(steps, console, task.branches)
    console.print(
        f"{counts.new_tokens} tokens in {counts.target_forwards} target forwards, "
        f"{counts.new_tokens / counts.target_forwards:.2f} a forward ({config.drafter.label}, {config.model.dtype})"
    )
    if generation.ended == POSITIONS:
        console.print("warning: the answer ended where the model had no more positions")
    console.print(f"every step: {folder / 'trace.json'}")
