"""Spec-Bench's JSONL: our answers in it, for its speed.py and equal.py, and others' results read from it.

A line is a question: `question_id`, `category`, `model_id` and `choices`, of which the first has for each turn the text
(`turns`), `decoding_steps`, `new_tokens` and `wall_time` (seconds, prefill included), and for each step the tokens that
it wrote (`accept_lengths`). See https://github.com/hemingkx/Spec-Bench, evaluation/eval.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json
from selfdraft.tracking.files.atomic import as_json, write_bytes_atomic
from selfdraft.tracking.files.records import Line
from selfdraft.tracking.numbers.comparison import PLAIN
from selfdraft.tracking.numbers.lines import CONTENDERS, measured

Measured = tuple[float, float, list[float]]
"""Tokens, seconds with the prefills, and the tokens of each step, of one question."""

NO_NAME = re.compile(r"[^\w.+=-]+")  # what file names do not have here


def write_answers(folder: Path, lines: Sequence[Line], *, model: str, drafter: str) -> list[Path]:
    """Write a file for each of our decoders of a run, plain decoding's among them; return the files.

    Args:
        lines: of an evaluation or a comparison. model: its label. drafter: of an evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, answers in answers_of(lines, drafter).items():
        path = folder / f"{NO_NAME.sub('-', name).strip('-.') or 'contender'}.jsonl"
        questions = _questions(answers, f"{model}-{name}")
        write_bytes_atomic(path, b"".join(as_json(question) for question in questions))
        paths.append(path)
    return paths


def answers_of(lines: Sequence[Line], drafter: str) -> dict[str, list[dict[str, Any]]]:
    """Return for each of our decoders its turns in order: `id`, `category`, `text`, `steps`, `tokens`, `seconds`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in measured(lines):
        for name, answer in _answers(line, drafter):
            found.setdefault(name, []).append({"id": line["id"], "category": line["category"], **answer})
    return found


def rows_of_others(paths: Sequence[Path], plain: Path | None) -> list[dict[str, Any]]:
    """Return what the files of other programs say, for the report.

    Args:
        paths: JSONL files of Spec-Bench. plain: that of plain decoding, for speedups; None if there is none.

    Returns:
        For each file `name`, `source`, `prompts`, `tokens_per_s` over all tokens, `tokens_per_step`, and `speedup`,
        the ratio of `tokens_per_s` to that of `plain` on the questions that both have; None without it.

    Raises:
        UserError: a file cannot be read, or a line of it is no answer of Spec-Bench.
    """
    base = None if plain is None else _read(plain)
    return [_row(path, _read(path), base) for path in paths]


def rows_of_ours(lines: Sequence[Line], drafter: str) -> dict[str, dict[str, Any]]:
    """Return the same for our decoders of a run, by name, with prefills as in Spec-Bench's files.

    Args:
        lines: of an evaluation or a comparison. drafter: of an evaluation.
    """
    found: dict[str, dict[str, Measured]] = {}
    for name, answers in answers_of(lines, drafter).items():
        questions = found.setdefault(name, {})
        for answer in answers:
            tokens, seconds, steps = questions.get(answer["id"], (0.0, 0.0, []))
            questions[answer["id"]] = tokens + answer["tokens"], seconds + answer["seconds"], [*steps, *answer["steps"]]
    return {name: _row(Path(name), questions, found.get(PLAIN)) for name, questions in found.items()}


def _answers(line: Line, drafter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if CONTENDERS in line:
        for name, part in line[CONTENDERS].items():
            if "steps" in part:
                yield name, _answer(part.get("text", line["text"]), part)
        return
    yield drafter, _answer(line["text"], line)
    tokens = line["baseline_new_tokens"]
    seconds = line.get("prefill_s", 0.0) + line["baseline_decode_s"]
    yield (
        PLAIN,
        {"text": line.get("baseline_text", line["text"]), "steps": [1] * tokens, "tokens": tokens, "seconds": seconds},
    )


def _answer(text: str, part: Mapping[str, Any]) -> dict[str, Any]:
    written = [len(step[2]) + (step[3] is not None) for step in part.get("steps", ())]
    seconds = part.get("prefill_s", 0.0) + part["decode_s"]
    return {"text": text, "steps": written, "tokens": part["new_tokens"], "seconds": seconds}


def _questions(answers: Sequence[Mapping[str, Any]], model_id: str) -> Iterator[dict[str, Any]]:
    """Yield a line for each question, in an order that is the same for all contenders."""
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        by_id.setdefault(answer["id"], []).append(answer)
    for name, turns in sorted(by_id.items(), key=lambda each: (not each[0].isdigit(), each[0].zfill(9))):
        yield {
            "question_id": int(name) if name.isdigit() else name,
            "category": turns[0]["category"],
            "answer_id": f"{model_id}/{name}",
            "model_id": model_id,
            "choices": [
                {
                    "index": 0,
                    "turns": [turn["text"] for turn in turns],
                    "decoding_steps": [len(turn["steps"]) for turn in turns],
                    "new_tokens": [turn["tokens"] for turn in turns],
                    "wall_time": [turn["seconds"] for turn in turns],
                    "accept_lengths": [written for turn in turns for written in turn["steps"]],
                }
            ],
        }


def _read(path: Path) -> dict[str, Measured]:
    """Return tokens, seconds and accepted lengths by question."""
    found = {}
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            first = line["choices"][0]
            tokens, seconds = sum(map(float, first["new_tokens"])), sum(map(float, first["wall_time"]))
            found[str(line["question_id"])] = tokens, seconds, list(map(float, first.get("accept_lengths", ())))
        except (MalformedJSON, LookupError, TypeError, ValueError):
            raise UserError(
                f"{path}:{number} is no answer of Spec-Bench: a JSON object with question_id and choices, whose first "
                "one has new_tokens and wall_time"
            ) from None
    if not found:
        raise UserError(f"{path} has no answers")
    return found


def _row(path: Path, answers: Mapping[str, Measured], base: Mapping[str, Measured] | None) -> dict[str, Any]:
    lengths = [length for _, _, each in answers.values() for length in each]
    shared = [name for name in answers if base is not None and name in base]
    ours, plain = _rate([answers[name] for name in shared]), _rate([(base or {})[name] for name in shared])
    return {
        "name": path.stem,
        "source": path.name,
        "prompts": len(answers),
        "tokens_per_s": _rate(list(answers.values())),
        "tokens_per_step": sum(lengths) / len(lengths) if lengths else None,
        "speedup": ours / plain if ours and plain else None,
    }


def _rate(answers: Sequence[Measured]) -> float | None:
    tokens, seconds = sum(each[0] for each in answers), sum(each[1] for each in answers)
    return tokens / seconds if tokens and seconds > 0 else None
