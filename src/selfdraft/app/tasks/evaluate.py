"""task=evaluate: decode a dataset with the drafter and the baseline, compare them, and write result files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rich.text import Text

from selfdraft.app.options.schema_tasks import EvaluateConfig
from selfdraft.app.options.schemas import Config
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.learning import conclude_learning, refuse_learning
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, processes_of, quiet_trainer, shown, tell_resumed
from selfdraft.app.tasks.reporting import report_of_run
from selfdraft.app.tasks.score import in_words, score_of
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.stopping import POSITIONS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.modules.evaluate import EvaluateModule
from selfdraft.modules.progress import EvaluationProgress
from selfdraft.modules.prompt_log import PromptLog
from selfdraft.tracking.display.picture import plot_result
from selfdraft.tracking.display.table import print_result
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.records import merge_rank_files
from selfdraft.tracking.numbers.lines import measured
from selfdraft.tracking.numbers.reason import reason
from selfdraft.tracking.numbers.summary import mismatches, summarize

BATCHES_A_STEP = 4


def evaluate(run: Run) -> float | None:
    """Run an evaluation, or resume the one that was interrupted in the run's folder.

    Returns:
        The objective, the speedup over all tokens; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, folder = run.config, run.folder
    task = config.task
    assert isinstance(task, EvaluateConfig)
    refuse_warm_repeats(config.drafter, task.repeats)
    refuse_learning(config, folder)
    prompts = config.dataset.load()
    if run.is_rank_zero:  # the other ranks start later, and share this machine's memory
        refuse_a_run_that_cannot_fit(config, certify=True)
    run.begin([_announcement(config, prompts)], facts=adapter_facts(config.drafter))
    module = EvaluateModule(
        lambda device: build_bench(config, device, task.references),
        prompts=prompts,
        folder=folder,
        repeats=task.repeats,
        seed=config.seed,
        shared=config.hardware.together,
        tell=partial(tell_resumed, run.console, folder, len(prompts)),
    )
    decode_all(run, module, prompts, EvaluationProgress(run.console))
    return _conclude(run, module, prompts) if run.is_rank_zero else None


def refuse_warm_repeats(drafter: DrafterConfig, repeats: int) -> None:
    """Refuse repeats of a drafter that keeps what it has learned from the text.

    Raises:
        UserError: it does, and there are several repeats.
    """
    if drafter.state == "warm" and repeats > 1:
        raise UserError(
            f"task.repeats={repeats} with drafter.warm=true: repeats would draft from the answers of the first; leave "
            "one of them out"
        )


def decode_all(run: Run, module: EvaluateModule, prompts: Sequence[Prompt], progress: EvaluationProgress) -> None:
    """Let all processes of a run decode the prompts, and return when every rank has written its own.

    Raises:
        UserError, SystemExit, KeyboardInterrupt: of the module, or of another process (see `processes_of`).
    """
    hardware, batch_size = run.config.hardware, run.config.decoding.batch_size
    # Several batches per step, so that finished rows are refilled as in serving; without batches, one prompt.
    together = 1 if batch_size == 1 else BATCHES_A_STEP * batch_size
    data = PromptDataModule(prompts, together, shared=hardware.together)
    trainer = quiet_trainer(hardware, run.folder, progress, PromptLog(run.logger, run.config.seed))
    with processes_of(trainer):
        trainer.test(module, datamodule=data, verbose=False)
        trainer.strategy.barrier("every rank has written its prompts")


def _conclude(run: Run, module: EvaluateModule, prompts: list[Prompt]) -> float | None:
    config, folder, console, bench = run.config, run.folder, run.console, module.bench
    lines = merge_rank_files(folder)
    turns = measured(lines)
    result = summarize(
        lines,
        task=config.task.name,
        model=config.model.label,
        drafter=config.drafter.label,
        drafter_memory=config.drafter.state,
        dataset=config.dataset.name,
        seed=config.seed,
        dtype=config.model.dtype,
        engine=bench.engine,
        max_new_tokens=config.decoding.max_new_tokens,
        batch_size=config.decoding.batch_size,
        control=max((line["lossless"].get("control") or 0.0 for line in turns), default=0.0) or None,
    )
    result["objective"] = result["speedup_total"]
    result["why"] = reason(result)
    if score := score_of(turns, prompts, bench.chat.decode, config.score):
        result["score"] = score
    if module.learner is not None:
        in_order = sorted(turns, key=lambda line: line["learning"]["number"])
        result["learning"] = conclude_learning(run, bench, module.learner, in_order)
    write_json_atomic(folder / "result.json", result)
    print_result(result, console)
    console.print(f"engine: {bench.engine}")
    if score:
        console.print(in_words(score))
    # From here on a failure costs no result, so it prints a warning and the run's exit status stays.
    with harmless("result.png was not drawn"):
        plot_result(result, folder / "result.png")
    run.log(result, lines, folder / "result.png")
    report_of_run(run, bench, lines)
    if cut := sum(line.get("ended") == POSITIONS for line in turns):
        console.print(
            f"warning: {cut} of {len(turns)} answers ended before decoding.max_new_tokens="
            f"{config.decoding.max_new_tokens}, where the model had no more positions"
        )
    if wrong := mismatches(turns):
        console.print(
            Text("NOT LOSSLESS", "bold red"),
            f": mismatch in {'; '.join(wrong[:5])}; see {shown(folder)}/prompts.jsonl",
            sep="",
        )
        run.reason = f"not lossless: mismatch in {'; '.join(wrong[:5])}"
        sys.exit(1)
    return result["objective"]


def _announcement(config: Config, prompts: list[Prompt]) -> str:
    state = "" if config.drafter.state == "none" else f" ({config.drafter.state})"
    processes = f", {config.hardware.devices} processes" if config.hardware.devices > 1 else ""
    batch = f", batch {config.decoding.batch_size}" if config.decoding.batch_size > 1 else ""
    return (
        f"{config.drafter.label}{state} against plain decoding: {len(prompts)} prompts of "
        f"{config.dataset.name}, {config.model.label} in {config.model.dtype}{batch}{processes}"
    )
