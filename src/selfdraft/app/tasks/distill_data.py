"""task=distill_data: write the target's own answers to a dataset's prompts, as a dataset to train on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from selfdraft.app.options.schemas import Config, SampleConfig
from selfdraft.app.runs.build import refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, processes_of, quiet_trainer, shown, tell_resumed
from selfdraft.app.tasks.distill_bench import build_distill_bench, given_rows
from selfdraft.core.errors import UserError
from selfdraft.data.datamodule import PromptDataModule
from selfdraft.data.distilled import refuse_foreign_dataset, write_dataset
from selfdraft.data.mixing import DATASET, Mixture, mixed, refuse_unknown, without
from selfdraft.data.prompts import INVENTED, Prompt, sampled, to_invent
from selfdraft.modules.distill_data import DistillModule
from selfdraft.modules.progress import DistillProgress
from selfdraft.modules.task_logs import TextLog
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.records import TEXTS, merge_rank_files


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
    mixture = _mixture(config)
    prompts = mixture.prompts
    if run.is_rank_zero:  # the other ranks start later, and share this machine's memory
        refuse_a_run_that_cannot_fit(config, certify=False, rows=given_rows(config) or 1)
    _refuse_same_names(prompts, options.samples)
    run.begin([_announcement(config, mixture)], records=TEXTS, facts=adapter_facts(config.drafter))
    if run.is_rank_zero:
        refuse_foreign_dataset(folder)
    progress, curve = DistillProgress(run.console), TextLog(run.logger)

    def tell(line: dict[str, Any]) -> None:
        progress.add(line)
        curve.add(line)

    module = DistillModule(
        lambda device: build_distill_bench(
            config, device, count=options.samples * len(prompts), tell=run.console.print
        ),
        folder=folder,
        seed=config.seed,
        width=options.trajectories,
        passes=options.passes,
        tell=tell,
        prompts=prompts,
        samples=options.samples,
        tell_resumed=partial(tell_resumed, run.console, folder, options.samples * len(prompts)),
    )
    trainer = quiet_trainer(config.hardware, folder, progress)
    with processes_of(trainer):
        # All of a rank's prompts in one step: the batch's rows then become empty only once, at the very end.
        trainer.test(module, datamodule=PromptDataModule(prompts, together=len(prompts)), verbose=False)
        trainer.strategy.barrier("every rank has written its texts")
    return _conclude(run, mixture, module) if run.is_rank_zero else None


def _refuse(config: Config) -> None:
    if config.hardware.together:
        raise UserError("task=distill_data deals prompts to processes: leave tree_parallel and tensor_parallel out")
    if config.distill.trajectories is not None and isinstance(config.decoding, SampleConfig):
        raise UserError("distill.trajectories end at the answers of greedy decoding only: use decoding=greedy")
    options = config.distill
    invents = options.invented or any(entry.split()[:1] == [INVENTED] for entry in options.sources)
    if invents and not isinstance(config.decoding, SampleConfig):
        raise UserError("distill.invented: greedy decoding invents one prompt again and again; use decoding=sample")
    if options.samples > 1 and not isinstance(config.decoding, SampleConfig):
        raise UserError(
            f"distill.samples={options.samples}: greedy decoding writes one answer again and again; use decoding=sample"
        )
    if options.sources and options.invented:
        raise UserError(f'distill.invented: among distill.sources it is one of them, e.g. "{INVENTED} 0.5"')
    if options.prompts is not None and not options.sources:
        raise UserError("distill.prompts shares a number among distill.sources; of one dataset use dataset.limit")


def _refuse_same_names(prompts: Sequence[Prompt], samples: int) -> None:
    """Refuse a prompt whose id is also the name of an answer to another prompt: lines are told apart by these names."""
    names = {prompt.id for prompt in prompts}
    for prompt in prompts:
        if taken := [each.id for each in sampled(prompt, samples)[1:] if each.id in names]:
            raise UserError(
                f"the id {taken[0]!r:.80} would also be the name of an answer to the prompt {prompt.id!r:.80}: "
                "change one of these ids"
            )


def _mixture(config: Config) -> Mixture:
    """Return the run's prompts and plain texts: those of its sources, or the dataset's and invented ones."""
    options = config.distill
    if options.sources:
        names = [entry.split()[:1] for entry in options.sources]
        own = config.dataset.load() if [DATASET] in names else []
        return mixed(options.sources, own, total=options.prompts, held_out=options.held_out, seed=config.seed)
    loaded = config.dataset.load()
    refuse_unknown(loaded, options.held_out)
    dataset = without(loaded, options.held_out)
    invented = to_invent(options.invented, config.seed)
    if not dataset and not invented:
        raise UserError("distill.held_out: no prompt is left")
    counts = {INVENTED: len(invented)} if invented else {}
    return Mixture([*dataset, *invented], {}, {**counts, config.dataset.name: len(dataset)})


def _plain_lines(mixture: Mixture, module: DistillModule) -> list[dict[str, Any]]:
    """Return the plain texts as lines of the dataset: answers without a prompt, cut to the model's positions."""
    encode, positions = module.chat.tokenizer.encode, module.decoder.target.max_positions
    ids = {name: list(encode(text))[:positions] for name, text in mixture.texts.items()}
    return [
        {"id": name, "category": "text", "turn": 0, "prompt_ids": [], "output_ids": ids[name], "text": text}
        for name, text in mixture.texts.items()
        if ids[name]
    ]


def _conclude(run: Run, mixture: Mixture, module: DistillModule) -> float:
    config, folder, console, prompts = run.config, run.folder, run.console, mixture.prompts
    samples = config.distill.samples
    answers = [(prompt.id, each.id) for prompt in prompts for each in sampled(prompt, samples)]
    place, prompt_of = {own: number for number, (_, own) in enumerate(answers)}, {own: name for name, own in answers}
    lines = sorted(
        merge_rank_files(folder, name=TEXTS), key=lambda line: (place.get(line["id"], len(place)), line["turn"])
    )
    # All answers to a prompt have its id in the dataset, so that a training holds out all of them or none.
    lines = [{**line, "id": prompt_of.get(line["id"], line["id"])} for line in lines]
    left_out = samples * sum(len(prompt.turns) for prompt in prompts) - len(lines)
    if not lines:
        raise UserError("every prompt is longer than this model's positions: nothing was written; use another dataset")
    plain = _plain_lines(mixture, module)
    path = write_dataset([*lines, *plain], folder)
    result = {
        "task": config.task.name,
        "model": config.model.label,
        "dtype": config.model.dtype,
        "drafter": config.drafter.label,
        "dataset": config.dataset.name,
        "decoding": config.decoding.name,
        "max_new_tokens": config.decoding.max_new_tokens,
        "batch_size": module.decoder.batch_size,
        "seed": config.seed,
        "trajectories": config.distill.trajectories,
        "prompts": len(prompts),
        "samples": samples,
        "left_out": left_out,
        "plain_texts": len(plain),
        "sources": mixture.counts,
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


def _announcement(config: Config, mixture: Mixture) -> str:
    rows = given_rows(config)
    batch = "" if rows is None else f", batch {rows}"
    also_plain = f" and {len(mixture.texts)} plain texts" if mixture.texts else ""
    shares = ", ".join(
        f"{count} of {'its own making' if name == INVENTED else name}" for name, count in mixture.counts.items()
    )
    width = config.distill.trajectories
    also = f", with trajectories of blocks of {width}" if width else ""
    if config.distill.samples > 1:
        also = f", {config.distill.samples} answers to each{also}"
    return (
        f"writing answers with {config.drafter.label}: {len(mixture.prompts)} prompts{also_plain} ({shares}), "
        f"{config.model.label} in {config.model.dtype}{batch}{also}"
    )
