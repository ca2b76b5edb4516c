"""task=advise: should this model draft for itself here, and how? All candidates are predicted, the best confirmed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from selfdraft.app.options.schema_tasks import CANDIDATES, AdviseConfig
from selfdraft.app.options.schemas import Config, SampleConfig
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.tasks.auto import BUSY, advice_of, cache_for
from selfdraft.app.tasks.compare import contenders_of
from selfdraft.core.errors import UserError
from selfdraft.drafters.specs import Spec, as_overrides, spec_of
from selfdraft.models.forward.layered import layered
from selfdraft.modules.advisor import Advisor, asked_by, spread
from selfdraft.modules.bench import BASELINE, Bench
from selfdraft.tracking.display.advice import print_candidates
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.numbers.comparison import ranking
from selfdraft.tracking.numbers.equivalents import equivalents, without
from selfdraft.tracking.numbers.lines import CONTENDERS


def advise(run: Run) -> float | None:
    """Predict all candidates on recorded answers, try those without a prediction, confirm the best; print the advice.

    What is found is kept for drafter=auto, unless answers are sampled or other programs kept the machine busy.

    Returns:
        The objective, the confirmed speedup over all tokens of the best candidate.

    Raises:
        UserError: something in configuration, model or data cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, console = run.config, run.console
    task = config.task
    assert isinstance(task, AdviseConfig)
    specs = _candidates(config)
    prompts = spread(config.dataset.load(), task.prompts)
    refuse_a_run_that_cannot_fit(config, certify=True)
    run.begin([f"{len(specs) - 1} candidates for {config.model.label}, {len(prompts)} prompts"], name="advise")
    with console.status(f"loading {config.model.label}, and measuring its forwards"):
        plain = {BASELINE: specs[BASELINE]}
        bench = build_bench(config, torch.device(config.hardware.torch_device), [], plain)
    labels = {
        "task": task.name,
        "model": config.model.label,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "dtype": config.model.dtype,
        "engine": bench.engine,
    }
    advisor = Advisor(bench, specs, asked_by(bench.chat, prompts), labels, _teller(console))
    found_by(advisor, tried=task.tried, confirmed=task.confirmed, greedy=not isinstance(config.decoding, SampleConfig))
    result = result_of(advisor)
    chosen = next(name for name in result["ranking"] if name != BASELINE)
    spec, advice = spec_of(chosen), advice_of(result, "task=advise")
    result["objective"] = result[CONTENDERS][chosen]["speedup_total"]
    result["advice"] = {
        "drafter": advice.drafter,
        "command": " ".join(["python run.py", *_settings(config), *as_overrides(chosen)]),
        "elsewhere": equivalents(spec.config),
    }
    write_json_atomic(run.folder / "result.json", result)
    _show(console, result, chosen, spec, bench)
    run.log(result)
    if wrong := advisor.wrong():
        console.print(Text("NOT LOSSLESS", "bold red"), f": {'; '.join(wrong[:5])}", sep="")
        sys.exit(1)
    model = layered(bench.baseline.target).model
    if advisor.crowded:
        console.print(BUSY)
    elif not isinstance(config.decoding, SampleConfig) and cache_for(config, model).write(advice):
        console.print(f"kept for drafter=auto: {advice}")
    return result["objective"]


def found_by(advisor: Advisor, *, tried: int, confirmed: int, greedy: bool = True) -> None:
    """Let the advisor do all its work. Without greedy answers there is nothing to replay: all candidates are tried."""
    if greedy:
        advisor.record()
        advisor.predict()
    advisor.attempt(tried)
    advisor.confirm(advisor.best(confirmed))


def result_of(advisor: Advisor) -> dict[str, Any]:
    """Return the content of result.json: the confirmation, and what was predicted and tried before."""
    result = advisor.result
    kept = ("speedup_total", "tokens_per_forward", "lossless", "acceptance_by_depth", "startup")
    result["predicted"] = {forecast.name: asdict(forecast) for forecast in advisor.forecasts.values()}
    result["tried"] = {name: {key: found[key] for key in kept} for name, found in advisor.tried.items()}
    result["left_out"] = advisor.left_out
    result["prediction_errors"] = advisor.errors()
    result["crowded"] = advisor.crowded
    result["ranking"] = ranking(result)
    return result


def _candidates(config: Config) -> dict[str, Spec]:
    """Return the candidates by their line, plain decoding among them.

    Raises:
        UserError: one is no drafter of ours, or prompts are decoded in batches or by several processes.
    """
    assert isinstance(config.task, AdviseConfig)
    given = config.task.candidates
    specs, references = contenders_of(list(CANDIDATES if given is None else given), "task.candidates")
    if references:
        raise UserError(f"task.candidates: {references[0]} is no drafter of ours; compare it by task=compare")
    if config.hardware.devices > 1 or config.decoding.batch_size > 1:
        raise UserError(
            "task=advise answers prompt by prompt in one process: leave hardware and batch_size as they are"
        )
    return specs


def _settings(config: Config) -> list[str]:
    """Return the overrides that name the model, as far as a command needs them."""
    named = {"path": getattr(config.model, "path", None)}
    return [f"model={config.model.name}", *(f"model.{key}={value}" for key, value in named.items() if value)]


def _show(console: Console, result: Mapping[str, Any], chosen: str, spec: Spec, bench: Bench) -> None:
    print_candidates(result, console)
    total, found = result[CONTENDERS][chosen]["speedup_total_interval"], result[CONTENDERS][chosen]
    bounds = f"{total['median']:.2f}× [{total['low']:.2f}, {total['high']:.2f}]"
    verdict = (
        f"yes, draft with {chosen}: {bounds} over plain decoding on these prompts"
        if result["advice"]["drafter"] == chosen
        else f"no clear gain: the best, {chosen}, has {bounds} over plain decoding on these prompts; leave drafting "
        "out, or ask with more prompts"
    )
    console.print(Text.assemble(("advice: ", "bold"), verdict))
    if found["why"]:
        console.print(found["why"])
    label = "here:" if result["advice"]["drafter"] == chosen else "to try it:"
    console.print(f"{label:<13} {result['advice']['command']}")
    for engine, settings in equivalents(spec.config).items():
        if settings:
            console.print(f"{engine + ':':<13} {settings}")
    if none := without(spec.config):
        console.print(none)
    console.print(f"engine: {bench.engine}")


def _teller(console: Console) -> Callable[[str, int, int], None]:
    def tell(what: str, done: int, total: int) -> None:
        unit = "candidates" if what == "predicted" else "prompts"
        line = f"{what} {done} of {total} {unit}" if what == "predicted" else f"{what} on {done} of {total} {unit}"
        console.print(line, end="\r" if console.is_terminal else "\n")

    return tell
