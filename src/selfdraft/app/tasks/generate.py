"""task=generate: stream one answer to the terminal, then print its speed and whether it is lossless."""

from __future__ import annotations

import torch

from selfdraft.app.options.schema_tasks import GenerateConfig
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts
from selfdraft.core.certificate import REASONS
from selfdraft.core.errors import UserError
from selfdraft.decoding.loop import Request
from selfdraft.decoding.stopping import POSITIONS
from selfdraft.modules.task_logs import logged_steps
from selfdraft.tracking.files.atomic import write_json_atomic


def generate(run: Run) -> None:
    """Answer `prompt`, and write the answer and its numbers to result.json in the run's folder.

    Raises:
        UserError: there is no prompt, or the model or drafter cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, console = run.config, run.console
    task = config.task
    assert isinstance(task, GenerateConfig)
    if not config.prompt:
        raise UserError("task=generate needs a prompt: prompt='Why is the sky blue?'")
    if config.decoding.batch_size > 1:
        raise UserError(f"task=generate answers one prompt: leave decoding.batch_size={config.decoding.batch_size} out")
    refuse_a_run_that_cannot_fit(config, certify=task.certify)
    run.begin(started=run.folder / "result.json", facts=adapter_facts(config.drafter))
    with console.status(f"loading {config.model.label}"):
        bench = build_bench(config, torch.device(config.hardware.torch_device), references=[])
    ids = bench.chat.encode([("user", config.prompt)])
    shown = ""
    for generation in logged_steps(bench.drafter.run([Request(ids, config.seed)]), run.logger):
        text = bench.chat.decode(generation.output)
        # Two tokens may share a character: its first part decodes to U+FFFD and is printed when the rest has come.
        whole = text if generation.ended else text.rstrip("\ufffd")
        console.print(whole[len(shown) :], end="")
        shown = whole
    counts, seconds = generation.counts, generation.clock.decode_s
    console.print(
        f"\n\n{counts.new_tokens} tokens in {seconds:.2f} s, {counts.new_tokens / seconds:.1f} tokens/s, "
        f"{counts.new_tokens / counts.target_forwards:.2f} tokens per forward "
        f"({config.drafter.label}, {config.model.dtype}; prefill {generation.clock.seconds['prefill']:.2f} s)"
    )
    result = {
        "task": "generate",
        "model": config.model.label,
        "dtype": config.model.dtype,
        "drafter": config.drafter.label,
        "prompt": config.prompt,
        "text": shown,
        "prompt_ids": ids,
        "output_ids": generation.output,
        "ended": generation.ended,
        "new_tokens": counts.new_tokens,
        "target_forwards": counts.target_forwards,
        "tokens_per_s": counts.new_tokens / seconds,
        "acceptance_by_depth": counts.acceptance_by_depth(),
        "lossless": None,
    }
    write_json_atomic(run.folder / "result.json", result)
    if generation.ended == POSITIONS:
        console.print("warning: the answer ended where the model had no more positions")
    if task.certify:
        with console.status("decoding plainly, to compare"):
            baseline = bench.baseline.decode(ids, seed=config.seed)
            certificate = bench.certifier.certify(ids, generation.output, baseline.output)
        pace = baseline.counts.new_tokens / baseline.clock.decode_s
        console.print(
            f"plain decoding: {pace:.1f} tokens/s; speedup {counts.new_tokens / seconds / pace:.2f}x; "
            f"output: {certificate.verdict}"
            + (f" (parts at token {certificate.first_divergence})" if certificate.first_divergence is not None else "")
        )
        if certificate.reason is not None:
            console.print(f"NOT LOSSLESS: {REASONS[certificate.reason]}")
        result |= {"lossless": certificate.verdict, "baseline_tokens_per_s": pace}
        write_json_atomic(run.folder / "result.json", result)
        if certificate.verdict == "mismatch":
            run.reason = "not lossless: the answer differs from plain decoding"
            raise SystemExit(1)
    run.log(result)
