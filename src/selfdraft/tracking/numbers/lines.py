"""Check finished lines before computing from them, because they may be edited or written by something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import AUDIT, PROMPTS, TEXTS, Line, RecordFile, record_path

LEFT_OUT = "left_out"  # key of the reason why a turn was not decoded; such a line has no measures

NUMBER, COUNT, ANY = "a number", "a whole number", "anything"
VERDICT = ("exact", "sampled", "tie", "mismatch", "uncertified")
CONTENDERS = "contenders"  # key of a comparison's lines: what was measured of each contender
OPTIONAL, OR_NULL = "?", "??"

# A shape is one of the constants above, a type, a tuple of choices, a list of one shape, or a mapping. In a mapping, a
# key that ends in `?` may be absent, one that ends in `??` may also be null, and the key `*` matches every key.
_CERTIFICATE = {
    "verdict": VERDICT,
    "reason??": str,
    "control??": NUMBER,
    "distance??": NUMBER,
    "ceiling??": NUMBER,
    "float32??": {"prefers": ("baseline", "drafter")},
}
_LEFT_OUT = {"category": str, "family": str, LEFT_OUT: str}
# What was measured of one decoder, and what belongs to the turn.
_OF_A_DECODER = {
    "new_tokens": COUNT,
    "target_forwards": COUNT,
    "decode_s": NUMBER,
    "latency_s": NUMBER,
    "joules?": NUMBER,
    "first_token_s??": NUMBER,
    "step_s?": [NUMBER],
    "lossless": _CERTIFICATE,
    "acceptance_by_depth": [{"offered": COUNT, "accepted": COUNT}],
    "phases_s": {"*": NUMBER},
    "steps?": [ANY],
    "stood_down?": COUNT,
    "diagnostics?": {"*": [COUNT]},
    "iterates?": [ANY],
}
_OF_A_TURN = {
    "category": str,
    "family": str,
    "prompt_text?": str,
    "text": str,
    "prompt_ids": [COUNT],
    "output_ids": [COUNT],
    "energy?": {"sources?": [str], "not_readable?": str},
    "peak_memory_mb": NUMBER,
    "peak_memory_by_phase_mb?": {"*": NUMBER},
}
_MEASURED = {
    **_OF_A_TURN,
    **_OF_A_DECODER,
    "baseline_output_ids?": [COUNT],
    "baseline_text?": str,
    "baseline_new_tokens": COUNT,
    "baseline_decode_s": NUMBER,
    "baseline_latency_s": NUMBER,
    "baseline_joules?": NUMBER,
    "references?": {"*": {"new_tokens": COUNT, "decode_s": NUMBER, "lossless??": _CERTIFICATE}},
}
_COMPARED = {**_OF_A_TURN, CONTENDERS: {"*": {**_OF_A_DECODER, "output_ids?": [COUNT], "text?": str, "failed?": str}}}
_WRITTEN = {
    "category": str,
    "prompt_ids": [COUNT],
    "output_ids": [COUNT],
    "text": str,
    "target_forwards": COUNT,
    "prefill_s": NUMBER,
    "decode_s": NUMBER,
    "rank": COUNT,
    "invented_s?": NUMBER,
    "trajectories_s?": NUMBER,
    "trajectories?": [[[COUNT]]],
}
_AUDITED = {
    "verdict": ("exact", "tie", "mismatch"),
    "reason??": str,
    "tokens": COUNT,
    "first_divergence??": COUNT,
    "written_id??": COUNT,
    "written??": str,
    "model_id??": COUNT,
    "model??": str,
    "margin??": NUMBER,
    "control??": NUMBER,
    "warning?": str,
}


def measured(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of turns that were decoded; lines of turns that were left out have a reason and no measures."""
    return [line for line in lines if LEFT_OUT not in line]


def read_measured(folder: Path) -> list[Line]:
    """Return the lines of the decoded turns in the folder of a run of task=evaluate.

    Raises:
        UserError: a line is malformed (see `refuse_malformed`).
    """
    lines = RecordFile(record_path(folder)).read()
    refuse_malformed(lines, folder)
    return measured(lines)


def refuse_malformed(lines: Sequence[Line], folder: Path, *, name: str = PROMPTS) -> None:
    """Check the fields of the lines in `folder`/`name`.jsonl that results are computed from.

    Raises:
        UserError: a field is missing or has another type. The message names the line and the field.
    """
    for line in lines:
        if found := _fault(line, _shape_of(line, name), ""):
            raise UserError(
                f"{Path(folder) / name}.jsonl: the line of id {line['id']!r}, turn {line['turn']}: {found}: remove "
                "that line, and the same command decodes it again"
            )


def _shape_of(line: Line, name: str) -> Mapping[str, Any]:
    if name == TEXTS:
        return _WRITTEN
    if name == AUDIT:
        return {"tokens": COUNT, LEFT_OUT: str} if LEFT_OUT in line else _AUDITED
    return _LEFT_OUT if LEFT_OUT in line else _COMPARED if CONTENDERS in line else _MEASURED


def refuse_without_steps(lines: Sequence[Line], folder: Path) -> None:
    """Check that each line of `folder`/prompts.jsonl has the steps of a drafter, and the seconds that they took.

    Raises:
        UserError: a line does not. The message names the line.
    """
    for line in lines:
        is_timed = line["phases_s"].get("verify") and "draft" in line["phases_s"]
        if not all(_is_step(step) for step in line.get("steps", [None])) or (line["steps"] and not is_timed):
            raise UserError(
                f"{Path(folder) / PROMPTS}.jsonl: the line of id {line['id']!r} holds no steps of a drafter"
            )


def _is_step(step: Any) -> bool:
    """Return whether `step` begins with the drafted tokens, and with the parent of each if they are not a chain."""
    if not isinstance(step, list) or len(step) < 2 or not isinstance(step[0], list):
        return False
    drafted, parents = step[:2]
    if parents is None:
        return True
    is_tree = isinstance(parents, list) and len(parents) == len(drafted)
    return is_tree and all(type(parent) is int and parent < at for at, parent in enumerate(parents))


def _fault(value: Any, shape: Any, where: str) -> str | None:
    """Return what is wrong with `value`, the field `where` of a line; None if it has the shape."""
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return f"`{where}` is no JSON object"
        return _fault_of_fields(value, shape, f"{where}." if where else "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"`{where}` is no list"
        return next((found for each in value if (found := _fault(each, shape[0], f"{where}[]"))), None)
    if isinstance(shape, tuple):
        return None if value in shape else f"`{where}` is none of {', '.join(shape)}"
    if isinstance(shape, type):
        return None if isinstance(value, shape) else f"`{where}` is no text"
    if shape == ANY or (_is_number(value) and (shape == NUMBER or isinstance(value, int))):
        return None
    return f"`{where}` is not {shape} of 0 or more"


def _fault_of_fields(value: Mapping[str, Any], shape: Mapping[str, Any], prefix: str) -> str | None:
    if "*" in shape:
        return next((found for name in value if (found := _fault(value[name], shape["*"], f"{prefix}{name}"))), None)
    for key, inner in shape.items():
        name = key.rstrip(OPTIONAL)
        if name not in value:
            if key == name:
                return f"`{prefix}{name}` is missing"
        elif value[name] is None and key.endswith(OR_NULL):
            continue
        elif found := _fault(value[name], inner, f"{prefix}{name}"):
            return found
    return None


def _is_number(value: Any) -> bool:
    """Return whether `value` is a finite number of 0 or more that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e300
    except OverflowError:
        return False
