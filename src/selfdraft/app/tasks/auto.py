"""drafter=auto: before a task begins, take the drafter that was found best for this model on this machine.

`task=advise` keeps what it finds (`tracking/files/advice_cache.py`). Where nothing is kept, a few bundled prompts are
decoded for less than a minute, and what that finds is kept. On a machine that takes longer than 0.1 s for a token it
lasts longer, because below `FEWEST` prompts of `SHORTEST` tokens the result would be chance.
"""

from __future__ import annotations

import copy
import datetime
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, flag_override
from pytorch_lightning import seed_everything
from rich.console import Console
from rich.text import Text

from selfdraft.app.options.schema_drafter import AutoConfig
from selfdraft.app.options.schemas import Config, DecodingConfig
from selfdraft.app.runs.build import build_bench, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.core.errors import UserError
from selfdraft.data.sources import load_bundled
from selfdraft.drafters.specs import Spec, spec_of
from selfdraft.models.loading.loading import StockModel
from selfdraft.models.measuring.memory import give_back
from selfdraft.modules.advisor import Advisor, asked_by, spread
from selfdraft.modules.bench import BASELINE
from selfdraft.tracking.files.advice_cache import Advice, AdviceCache, key_of_model
from selfdraft.tracking.numbers.comparison import ranking
from selfdraft.tracking.numbers.lines import CONTENDERS

TASKS = ("evaluate", "generate", "trace")  # those that use the configured drafter as it is
QUICK = ("jacobi", "lookahead", "prompt_lookup", "suffix", "recycling nodes=16", "pool")  # all of them are predicted
CONFIRMED = 1  # predictions are good enough for this; the time is better spent on more prompts
SECONDS = 28.0  # of decoding: loading, compiling, prefills and certificates take some twenty more
TOKENS, SHORTEST = 32, 16  # of an answer
FEWEST, MOST = 4, 8  # prompts
BUSY = (
    "warning: other programs kept this machine busy meanwhile: these speedups may be far off, and are not kept for "
    "drafter=auto"
)


def settle_drafter(run: Run) -> None:
    """Replace drafter=auto in the run's configuration by the drafter that it stands for; print which one, and why.

    Raises:
        UserError: it has no meaning for the task, or for how prompts are decoded; the model cannot be loaded.
        SystemExit: status 1 after a mismatch.
    """
    config = run.config
    if not isinstance(config.drafter, AutoConfig):
        return
    _refuse(config)
    refuse_a_run_that_cannot_fit(config, certify=True)
    device = torch.device(config.hardware.torch_device)
    with run.console.status(f"loading {config.model.label}"):
        loaded = config.model.load(device)
        cache = cache_for(config, loaded.model)
        del loaded
        give_back()
    advice = None if config.drafter.again else cache.read()
    if advice is None:
        advice, lasting = _measured(config, device, run.console)
        if lasting:
            cache.write(advice)
        else:
            run.console.print(BUSY)
    run.console.print(f"drafter=auto: {advice}")
    spec = spec_of(advice.drafter)
    guard = config.decoding.guard or spec.guarded
    run.config = replace(config, drafter=spec.config, decoding=replace(config.decoding, guard=guard))
    run.composed = with_drafter(run.composed, spec)
    seed_everything(config.seed, verbose=False)  # as if the drafter had been named


def cache_for(config: Config, model: StockModel) -> AdviceCache:
    """Return the place where the best drafter for a loaded model is kept."""
    names = ("dtype", "engine", "weights", "packed", "attention")
    options = {name: getattr(config.model, name) for name in names}
    return AdviceCache(key_of_model(model, options, torch.device(config.hardware.torch_device)))


def advice_of(result: Mapping[str, Any], by: str) -> Advice:
    """Return what a confirmation found: its fastest drafter, or plain decoding if that is not clearly faster."""
    best = next(name for name in ranking(result) if name != BASELINE)
    bounds = result[CONTENDERS][best]["speedup_total_interval"]
    speedup, low, high = (float(bounds[name] or 0.0) for name in ("median", "low", "high"))
    today = datetime.datetime.now().astimezone().date().isoformat()
    return Advice(best if low > 1 else BASELINE, best, speedup, low, high, today, by, result["prompts"])


def with_drafter(composed: DictConfig, spec: Spec) -> DictConfig:
    """Return the configuration with the options of another drafter, so that the run's folder shows them."""
    decided = copy.deepcopy(composed)
    with flag_override(decided, ["readonly", "struct"], False):
        decided.drafter = OmegaConf.structured(spec.config)
        if spec.guarded:
            decided.decoding.guard = True
    return decided


def affordable(step_s: float, seconds: float = SECONDS) -> tuple[int, int]:
    """Return how many prompts, and how many tokens of each, the quick measurement decodes.

    Args:
        step_s: seconds of a step of plain decoding, as long as all contenders take at most for a token.
        seconds: how long all decoding may take.
    """
    each = step_s * (2 + CONFIRMED)  # recorded, then confirmed in turn with plain decoding
    prompts = int(seconds / (each * TOKENS))
    if prompts >= FEWEST:
        return min(prompts, MOST), TOKENS
    return FEWEST, max(int(seconds / (each * FEWEST)), SHORTEST)


def _refuse(config: Config) -> None:
    if config.task.name not in TASKS:
        raise UserError(
            f"drafter=auto is for {', '.join(f'task={name}' for name in TASKS)}: for task={config.task.name} name a "
            "drafter, or leave it out"
        )
    if config.hardware.devices > 1 or config.decoding.batch_size > 1:
        raise UserError(
            "drafter=auto works with one process and decoding.batch_size=1, because otherwise another drafter may be "
            "the best: name a drafter"
        )


def _measured(config: Config, device: torch.device, console: Console) -> tuple[Advice, bool]:
    """Predict all candidates on a few bundled prompts, and confirm the best one.

    Returns:
        What that found, and whether it can be kept: other programs did not keep the machine busy meanwhile.
    """
    console.print(
        "drafter=auto: nothing is known of this model on this machine yet: measuring, for up to a minute (task=advise "
        "takes longer and knows more)"
    )
    quick = replace(config, decoding=DecodingConfig(max_new_tokens=TOKENS), artifact=None)
    with console.status("trying drafters"):
        bench = build_bench(quick, device, [], {BASELINE: Spec(spec_of(BASELINE).config)})
        prompts, tokens = affordable(bench.baseline.drafter.costs.full()(1))
        bench.baseline.stopping = replace(bench.baseline.stopping, max_new_tokens=tokens)
        specs = {name: spec_of(name) for name in QUICK}
        labels = {"task": config.task.name, "model": config.model.label, "dataset": "bundled", "seed": config.seed}
        advisor = Advisor(bench, specs, asked_by(bench.chat, spread(load_bundled(), prompts)), labels)
        advisor.record()
        advisor.predict()
        result = advisor.confirm(advisor.best(CONFIRMED))
    if wrong := advisor.wrong():
        console.print(Text("NOT LOSSLESS", "bold red"), f": {'; '.join(wrong[:5])}", sep="")
        sys.exit(1)
    give_back()
    return advice_of(result, "drafter=auto"), not advisor.crowded
