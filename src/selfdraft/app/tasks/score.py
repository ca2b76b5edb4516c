"""Score answers against the dataset's references: was the quality of the drafter's answers that of plain decoding?

Code of answers is a program that nobody has read, so it runs only with `score.run_code=true`, each in a process of its
own: with limits of time and memory, an empty folder, no secrets of the environment, and no network where the system
allows that to be taken away. These limits stop accidents. They are no sandbox against code that means harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from selfdraft.app.options.schema_score import ScoreConfig
from selfdraft.core.scoring import TESTS, Reference, is_right, program
from selfdraft.data.prompts import Prompt
from selfdraft.tracking.files.records import Line, key
from selfdraft.tracking.numbers.lines import CONTENDERS

NOT_RUN = "score.run_code=true runs the code of answers"
MEMORY = 1_000_000_000  # bytes of address space
LARGEST_FILE = 10_000_000  # bytes
Answers = dict[str, list[tuple[Reference, str]]]  # by decoder, each text after what it is compared with
# Reads a program, a token and a number of seconds, runs the program with limits, and writes the token if it came
# to its end. An exit status of 0 would not do, because code may exit before its tests. Its own output goes nowhere.
RUNNER = f"""
import ctypes, json, os, resource, sys
program, token, seconds = json.load(sys.stdin)
out, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
try:
    ctypes.CDLL(None).unshare(0x40000000)  # a network of its own, which has no devices
except Exception:
    pass
for name, limit in ("CPU", seconds), ("AS", {MEMORY}), ("FSIZE", {LARGEST_FILE}), ("CORE", 0):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    except (AttributeError, OSError, ValueError):
        pass
exec(compile(program, "answer", "exec"), {{"__name__": "answer"}})
os.write(out, token.encode())
"""


def score_of(
    lines: Iterable[Line], prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str], options: ScoreConfig
) -> dict[str, Any] | None:
    """Return the share of right answers of the drafter and of plain decoding.

    Args:
        lines: those of the decoded turns; the last turn of a prompt with a reference is scored.
        decode: returns the text of token ids.

    Returns:
        `metric`, `drafter` and `baseline` (shares, null if code was not run) and `n` (answers scored); None if there
        are no references, or scores are not wanted.
    """
    answers: Answers = {"drafter": [], "baseline": []}
    for reference, line in _with_references(lines, prompts):
        baseline = line.get("baseline_output_ids")
        answers["drafter"].append((reference, line["text"]))
        answers["baseline"].append((reference, line["text"] if baseline is None else decode(baseline)))
    if (found := _scored(answers, options)) is None:
        return None
    facts, shares = found
    return {**facts, **shares}


def scores_of(
    lines: Iterable[Line], prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str], options: ScoreConfig
) -> tuple[dict[str, Any], dict[str, float | None]] | None:
    """Return the share of right answers of every contender of a comparison.

    Args:
        lines: those of the decoded turns of a comparison; see `score_of` for what is scored, and for `decode`.

    Returns:
        The facts that all share, `metric` and `n` (answers scored), and by contender its share, which is None if code
        was not run or if the contender did not answer every prompt. None in place of both if there are no references,
        or scores are not wanted.
    """
    answers: Answers = {}
    failed = set()
    for reference, line in _with_references(lines, prompts):
        for name, part in line[CONTENDERS].items():
            other = part.get("output_ids")  # only of a text that differs from plain decoding's
            answers.setdefault(name, []).append((reference, line["text"] if other is None else decode(other)))
            if part.get("failed"):
                failed.add(name)
    if (found := _scored({name: own for name, own in answers.items() if name not in failed}, options)) is None:
        return None
    facts, shares = found
    return facts, {name: shares.get(name) for name in answers}


def in_words(score: dict[str, Any]) -> str:
    """Return the line that is printed of the score of an evaluation."""
    if "left_out" in score:
        return _left_out(score)
    return (
        f"score: {score['metric']} {score['drafter']:.1%} with the drafter, {score['baseline']:.1%} with plain "
        f"decoding, of {score['n']} answers"
    )


def all_in_words(facts: dict[str, Any], shares: Mapping[str, float | None]) -> str:
    """Return the line that is printed of the scores of a comparison; see `scores_of` for the arguments."""
    if "left_out" in facts:
        return _left_out(facts)
    known = {name: f"{share:.1%}" for name, share in shares.items() if share is not None}
    if len(known) == len(shares) and len(set(shares.values())) == 1:
        said = f"{next(iter(known.values()))} with every contender"
    else:
        said = ", ".join(f"{known.get(name, 'no score')} with {name}" for name in shares)
    return f"score: {facts['metric']} {said}, of {facts['n']} answers"


def _left_out(facts: Mapping[str, Any]) -> str:
    return f"score: {facts['metric']} not computed ({facts['left_out']})"


def _with_references(lines: Iterable[Line], prompts: Sequence[Prompt]) -> Iterator[tuple[Reference, Line]]:
    """Yield the lines that are scored, each after what its answer is compared with."""
    references = {(prompt.id, len(prompt.turns) - 1): prompt.reference for prompt in prompts}
    for line in lines:
        if (reference := references.get(key(line))) is not None:
            yield reference, line


def _scored(answers: Answers, options: ScoreConfig) -> tuple[dict[str, Any], dict[str, float | None]] | None:
    """Return `metric` and `n`, and the share of right answers under each name; None if there is nothing to score.

    Equal texts are compared, or run, once.
    """
    pairs = {pair for own in answers.values() for pair in own}
    if not options.enabled or not pairs:
        return None
    metric = ", ".join(sorted({reference.metric for reference, _ in pairs}))
    if not options.run_code and any(reference.kind == TESTS for reference, _ in pairs):
        return {"metric": metric, "n": 0, "left_out": NOT_RUN}, dict.fromkeys(answers)
    right: dict[tuple[Reference, str], bool] = {}

    def share(own: Sequence[tuple[Reference, str]]) -> float:
        for reference, text in own:
            if (reference, text) not in right:
                runs = reference.kind == TESTS
                right[reference, text] = (
                    passes_tests(reference, text, options.timeout_s) if runs else is_right(reference, text)
                )
        return sum(right[pair] for pair in own) / len(own)

    shares: dict[str, float | None] = {name: share(own) for name, own in answers.items()}
    return {"metric": metric, "n": len(next(iter(answers.values())))}, shares


def passes_tests(reference: Reference, text: str, seconds: int) -> bool:
    """Run an answer's code and its tests, and return whether they came to their end in time without an exception.

    Args:
        reference: of kind TESTS.
        text: the whole answer.
        seconds: after which the process is killed, with those that it has started in its group.
    """
    token = secrets.token_hex()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile() as written,  # a file, because a pipe could be held open by a process that stays
    ):
        json.dump([program(reference, text), token, seconds], given)
        given.seek(0)
        known = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", RUNNER],  # -I: nothing is imported from the folder
            stdin=given,
            stdout=written,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={**known, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        written.seek(0)
        return written.read() == token.encode()
