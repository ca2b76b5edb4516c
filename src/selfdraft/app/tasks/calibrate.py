"""task=calibrate: search for the best skip set, check the predicted speedup, and write drafter.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, processes_of, quiet_trainer, shown
from selfdraft.app.tasks.profile import describe_device
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.data.prompts import Prompt
from selfdraft.drafters.chain import ChainConfig
from selfdraft.drafters.paths.layer_skip import LayerSkipConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.layered import layered
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.modules.calibrate import CalibrateModule
from selfdraft.modules.progress import SearchProgress
from selfdraft.modules.search import JOURNAL, Search
from selfdraft.modules.task_logs import CandidateLog
from selfdraft.tracking.dashboards.curve import Curve
from selfdraft.tracking.files.artifact import FILE, Artifact
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.run_folder import digest

CHOSEN = ("skip_attention", "skip_mlp", "draft_length", "min_confidence")  # options of layer_skip that are searched
LARGEST = 0.6  # largest share of the inner sublayers that a candidate of `tokens_per_s` skips
CLOSE = 0.1  # a prediction within this of the measured speedup counts as right


def calibrate(run: Run) -> float | None:
    """Run a calibration, or resume the one that was interrupted in the run's folder.

    Returns:
        The objective: the value of the best candidate; None on ranks other than 0.

    Raises:
        UserError: something in configuration, model, data or folder cannot be used.
    """
    config, folder = run.config, run.folder
    options, drafter = config.calibrate, config.drafter
    if not (isinstance(drafter, ChainConfig) and isinstance(drafter.path, LayerSkipConfig)):
        raise UserError(f"task=calibrate cannot search for drafter={drafter.label}: use drafter=layer_skip")
    sparsity = drafter.path.sparsity
    plain = ChainConfig()
    others = [f.name for f in fields(plain) if f.name not in ("path", *CHOSEN)]
    if changed := [f"drafter.{name}" for name in others if getattr(drafter, name) != getattr(plain, name)]:
        raise UserError(f"task=calibrate predicts plain chains with a threshold: leave {', '.join(changed)} as it is")
    if config.decoding.name != "greedy":
        raise UserError("task=calibrate counts greedy agreement: use decoding=greedy")
    prompts = _spread(config.dataset.load(), options.prompts)
    config = replace(config, decoding=replace(config.decoding, max_new_tokens=options.tokens, guard=False))
    if run.is_rank_zero:  # all texts are in the cache at once
        refuse_a_run_that_cannot_fit(config, certify=False, rows=len(prompts))

    def make_search(layers: int, rank: int, most_similar: Callable[[int], SkipSet]) -> Search:
        inner = 2 * max(layers - 2, 0)
        matched = int(inner * sparsity)
        sizes = (matched, matched) if options.objective == "matchness" else (1, int(inner * LARGEST))
        return Search(folder, options.method, layers, sizes, options.trials, config.seed, rank, most_similar)

    announcement = (
        f"calibrating {drafter.label} for {config.model.label} by {options.method}: "
        f"{options.trials} candidates on {len(prompts)} prompts, objective {options.objective}"
    )
    facts = {"prompts": digest(prompts), **adapter_facts(drafter)}
    run.begin([announcement], started=folder / JOURNAL, facts=facts)
    module = CalibrateModule(
        lambda device: build_bench(config, device, []),
        make_search,
        prompts=prompts,
        folder=folder,
        objective=options.objective,
        labels={
            "device": describe_device(run.environment),
            "model": config.model.label,
            "source": run.environment["command"],
        },
    )
    trainer = quiet_trainer(config.hardware, folder, SearchProgress(run.console), CandidateLog(run.logger))
    with processes_of(trainer):
        trainer.test(module, verbose=False)
        trainer.strategy.barrier("every rank has scored its candidates")
    return _conclude(run, module) if run.is_rank_zero else None


def _spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts, evenly spread over the dataset, because datasets are sorted by family."""
    picked = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    return [prompts[i] for i in picked]


def _conclude(run: Run, module: CalibrateModule) -> float:
    config, folder, console = run.config, run.folder, run.console
    options, history = config.calibrate, module.search.history()
    best = _distinct(sorted(history, key=lambda line: line["value"], reverse=True))
    checked, configs = best[: options.check], [_options(line) for line in best[: options.check]]
    measured: list[float] = []
    if checked:
        decoding = module.check([configured("layer_skip", **c) for c in configs])
        curve = Curve(run.logger, "checked", ("check/*",))
        shown = track(
            decoding, "decoding with the best", len(module.texts), console=console, disable=not console.is_terminal
        )
        for prompts, measured in enumerate(shown, start=1):  # the last one counts
            curve.add(prompts, {f"check/speedup/{place}": speedup for place, speedup in enumerate(measured, start=1)})
    checks = [
        {**line, "measured_speedup": speedup, "error": line["predicted_speedup"] / speedup - 1}
        for line, speedup in zip(checked, measured, strict=True)
    ]
    close = sum(abs(check["error"]) <= CLOSE for check in checks)
    objective = {
        "name": options.objective,
        "method": options.method,
        "value": best[0]["value"],
        "predicted_speedup": best[0]["predicted_speedup"],
        "measured_speedup": checks[0]["measured_speedup"] if checks else None,
        "within_10_percent": f"{close} of {len(checks)}",
    }
    found = fingerprint(layered(module.target).model)
    label = {"label": config.model.label, "dtype": config.model.dtype, "fingerprint": found}
    Artifact(config.drafter.label, _options(best[0]), label, objective, history).write(folder / FILE)
    result = {"task": "calibrate", "objective": best[0]["value"], **objective, "checks": checks, "trials": len(history)}
    write_json_atomic(folder / "result.json", result)
    run.log(result)
    _print(console, checks, close, best[0], folder)
    return best[0]["value"]


def _options(line: dict[str, Any]) -> dict[str, Any]:
    """Return the drafter's options that a candidate determines."""
    return {key: line[key] for key in CHOSEN}


def _distinct(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first line of each skip set."""
    return list({(*line["skip_attention"], -1, *line["skip_mlp"]): line for line in reversed(lines)}.values())[::-1]


def _print(console: Console, checks: list[dict], close: int, best: dict, folder: Path) -> None:
    if checks:
        table = Table(box=None, pad_edge=False)
        for name in (
            "skipped:\nattention + MLP",
            "agreement",
            "draft\nlength",
            "threshold",
            "predicted\nspeedup",
            "measured\nspeedup",
            "error",
        ):
            table.add_column(name, justify="right")
        for c in checks:
            skipped = f"{len(c['skip_attention'])} + {len(c['skip_mlp'])}"
            numbers = (f"{c['matchness']:.3f}", f"{c['draft_length']}", f"{c['min_confidence']:.1f}")
            speedups = (f"{c['predicted_speedup']:.3f}", f"{c['measured_speedup']:.3f}", f"{c['error']:+.1%}")
            table.add_row(skipped, *numbers, *speedups)
        console.print(table)
        console.print(f"predicted within {CLOSE:.0%} of what was measured: {close} of {len(checks)}")
    if best["predicted_speedup"] < 1:
        console.print("no candidate is predicted to be faster than decoding without drafts (drafter=none)")
    console.print(f"written: {shown(folder / FILE)}; runs take it with drafter.from={shown(folder / FILE)}")
