"""Folders of finished runs with made-up lines, for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from example_lines import line
from selfdraft.tracking.numbers.comparison import ranking, summarize_comparison
from selfdraft.tracking.numbers.reason import reason
from selfdraft.tracking.numbers.summary import summarize

LABELS: dict[str, Any] = {
    "model": "tiny",
    "dataset": "bundled",
    "seed": 0,
    "dtype": "float32",
    "engine": "eager",
    "max_new_tokens": 10,
    "batch_size": 1,
}
# First 1 is accepted, and 4 takes the place of 2; 3 is a sibling of 1. Then a chain is accepted whole; then no draft.
STEPS = [
    [[1, 2, 3], [-1, 0, -1], [0], 4, "pool", None, ["suffix", "recycling", "suffix"]],
    [[5, 6], None, [0, 1], 7, "pool", None],
    [[], None, [], 8, "pool", None],
    [[9, 1], None, [0], None, "pool", [1]],
]
WRITTEN = [1, 4, 5, 6, 7, 8, 9]
CHANCES = [[0.9, 0.04, 0.05, 0.7], [0.8, 0.9, 0.5], [0.25], [0.99, None, None]]
ITERATES = [[1, 3, [2, 4, 5]], [1, 3, [1, 2, 5]], [2, 5, [5, 6, 9]]]  # their places count the prompt's three tokens
EVIL = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def decoded(id: str, family: str, **changes: Any) -> dict[str, Any]:
    """A line with steps."""
    made = {"family": family, "output_ids": WRITTEN, "new_tokens": 7, "target_forwards": 4, "baseline_new_tokens": 7}
    return line(id, **{**made, "steps": STEPS, "iterates": ITERATES, **changes})


def lines_of(families: Sequence[str] = ("qa", "rag"), count: int = 2, **changes: Any) -> list[dict[str, Any]]:
    """Lines of some families, of unequal speed."""
    return [
        decoded(f"{family}-{n}", family, decode_s=1.0 + 0.25 * n, prompt_text=f"{EVIL} question {n}", **changes)
        for family in families
        for n in range(count)
    ]


def evaluation_in(folder: Path, lines: Sequence[dict[str, Any]], drafter: str = "pool", **options: Any) -> Path:
    """A folder as task=evaluate leaves it."""
    result = summarize(lines, **{**LABELS, "task": "evaluate", "drafter": drafter})
    result["why"] = reason(result)
    return _write(folder, lines, result, drafter, ["drafter"], options)


def comparison_in(folder: Path, lines: Sequence[dict[str, Any]], names: Sequence[str] = ("none", "pool")) -> Path:
    """A folder as task=compare leaves it, with a contender for each name, each slower than the one before it."""
    measured = ("new_tokens", "target_forwards", "decode_s", "latency_s", "lossless", "acceptance_by_depth", "phases_s")
    compared = []
    for each in lines:
        part = {key: each[key] for key in (*measured, "prefill_s", "steps")}
        contenders = {
            name: {**part, "decode_s": part["decode_s"] * (2 if name == "none" else 1 + 0.1 * n)}
            for n, name in enumerate(names)
        }
        if "jacobi" in contenders:
            contenders["jacobi"]["iterates"] = each["iterates"]
        own = {key: value for key, value in each.items() if key not in (*part, "iterates") and "baseline" not in key}
        compared.append({**own, "contenders": contenders})
    result = summarize_comparison(compared, **{**LABELS, "task": "compare"})
    result["ranking"] = ranking(result)
    return _write(folder, compared, result, "none", names, {})


def _write(
    folder: Path, lines: Sequence[dict], result: Mapping[str, Any], drafter: str, names: Sequence[str], options: Mapping
) -> Path:
    folder.mkdir(parents=True)
    seen = {"steps": len(STEPS), "chances": CHANCES}
    turns = [{"id": each["id"], "turn": each["turn"], "contenders": dict.fromkeys(names, seen)} for each in lines[:6]]
    texts = {"3": "?", **{str(token): f" w{token}" for token in range(1, 9)}, "9": EVIL}
    environment = {"command": f"python run.py '{EVIL}'", "cpu": {"name": "cpu", "cores_usable": 2, "threads": 1}}
    files = {"result.json": result, "viewer.json": {"turns": turns, "texts": texts}, "environment.json": environment}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (folder / "config.yaml").write_text(
        json.dumps({"task": {"name": result["task"]}, "drafter": {"name": drafter, **options}})
    )
    (folder / "selfdraft.json").write_text(json.dumps({"task": result["task"], "version": "0", "facts": {}}))
    return folder
