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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdraft.core.options import Options, choice_name, option
from selfdraft.core.scoring import TESTS, Reference, is_right, program
from selfdraft.data.prompts import Prompt
from selfdraft.tracking.records import Line, key

NOT_RUN = "score.run_code=true runs the code of answers"
MEMORY = 1_000_000_000  # bytes of address space
LARGEST_FILE = 10_000_000  # bytes
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


@dataclass
class ScoreConfig(Options):
    """Whether answers are compared with the dataset's references."""

    group: ClassVar[str] = "score"
    name: str = choice_name("answers")
    enabled: bool = option(True, help="true: compare answers with the references that the dataset has")
    run_code: bool = option(
        False,
        help="true: run the code of answers against their tests (mbpp, humaneval), in processes with limits; these are "
        "no sandbox, so use a machine or container that may be harmed",
    )
    timeout_s: int = option(10, at_least=1, at_most=3600, help="seconds after which the code of an answer is stopped")


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
    references = {(prompt.id, len(prompt.turns) - 1): prompt.reference for prompt in prompts}
    texts = []
    for line in lines:
        reference = references.get(key(line))
        if reference is not None:
            baseline = line.get("baseline_output_ids")
            texts.append((reference, line["text"], line["text"] if baseline is None else decode(baseline)))
    if not options.enabled or not texts:
        return None
    metric = ", ".join(sorted({reference.metric for reference, _, _ in texts}))
    if not options.run_code and any(reference.kind == TESTS for reference, _, _ in texts):
        return {"metric": metric, "drafter": None, "baseline": None, "n": 0, "left_out": NOT_RUN}
    known: dict[tuple[Reference, str], bool] = {}  # the two texts are mostly the same one

    def right(reference: Reference, text: str) -> bool:
        if (reference, text) not in known:
            runs = reference.kind == TESTS
            known[reference, text] = (
                passes_tests(reference, text, options.timeout_s) if runs else is_right(reference, text)
            )
        return known[reference, text]

    n = len(texts)
    return {
        "metric": metric,
        "drafter": sum(right(reference, text) for reference, text, _ in texts) / n,
        "baseline": sum(right(reference, text) for reference, _, text in texts) / n,
        "n": n,
    }


def in_words(score: dict[str, Any]) -> str:
    """Return the line that is printed of a score."""
    if "left_out" in score:
        return f"score: {score['metric']} not computed ({score['left_out']})"
    return (
        f"score: {score['metric']} {score['drafter']:.1%} with the drafter, {score['baseline']:.1%} with plain "
        f"decoding, of {score['n']} answers"
    )


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
