"""task=advise: should this model draft for itself here, and how? All candidates are tried, the best are confirmed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from selfdraft.app.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.compare import contenders_of
from selfdraft.app.lifecycle import Run
from selfdraft.app.schema_tasks import AdviseConfig
from selfdraft.app.schemas import Config
from selfdraft.core.errors import UserError
from selfdraft.data.prompts import Prompt
from selfdraft.drafters.specs import Spec, as_overrides
from selfdraft.modules.bench import BASELINE, Bench
from selfdraft.modules.first_turns import Asked, compare_first_turns
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.comparison import ranking, summarize_comparison, wrong_texts
from selfdraft.tracking.equivalents import equivalents, without
from selfdraft.tracking.leaderboard import print_comparison
from selfdraft.tracking.lines import CONTENDERS


def advise(run: Run) -> float | None:
    """Try all candidates on a few prompts, and the best ones on all; print what to use.

    Returns:
        The objective, the confirmed speedup over all tokens of the best candidate.

    Raises:
        UserError: something in configuration, model or data cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, console = run.config, run.console
    task = config.task
    assert isinstance(task, AdviseConfig)
    specs, references = contenders_of(task.candidates, "task.candidates")
    if references:
        raise UserError(f"task.candidates: {references[0]} is no drafter of ours; compare it by task=compare")
    if config.hardware.devices > 1 or config.decoding.batch_size > 1:
        raise UserError(
            "task=advise answers prompt by prompt in one process: leave hardware and batch_size as they are"
        )
    prompts = spread(config.dataset.load(), task.prompts)
    refuse_a_run_that_cannot_fit(config, certify=True)
    run.begin([f"{len(specs) - 1} candidates for {config.model.label}, {len(prompts)} prompts"], name="advise")
    with console.status(f"loading {config.model.label}, and measuring its forwards"):
        bench = build_bench(config, torch.device(config.hardware.torch_device), [], specs)
    asked = [Asked(p.id, p.family, bench.chat.encode(p.beginning)) for p in prompts]
    summarized = partial(
        summarize_comparison,
        task=task.name,
        model=config.model.label,
        dataset=config.dataset.name,
        seed=config.seed,
        dtype=config.model.dtype,
        engine=bench.engine,
    )
    tried = compare_first_turns(bench, asked[: task.tried], tell=_teller(console, "tried", task.tried))
    screening = summarized(tried)
    best = [name for name in ranking(screening) if name != BASELINE][: task.confirmed]
    decoders = {name: bench.decoders[name] for name in (BASELINE, *best)}
    confirmed = compare_first_turns(
        replace(bench, decoders=decoders), asked, tell=_teller(console, "confirmed", len(asked))
    )
    result = summarized(confirmed)
    result["tried"] = {
        name: {key: found[key] for key in ("speedup_total", "tokens_per_forward", "lossless")}
        for name, found in screening[CONTENDERS].items()
    }
    result["ranking"] = ranking(result)
    chosen = next(name for name in result["ranking"] if name != BASELINE)
    result["objective"] = result[CONTENDERS][chosen]["speedup_total"]
    result["advice"] = {
        "drafter": chosen if _pays(result, chosen) else BASELINE,
        "command": " ".join(["python run.py", *_settings(config), *as_overrides(chosen)]),
        "elsewhere": equivalents(specs[chosen].config),
    }
    write_json_atomic(run.folder / "result.json", result)
    _show(console, result, chosen, specs[chosen], bench)
    run.log(result)
    if wrong := wrong_texts(tried, list(specs)) + wrong_texts(confirmed, list(decoders)):
        console.print(Text("NOT LOSSLESS", "bold red"), f": {'; '.join(wrong[:5])}", sep="")
        sys.exit(1)
    return result["objective"]


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts, the families of which take turns, so that the first ones are of all kinds."""
    by_family: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_family.setdefault(prompt.family, []).append(prompt)
    longest = max(map(len, by_family.values()), default=0)
    return [family[i] for i in range(longest) for family in by_family.values() if i < len(family)][:count]


def _pays(result: Mapping[str, Any], name: str) -> bool:
    """Return whether the interval of the speedup is above 1."""
    low = result[CONTENDERS][name]["speedup_total_interval"]["low"]
    return low is not None and low > 1


def _settings(config: Config) -> list[str]:
    """Return the overrides that name the model, as far as a command needs them."""
    named = {"path": getattr(config.model, "path", None)}
    return [f"model={config.model.name}", *(f"model.{key}={value}" for key, value in named.items() if value)]


def _show(console: Console, result: Mapping[str, Any], chosen: str, spec: Spec, bench: Bench) -> None:
    print_comparison(result, console)
    rest = [name for name in result["tried"] if name not in result[CONTENDERS]]
    if rest:
        parts = [f"{name} {result['tried'][name]['speedup_total'] or 0.0:.2f}×" for name in rest]
        console.print(f"tried on fewer prompts, and not among the best: {', '.join(parts)}")
    total = result[CONTENDERS][chosen]["speedup_total_interval"]
    bounds = f"{total['median']:.2f}× [{total['low']:.2f}, {total['high']:.2f}]"
    verdict = (
        f"yes, draft with {chosen}: {bounds} over plain decoding on these prompts"
        if _pays(result, chosen)
        else f"no clear gain: the best, {chosen}, has {bounds} over plain decoding on these prompts; leave drafting "
        "out, or ask with more prompts"
    )
    console.print(Text.assemble(("advice: ", "bold"), verdict))
    console.print(f"here:         {result['advice']['command']}")
    for engine, settings in equivalents(spec.config).items():
        if settings:
            console.print(f"{engine + ':':<13} {settings}")
    if none := without(spec.config):
        console.print(none)
    console.print(f"engine: {bench.engine}")


def _teller(console: Console, what: str, total: int) -> Any:
    def tell(done: int) -> None:
        console.print(f"{what} on {done} of {total} prompts", end="\r" if console.is_terminal else "\n")

    return tell
