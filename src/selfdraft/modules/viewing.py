"""A sample of finished turns for the report's viewer: their tokens as text, and the probabilities of these.

It is made after all measurements, because it runs the model again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.chances import chances_of, distributions_of
from selfdraft.models.loading.spelling import Speller
from selfdraft.modules.measurement import DRAFTER
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.lines import CONTENDERS, measured
from selfdraft.tracking.report.sample import VIEWER

TURNS = 6  # turns in the sample: of as many families as there are
TOKENS = 256  # of an answer that are shown
BUDGET_S = 10.0  # once computing probabilities has taken so long, other turns are shown without


def write_sample(folder: Path, certifier: Certifier, speller: Speller, lines: Sequence[Line]) -> None:
    """Write viewer.json into a run's folder; see `sample_of`."""
    write_json_atomic(folder / VIEWER, sample_of(certifier, speller, lines))


def sample_of(certifier: Certifier, speller: Speller, lines: Sequence[Line]) -> dict[str, Any]:
    """Return what a viewer needs besides the lines of prompts.jsonl, for some turns.

    Args:
        certifier: its target and rule are those of the run. The target's cache is overwritten.
        lines: of an evaluation or a comparison.

    Returns:
        `turns`: of each, `id`, `turn`, and under `contenders` for each decoder of ours `steps`, how many of its steps
        are shown, and `chances`, see `decoding.chances`. `texts`: the text of each token id in these steps.
    """
    ids: set[int] = set()
    turns, begun = [], time.monotonic()
    for line in chosen(lines):

        @cache
        def distributions(output: tuple[int, ...], prompt: tuple[int, ...] = tuple(line["prompt_ids"])) -> Any:
            return distributions_of(certifier.target, certifier.rule, prompt, output)

        found = {}
        for name, part, output in decoders_of(line):
            steps = _within(part["steps"], TOKENS)
            shown = output[: sum(len(step[2]) + (step[3] is not None) for step in steps)]
            in_time = shown and time.monotonic() - begun < BUDGET_S
            chances = chances_of(distributions(tuple(shown)), steps) if in_time else []
            found[name] = {"steps": len(steps), "chances": chances}
            ids.update(line["prompt_ids"][-1:], _ids(steps), *(each[2] for each in part.get("iterates", ())))
        turns.append({"id": line["id"], "turn": line["turn"], CONTENDERS: found})
    return {"turns": turns, "texts": {str(token): speller.alone(token) for token in sorted(ids)}}


def chosen(lines: Sequence[Line]) -> list[Line]:
    """Return up to `TURNS` turns: the first of each family, then the second of each, and so on."""
    place: dict[str, int] = {}
    ranked = []
    for line in measured(lines):
        if any(part["steps"] for _, part, _ in decoders_of(line)):
            place[line["family"]] = place.get(line["family"], -1) + 1
            ranked.append((place[line["family"]], line))
    return [line for _, line in sorted(ranked, key=lambda each: each[0])[:TURNS]]


def decoders_of(line: Line) -> Iterator[tuple[str, Mapping[str, Any], list[int]]]:
    """Yield the name, the measured part and the answer of each decoder whose steps a line holds."""
    parts: Mapping[str, Mapping[str, Any]] = line.get(CONTENDERS) or {DRAFTER: line}
    for name, part in parts.items():
        if "steps" in part:
            yield name, part, part.get("output_ids", line["output_ids"])


def _within(steps: Sequence[Sequence[Any]], tokens: int) -> list[Sequence[Any]]:
    """Return the first steps, as long as they emit no more than so many tokens."""
    kept, emitted = [], 0
    for step in steps:
        emitted += len(step[2]) + (step[3] is not None)
        if emitted > tokens:
            break
        kept.append(step)
    return kept


def _ids(steps: Iterable[Sequence[Any]]) -> set[int]:
    return {token for tokens, _, _, bonus, *_ in steps for token in (*tokens, bonus) if token is not None}
