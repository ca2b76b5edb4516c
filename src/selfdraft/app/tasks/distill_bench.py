"""The bench of task=distill_data: how many texts are written at once, and by which engine, is measured first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from selfdraft.app.options.schemas import Config
from selfdraft.app.runs.build import build_bench
from selfdraft.core.errors import UserError
from selfdraft.models.engines.choice import AUTO, EAGER
from selfdraft.models.forward.target import Target
from selfdraft.models.measuring.batches import BatchRate, best_rate, rows_that_fit
from selfdraft.models.measuring.memory import give_back
from selfdraft.modules.bench import Bench

TYPICAL_PROMPT = 64  # tokens of a short prompt, with the chat template


def given_rows(config: Config) -> int | None:
    """Return the number of rows that the user asked for; None if it is to be measured."""
    if config.distill.rows is not None:
        return config.distill.rows
    return config.decoding.batch_size if config.decoding.batch_size > 1 else None


def build_distill_bench(
    config: Config, device: torch.device, *, count: int, tell: Callable[[str], object] = lambda line: None
) -> Bench:
    """Load the model and return the bench whose drafter writes the texts.

    Without a given number of rows, forwards of more and more rows are timed. Where model.engine=auto compiles the
    layers, they are timed one by one as well: an engine that is faster for one row may be slower for many.

    Args:
        count: number of prompts; more rows than prompts are no use. tell: called with a line about the choice.

    Raises:
        UserError: see `build_bench`.
    """
    rows = given_rows(config)
    if rows is not None or config.decoding.shape_invariant:
        return build_bench(_with_rows(config, rows or 1), device, [])
    bench = build_bench(config, device, [])
    rate = _rate(bench, config, count)
    if bench.drafter.target.compiled and config.model.engine == AUTO:
        eager = _with_rows(config, 1)
        eager.model.engine = EAGER
        try:
            other = build_bench(eager, device, [])
        except UserError:  # not enough memory for a second copy, say: the first one works
            other = None
        if other is not None and (its_rate := _rate(other, config, count)).tokens_per_s > rate.tokens_per_s:
            bench, rate = other, its_rate
        del other
        give_back()
    for decoder in bench.decoders.values():
        decoder.batch_size = rate.rows
    tell(
        f"{rate.rows} texts at once, {bench.engine.partition(',')[0]}: a forward of so many rows takes "
        f"{1e3 * rate.seconds:.0f} ms, at most {rate.tokens_per_s:.0f} tokens/s without prefills"
    )
    return bench


def _with_rows(config: Config, rows: int) -> Config:
    return replace(config, model=replace(config.model), decoding=replace(config.decoding, batch_size=rows))


def _rate(bench: Bench, config: Config, count: int) -> BatchRate:
    target, tokens = bench.drafter.target, config.decoding.max_new_tokens
    assert isinstance(target, Target)  # no other target is built for a task of one process a text
    processes = config.hardware.devices if target.device.type == "cpu" else 1  # each GPU has memory of its own
    most = max(min(rows_that_fit(target, tokens, processes), count), 1)
    return best_rate(target, most=most, context=TYPICAL_PROMPT + tokens // 2)
