"""task=distill_data: write the target's own answers to a dataset's prompts, as a dataset to train on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from selfdraft.app.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.lifecycle import Run
from selfdraft.app.schemas import Config, SampleConfig
from selfdraft.app.session import adapter_facts, processes_of, quiet_trainer, shown, tell_resumed
from selfdraft.core.errors import UserError
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.distilled import refuse_foreign_dataset, write_dataset
from selfdraft.data.prompts import Prompt, to_invent
from selfdraft.modules.distill_data import DistillModule
from selfdraft.modules.progress import DistillProgress
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.records import TEXTS, merge_rank_files


def distill_data(run: Run) -> float | None:
    """Write texts, or resume a run that was interrupted in the run's folder.

    Returns:
        The objective: tokens per second; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
    """
    config, folder = run.config, run.folder
    _refuse(config)
    options = config.distill
    prompts = [*config.dataset.load(), *to_invent(options.invented, config.seed)]
    if run.is_rank_zero:  # the other ranks start later, and share this machine's memory
        refuse_a_run_that_cannot_fit(config, certify=False)
    run.begin([_announcement(config, prompts)], records=TEXTS, facts=adapter_facts(config.drafter))
    if run.is_rank_zero:
        refuse_foreign_dataset(folder)
    progress = DistillProgress(run.console)
    module = DistillModule(
        lambda device: build_bench(config, device, []),
        folder=folder,
        seed=config.seed,
        width=options.trajectories,
        passes=options.passes,
        tell=progress.add,
        prompts=prompts,
        tell_resumed=partial(tell_resumed, run.console, folder, len(prompts)),
    )
    trainer = quiet_trainer(config.hardware, folder, progress)
    with processes_of(trainer):
        # All of a rank's prompts in one step: the batch's rows then become empty only once, at the very end.
        trainer.test(module, datamodule=PromptDataModule(prompts, together=len(prompts)), verbose=False)
        trainer.strategy.barrier("every rank has written its texts")
    return _conclude(run, prompts) if run.is_rank_zero else None


def _refuse(config: Config) -> None:
    if config.hardware.together:
        raise UserError("task=distill_data deals prompts to processes: leave tree_parallel and tensor_parallel out")
    if config.distill.trajectories is not None and isinstance(config.decoding, SampleConfig):
        raise UserError("distill.trajectories end at the answers of greedy decoding only: use decoding=greedy")
    if config.distill.invented and not isinstance(config.decoding, SampleConfig):
        raise UserError("distill.invented: greedy decoding invents one prompt again and again; use decoding=sample")


def _sources(config: Config) -> str:
    invented = config.distill.invented
    return f", {invented} of its own making and the others" * bool(invented) + f" of {config.dataset.name}"


def _conclude(run: Run, prompts: Sequence[Prompt]) -> float:
    config, folder, console = run.config, run.folder, run.console
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    lines = sorted(
        merge_rank_files(folder, name=TEXTS), key=lambda line: (place.get(line["id"], len(place)), line["turn"])
    )
    left_out = sum(len(prompt.turns) for prompt in prompts) - len(lines)
    if not lines:
        raise UserError("every prompt is longer than this model's positions: nothing was written; use another dataset")
    path = write_dataset(lines, folder)
    result = {
        "task": config.task.name,
        "model": config.model.label,
        "dtype": config.model.dtype,
        "drafter": config.drafter.label,
        "dataset": config.dataset.name,
        "decoding": config.decoding.name,
        "max_new_tokens": config.decoding.max_new_tokens,
        "batch_size": config.decoding.batch_size,
        "seed": config.seed,
        "trajectories": config.distill.trajectories,
        "prompts": len(prompts),
        "left_out": left_out,
        **_counts(lines),
    }
    result["objective"] = result["tokens_per_s"]
    write_json_atomic(folder / "result.json", result)
    run.log(result)
    if left_out:
        console.print(f"{left_out} turns were left out: the model has no positions left for them, or invented nothing")
    console.print(
        f"{result['texts']} texts, {result['tokens']} tokens in {result['seconds']:.0f} s: "
        f"{result['tokens_per_s']:.1f} tokens/s, {result['tokens_per_forward']:.2f} a forward"
    )
    console.print(f"written: {shown(path)}")
    return result["objective"]


def _counts(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return totals over all texts in the folder, including those of an interrupted run.

    `tokens_per_s` counts the seconds of decoding the answers; `seconds` includes prefills, invention and trajectories.
    Processes work at the same time, so both take the seconds of the slowest one.
    """
    decode_s, seconds = defaultdict[int, float](float), defaultdict[int, float](float)
    for line in lines:
        decode_s[line["rank"]] += line["decode_s"]
        more = line.get("trajectories_s", 0.0) + line.get("invented_s", 0.0)
        seconds[line["rank"]] += line["prefill_s"] + line["decode_s"] + more
    tokens = sum(len(line["output_ids"]) for line in lines)
    return {
        "texts": len(lines),
        "tokens": tokens,
        "tokens_per_s": tokens / max(decode_s.values()),
        "tokens_per_forward": tokens / sum(line["target_forwards"] for line in lines),
        "seconds": max(seconds.values()),
    }


def _announcement(config: Config, prompts: Sequence[Prompt]) -> str:
    width = config.distill.trajectories
    also = f", with trajectories of blocks of {width}" if width else ""
    return (
        f"writing answers with {config.drafter.label}: {len(prompts)} prompts{_sources(config)}, "
        f"{config.model.label} in {config.model.dtype}, batch {config.decoding.batch_size}{also}"
    )
