"""What is kept for drafter=auto, and the table of task=advise."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from naming import naming
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.tracking.display.advice import accepted_share, off, order, print_candidates
from selfdraft.tracking.files.advice_cache import Advice, AdviceCache, key_of_model

ADVICE = Advice("pool", "pool", 1.39, 1.2, 1.5, "2026-11-29", "task=advise", 20)
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdviceCache:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path))
    return AdviceCache({"fingerprint": "0" * 16})


def test_an_advice_is_read_as_it_was_written(cache: AdviceCache, tmp_path: Path) -> None:
    assert cache.read() is None
    assert cache.write(ADVICE) and cache.read() == ADVICE
    newer = replace(ADVICE, drafter="none", low=0.9)
    assert cache.write(newer) and cache.read() == newer
    assert cache.path is not None and cache.path.parent == tmp_path / "advice"
    assert AdviceCache({"fingerprint": "1" * 16}).read() is None


def test_it_says_what_it_is_and_why_in_a_line() -> None:
    assert str(ADVICE) == "pool, 1.39 × [1.20, 1.50] on 20 prompts on 2026-11-29 by task=advise"
    assert str(replace(ADVICE, drafter="none", low=0.95)) == (
        "none: no clear gain; the best, pool, had 1.39 × [0.95, 1.50] on 20 prompts on 2026-11-29 by task=advise"
    )


def test_a_file_with_anything_else_counts_as_absent(cache: AdviceCache) -> None:
    assert cache.path is not None
    cache.write(ADVICE)
    good = json.loads(cache.path.read_text())
    for name, value in [
        ("drafter", "rm -rf"),
        ("drafter", 3),
        ("best", "\x1b[2J"),
        ("speedup", "fast"),
        ("low", True),
        ("high", float("inf")),
        ("prompts", 2.5),
        ("date", None),
    ]:
        with naming((name, value)):
            cache.path.write_text(json.dumps({**good, "advice": {**good["advice"], name: value}}))
            assert cache.read() is None
    for text in ("", "[]", "{}", json.dumps({**good, "key": {}}), json.dumps({**good, "advice": []})):
        cache.path.write_text(text)
        assert cache.read() is None
    cache.path.write_text(json.dumps(good))
    assert cache.read() == ADVICE


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "file"))
    assert not AdviceCache({}).write(ADVICE) and AdviceCache({}).read() is None
    monkeypatch.setenv("SELFDRAFT_CACHE", "~nobody-has-this-name/x")
    assert AdviceCache({}).path is None and not AdviceCache({}).write(ADVICE)


def test_the_key_tells_weights_and_ways_to_run_apart() -> None:
    one, other = tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    options = {"dtype": "float32", "engine": "eager"}
    key = key_of_model(one, options, CPU)
    assert key == key_of_model(tiny_model("llama", seed=0), options, CPU)
    assert key != key_of_model(other, options, CPU)
    assert key != key_of_model(one, {**options, "engine": "auto"}, CPU)
    json.dumps(key)


def measured(speedup: float, accepted: int = 1) -> dict[str, Any]:
    return {
        "decode_tokens_per_s": 10 * speedup,
        "speedup_total": speedup,
        "speedup_total_interval": {"median": speedup, "low": speedup - 0.1, "high": speedup + 0.1},
        "tokens_per_forward": 2.0,
        "acceptance_by_depth": [{"offered": 4, "accepted": accepted}],
        "lossless": {"exact": 3, "tie": 0, "mismatch": 0},
        "startup": {"peak_memory_mb": 512.0},
    }


RESULT: dict[str, Any] = {
    "model": "tiny",
    "dataset": "bundled",
    "prompts": 3,
    "contenders": {
        "none": {**measured(1.0), "acceptance_by_depth": []},
        "pool": measured(1.5),
        "suffix": measured(1.25),
    },
    "predicted": {
        "pool": {"speedup": 1.2, "tokens_per_forward": 1.6},
        "suffix": {"speedup": 1.25, "tokens_per_forward": 1.4},
        "jacobi": {"speedup": 1.1, "tokens_per_forward": 1.3},
    },
    "tried": {"swift": measured(1.15, accepted=3)},
    "left_out": {"low_bit": "not here"},
    "prediction_errors": {"pool": -0.2, "suffix": 0.0},
}


def test_the_table_has_all_candidates_the_confirmed_ones_first() -> None:
    assert order(RESULT) == ["pool", "suffix", "none", "swift", "jacobi"]
    text = io.StringIO()
    print_candidates(RESULT, Console(file=text, width=100))
    rows = {line.split()[0]: line for line in text.getvalue().splitlines() if line.strip()}
    assert "1.20×" in rows["pool"] and "1.50× [1.40, 1.60]" in rows["pool"] and "512 MB" in rows["pool"]
    assert "1.15×" in rows["swift"] and "75%" in rows["swift"]
    assert "1.10×" in rows["jacobi"] and "1.30" in rows["jacobi"] and "MB" not in rows["jacobi"]
    assert "predictions were off by 10% on average; most for pool, by -20% of what was confirmed" in text.getvalue()
    assert "left out: low_bit: not here" in text.getvalue()


def test_nothing_is_said_of_predictions_that_nobody_made() -> None:
    assert off({**RESULT, "prediction_errors": {}}) == ""
    assert accepted_share({"acceptance_by_depth": []}) is None
