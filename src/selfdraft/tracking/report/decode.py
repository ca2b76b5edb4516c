"""What the decode viewer shows: from recorded steps to the steps of its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from selfdraft.core.tree import ROOT
from selfdraft.tracking.files.records import Line, key
from selfdraft.tracking.numbers.lines import CONTENDERS
from selfdraft.tracking.report.rows import Row
from selfdraft.tracking.report.runs import RunFiles

DRAFTER = "drafter"  # the decoder of an evaluation in its sample
PROMPT_LETTERS = 2000  # of a prompt that are shown
MAX_BYTES = 3_600_000  # of all that is shown, so that a report of many runs can be mailed
ACCEPTED, CORRECTED, BONUS, PLAIN = "accepted", "corrected", "bonus", "plain"


def kinds_of(step: Sequence[Any]) -> list[str]:
    """Return how each token came that a step emitted.

    `accepted`: drafted and accepted. The last token is the target's own: `corrected` if it takes the place of a drafted
    token that was rejected, `bonus` if the draft ended before it, and `plain` if nothing was drafted.
    """
    tokens, parents, accepted, bonus = step[:4]
    kinds = [ACCEPTED] * len(accepted)
    if bonus is None:
        return kinds
    probes = set((step[5] if len(step) > 5 else None) or ())
    candidates = [node for node in range(len(tokens)) if node not in probes]
    last = accepted[-1] if accepted else ROOT
    was_rejected = any((node - 1 if parents is None else parents[node]) == last for node in candidates)
    return [*kinds, CORRECTED if was_rejected else BONUS if candidates else PLAIN]


def turn_of(line: Line, part: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return one turn of one contender for the viewer, with short keys because there are many steps.

    Args:
        line: of prompts.jsonl. part: what it holds of the contender. seen: what the sample holds of it.

    Returns:
        `steps`: for each `t`, the drafted ids; `p`, their parents, left out for a chain; `a`, the accepted nodes; `b`,
        the target's own token; `s`, the source; `r`, the probes; `n`, the source of each node; `c`, the probabilities;
        `k`, the kinds of the emitted tokens. `iterates`: number of the block, place in the answer, and ids.
    """
    steps = []
    for step, chances in zip(part["steps"][: seen["steps"]], _filled(seen["chances"], seen["steps"]), strict=True):
        tokens, parents, accepted, bonus, source, *rest = step
        probes, names = (*rest, None, None)[:2]
        short = {"p": parents, "r": probes, "n": names, "c": chances}
        steps.append(
            {"t": tokens, "a": accepted, "b": bonus, "s": source, "k": kinds_of(step)}
            | {name: value for name, value in short.items() if value}
        )
    begin = len(line["prompt_ids"])
    prompt = line.get("prompt_text", "")
    return {
        "id": line["id"],
        "turn": line["turn"] + 1,
        "family": line["family"],
        "prompt": prompt[:PROMPT_LETTERS] + ("…" if len(prompt) > PROMPT_LETTERS else ""),
        "verdict": part["lossless"]["verdict"],
        "tokens": part["new_tokens"],
        "forwards": part["target_forwards"],
        "cut": seen["steps"] < len(part["steps"]),
        "root": line["prompt_ids"][-1],
        "steps": steps,
        "iterates": [[block, at - begin, ids] for block, at, ids in part.get("iterates", ())],
    }


def viewed(runs: Sequence[RunFiles], rows: Sequence[Row], budget: int = MAX_BYTES) -> dict[str, Any]:
    """Return the turns of all contenders that the viewer can show.

    Returns:
        `vocabularies`: texts by token id, one for each tokenizer. `contenders`: of each, its `label`, the index of its
        `vocabulary`, and its `turns`. `left_out`: how many turns would not fit into `budget` bytes of JSON.
    """
    vocabularies: list[dict[str, str]] = []
    contenders: list[dict[str, Any]] = []
    by_name = {(row.run, row.contender): row for row in rows}
    for run in runs:
        for name, turns in _turns_of(run).items():
            row = by_name.get((run.name, run.result["drafter"] if name == DRAFTER else name))
            if row is not None and not row.is_plain and turns:
                contenders.append(
                    {"label": row.label, "vocabulary": _place(vocabularies, run.sample["texts"]), "turns": turns}
                )
    order = {row.label: place for place, row in enumerate(rows)}
    contenders.sort(key=lambda each: order[each["label"]])
    left_out = _fit(vocabularies, contenders, budget)
    kept = [each for each in contenders if each["turns"]]
    return {"vocabularies": vocabularies, "contenders": kept, "left_out": left_out}


def _turns_of(run: RunFiles) -> dict[str, list[dict[str, Any]]]:
    lines = {key(line): line for line in run.lines}
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in run.sample["turns"]:
        line = lines.get((turn.get("id"), turn.get("turn")))
        if line is None:
            continue
        parts = line.get(CONTENDERS, {DRAFTER: line})
        for name, seen in turn[CONTENDERS].items():
            part = parts.get(name)
            if part and part.get("steps"):
                with suppress(LookupError, TypeError, ValueError):  # a damaged turn is not shown
                    found.setdefault(name, []).append(turn_of(line, part, seen))
    return found


def _filled(chances: Sequence[Any], count: int) -> Iterator[Any]:
    """Yield as many entries as there are steps: None where no probabilities were computed."""
    yield from (*chances[:count], *[None] * (count - len(chances)))


def _place(vocabularies: list[dict[str, str]], texts: Mapping[str, str]) -> int:
    """Return the index of the vocabulary that takes these texts: an earlier one that has no other text for any id."""
    for place, known in enumerate(vocabularies):
        if all(known.get(token, text) == text for token, text in texts.items()):
            known.update(texts)
            return place
    vocabularies.append(dict(texts))
    return len(vocabularies) - 1


def _fit(vocabularies: Sequence[Any], contenders: Sequence[dict[str, Any]], budget: int) -> int:
    """Drop the last turns of each contender until all fit; return how many were dropped."""
    room = budget - len(json.dumps(vocabularies))
    sizes = [[len(json.dumps(turn)) for turn in each["turns"]] for each in contenders]
    before = sum(map(len, sizes))
    for kept in range(max(map(len, sizes), default=0), -1, -1):
        if sum(sum(each[:kept]) for each in sizes) <= room or not kept:
            for each in contenders:
                each["turns"] = each["turns"][:kept]
            return before - sum(len(each["turns"]) for each in contenders)
    return 0
