"""Any command line: the run ends with status 0, or with status 2 and one printable line."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path

from budget import SETTINGS, budget
from commands import ended
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import words

from command_line import CONF
from selfdraft.app.options.schemas import SCHEMAS
from selfdraft.app.terminal.help import choices_in, groups_under

# A run of a second, whatever else is asked for.
SHORT = ("model=tiny", "logger=none", "hardware.threads=1", "dataset.limit=1", "decoding.max_new_tokens=4")
LENGTHY = ("calibrate.trials=2", "calibrate.prompts=1", "calibrate.tokens=4", "calibrate.check=1", "task.rounds=1")
# It starts other processes. Nor are hydra.run, .sweep and .callbacks typed, which write elsewhere or run code.
LEFT_OUT = ("hardware.devices",)
CHOICES = {group: choices_in(CONF / group) for group in groups_under(CONF)}
CHOICES["hardware"] = ["cpu"]
CHOICES["model"] = ["tiny", "hf", "random"]
CHOICES["dataset"] = ["bundled", "jsonl", "humaneval"]
CHOICES["task"].remove("finetune")  # trains for minutes when nothing is wrong
CHOICES["logger"] = ["none", "csv"]
DEEP = 40  # lists in lists, which Hydra's parser reads in a second; more are refused by tests/app/test_overrides.py


NAMES = {
    f"{schema.config_group}.{f.name}" for schemas in SCHEMAS.values() for schema in schemas for f in fields(schema)
}
OPTIONS = [*sorted(NAMES - set(LEFT_OUT)), "seed", "prompt", "artifact"]
HYDRA = [
    "hydra.job.name", "hydra.job.chdir", "hydra.job.env_set", "hydra.job.env_copy", "hydra.verbose", "hydra.job",
    "hydra", "hydra.output_subdir", "hydra.help", "hydra.job_logging", "hydra.searchpath", "hydra/job_logging",
]  # fmt: skip

numbers = st.sampled_from(
    ["-1", "0", "1", "2", "3", "8", "0.5", "1.5", "-0.5", "1e400", "inf", "nan", "-0", "0x10", "1_0"]
)
huge = st.sampled_from([str(2**63), "9" * 40, "9" * 5000])
structures = st.sampled_from(
    ["[]", "{}", "[1]", "[a,b]", "[null]", "{a:1}", "{name:jacobi}", "[[1]]", "[{a:1}]", "[" * DEEP + "]" * DEEP,
     "{a:" * DEEP + "1" + "}" * DEEP, "choice(1,2)", "1,2", "range(3)", "glob(*)", "int(x)", "sort(3,1)"]
)  # fmt: skip
interpolations = st.sampled_from(
    [
        "${seed}",
        "${nope}",
        "${",
        "${oc.env:NOPE}",
        "${drafter}",
        "${oc.decode:x}",
        "${now:%Y}",
        "${hydra:job.num}",
        "${a:b}",
    ]
)
choices = st.sampled_from(sorted({choice for all_of_one in CHOICES.values() for choice in all_of_one}))
anything = st.one_of(
    numbers, huge, structures, interpolations, choices, st.sampled_from(["null", "true", "false", "", "???"]), words,
    words.map(lambda word: f'"{word}"'),
)  # fmt: skip


def _typed(text: str) -> str:
    """What a process can be given: no NUL, and no option with dashes of Hydra's own, which prints its usage."""
    return text.replace("\x00", "").lstrip("-")


of_options = st.tuples(
    st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from([*OPTIONS, *HYDRA]), anything
).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")
of_groups = st.sampled_from(sorted(CHOICES)).flatmap(
    lambda group: st.one_of(st.sampled_from(CHOICES[group]), anything).map(lambda value: f"{group}={value}")
)
of_anything = st.tuples(words, st.sampled_from(["=", ""]), anything).map("".join)
# Mostly what nearly makes sense: the rest is refused before anything is composed.
overrides = st.sampled_from([of_options] * 6 + [of_groups] * 3 + [of_anything]).flatmap(lambda kind: kind).map(_typed)


@settings(max_examples=budget(4, 500), **SETTINGS)
@given(typed=st.lists(overrides, min_size=1, max_size=3))
def test_any_command_line_ends_with_status_0_or_one_clear_line(typed: list[str]) -> None:
    task = next((text for text in reversed(typed) if text.startswith("task=")), "")
    short = SHORT + tuple(text for text in LENGTHY if not text.startswith("task.") or "profile" in task)
    with tempfile.TemporaryDirectory() as folder:
        ended([*short, *typed], Path(folder)).refuse_anything_but_success_or_a_line()
