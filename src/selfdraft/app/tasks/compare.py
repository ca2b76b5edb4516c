"""task=compare: any number of contenders decode the same prompts in turn; a leaderboard shows them all."""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial

from rich.text import Text

from selfdraft.app.options.schema_tasks import CompareConfig
from selfdraft.app.options.schemas import Config
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, shown, tell_resumed
from selfdraft.app.tasks.evaluate import decode_all, refuse_warm_repeats
from selfdraft.app.tasks.reporting import report_of_run
from selfdraft.app.tasks.score import all_in_words, scores_of
from selfdraft.app.terminal.suggestions import near
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.core.paths import expanded
from selfdraft.data.prompts import Prompt
from selfdraft.drafters.presets import PRESETS
from selfdraft.drafters.specs import GUARDED, Spec, spec_of
from selfdraft.models.reference.others import OTHERS, OtherEngine
from selfdraft.models.reference.stock import REFERENCES
from selfdraft.modules.bench import BASELINE, Bench, Measurement
from selfdraft.modules.evaluate import EvaluateModule
from selfdraft.modules.progress import ComparisonProgress
from selfdraft.tracking.display.earlier import Earlier, earlier_markdown, print_earlier, read_earlier
from selfdraft.tracking.display.leaderboard import as_markdown, print_comparison
from selfdraft.tracking.display.picture import plot_comparison
from selfdraft.tracking.files.atomic import write_bytes_atomic, write_json_atomic
from selfdraft.tracking.files.records import merge_rank_files
from selfdraft.tracking.numbers.comparison import ranking, summarize_comparison, wrong_texts
from selfdraft.tracking.numbers.lines import CONTENDERS, measured


def compare(run: Run) -> float | None:
    """Run a comparison, or resume the one that was interrupted in the run's folder.

    Returns:
        The objective, the highest speedup over all tokens; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, folder = run.config, run.folder
    task = config.task
    assert isinstance(task, CompareConfig)
    earlier = read_earlier([expanded(folder, "task.runs") for folder in task.runs])
    if earlier and not task.contenders:
        _only_earlier(run, earlier)
        return None
    specs, references = contenders_of(task.contenders)
    if config.hardware.tree_parallel:
        raise UserError("hardware.tree_parallel shares out the trees of one drafter: use task=evaluate")
    if config.decoding.guard:
        raise UserError('decoding.guard=true: write "guarded" before the contenders that it is for')
    for spec in specs.values():
        refuse_warm_repeats(spec.config, task.repeats)
    prompts = config.dataset.load()
    if run.is_rank_zero:  # the other ranks start later, and share this machine's memory
        refuse_a_run_that_cannot_fit(config, certify=True)
    names = [*specs, *references]
    facts = {
        f"task.contenders, {name}: {option}": digest
        for name, spec in specs.items()
        for option, digest in adapter_facts(spec.config).items()
    }
    run.begin(
        [f"{', '.join(names)}: {len(prompts)} prompts of {config.dataset.name}, {_model(config)}"],
        name="compare",
        facts=facts,
    )
    module = EvaluateModule(
        lambda device: build_bench(config, device, references, specs),
        prompts=prompts,
        folder=folder,
        repeats=task.repeats,
        seed=config.seed,
        part=Measurement.comparison,
        shared=config.hardware.together,
        tell=partial(tell_resumed, run.console, folder, len(prompts)),
    )
    decode_all(run, module, prompts, ComparisonProgress(run.console))
    return _conclude(run, module.bench, prompts, list(specs), earlier) if run.is_rank_zero else None


def _only_earlier(run: Run, earlier: list[Earlier]) -> None:
    """Show results of earlier runs, and decode nothing."""
    run.begin(name="compare")
    if run.is_rank_zero:
        write_bytes_atomic(run.folder / "leaderboard.md", earlier_markdown(earlier).encode("utf-8"))
        write_json_atomic(run.folder / "result.json", {"task": "compare"})
        print_earlier(earlier, run.console)


def contenders_of(texts: list[str], option: str = "task.contenders") -> tuple[dict[str, Spec], list[str]]:
    """Return our contenders by name, plain decoding first if it is not among them, and the names of references.

    Raises:
        UserError: there are fewer than two, one is given twice, or one cannot be read.
    """
    names = [" ".join(text.split()) for text in texts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{option}: {twice[0]!r:.80} is given twice")
    outside = {*REFERENCES, *OTHERS}
    references = [name for name in names if name in outside]
    specs = {name: _spec_of(name, outside, option) for name in names if name not in outside}
    if BASELINE not in specs:
        specs = {BASELINE: spec_of(BASELINE), **specs}
    if len(specs) + len(references) < 2:
        raise UserError(f"{option}: give at least one besides plain decoding, e.g. {option}=[none,jacobi,pool]")
    return specs, references


def _spec_of(name: str, outside: Collection[str], option: str) -> Spec:
    """Return a drafter of ours; a mistake names the contender in which it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return spec_of(name)
    except UserError as error:
        first = name.removeprefix(GUARDED).lstrip().partition(" ")[0]
        hint = "" if first in PRESETS else near(first, [*PRESETS, *sorted(outside)])
        raise UserError(f"{option}, {name!r:.80}{hint}: {error}") from None


def _conclude(run: Run, bench: Bench, prompts: list[Prompt], ours: list[str], earlier: list[Earlier]) -> float | None:
    config, folder, console = run.config, run.folder, run.console
    lines = merge_rank_files(folder)
    result = summarize_comparison(
        lines,
        task=config.task.name,
        model=config.model.label,
        dataset=config.dataset.name,
        seed=config.seed,
        dtype=config.model.dtype,
        engine=bench.engine,
        max_new_tokens=config.decoding.max_new_tokens,
        batch_size=config.decoding.batch_size,
    )
    speedups = [result[CONTENDERS][name]["speedup_total"] for name in ours if name in result[CONTENDERS]]
    result["objective"] = max((speedup for speedup in speedups if speedup is not None), default=None)
    result["ranking"] = ranking(result)
    for name, startup in bench.startup().items():
        result[CONTENDERS][name]["startup"] = startup
    for other in bench.references.values():
        if isinstance(other, OtherEngine):
            other.close()
    if scores := scores_of(measured(lines), prompts, bench.chat.decode, config.score):
        result["score"], shares = scores
        for name, share in shares.items():
            result[CONTENDERS][name]["score"] = share
    write_json_atomic(folder / "result.json", result)
    board = as_markdown(result) + (f"\n{earlier_markdown(earlier)}" if earlier else "")
    write_bytes_atomic(folder / "leaderboard.md", board.encode("utf-8"))
    print_comparison(result, console)
    if earlier:
        print_earlier(earlier, console)
    console.print(f"engine: {bench.engine}")
    if scores:
        console.print(all_in_words(*scores))
    # From here on a failure costs no result, so it prints a warning and the run's exit status stays.
    with harmless("result.png was not drawn"):
        plot_comparison(result, folder / "result.png")
    run.log(result, [], folder / "result.png")
    report_of_run(run, bench, lines)
    if wrong := wrong_texts(lines, ours):
        console.print(
            Text("NOT LOSSLESS", "bold red"), f": {'; '.join(wrong[:5])}; see {shown(folder)}/prompts.jsonl", sep=""
        )
        run.reason = f"not lossless: {'; '.join(wrong[:5])}"
        sys.exit(1)
    return result["objective"]


def _model(config: Config) -> str:
    batch = f", batch {config.decoding.batch_size}" if config.decoding.batch_size > 1 else ""
    return f"{config.model.label} in {config.model.dtype}{batch}"
