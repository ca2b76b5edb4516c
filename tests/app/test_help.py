"""`python run.py --help` lists every choice, and example commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import pytest
from omegaconf import OmegaConf

from command_line import CONF, composed, run
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.terminal.help import EXAMPLES
from selfdraft.core.options import helps_of


@pytest.fixture(scope="module")
def page() -> str:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def options_of(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a composed configuration with its value, except the names of choices."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from options_of(value, f"{key}{name}.")
        elif name != "name":
            yield f"{key}{name}", value


def written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_help_lists_every_group_with_every_choice(page: str) -> None:
    table = page.partition("group.option=value:\n")[2].partition("\n\n")[0]
    rows = {}
    for line in table.replace("\n" + " " * 16, " ").splitlines():
        group, _, choices = line.strip().partition(" ")
        rows[group] = choices.strip()
    groups = {folder.relative_to(CONF).as_posix(): folder for folder in CONF.rglob("*") if folder.is_dir()}
    assert "drafter/path" in groups
    for group, folder in groups.items():
        assert rows[group].split(", ") == sorted(path.stem for path in folder.glob("*.yaml"))


def test_help_shows_at_least_five_commands(page: str) -> None:
    commands = [line.strip() for line in page.splitlines() if line.strip().startswith("python run.py ")]
    assert len(commands) >= 5


def test_help_shows_every_option_with_its_value_and_its_description(page: str) -> None:
    shown, config = one_line(page), composed()
    objects = to_config(config)
    for key, value in options_of(OmegaConf.to_container(config)):
        group, _, name = key.rpartition(".")
        part = attrgetter(group)(objects) if group else objects
        assert f" {key} {written(value)} {helps_of(type(part))[name]}" in shown, key


def test_help_fits_120_columns(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 120


def test_help_fits_into_the_terminal() -> None:
    commands = {f"  {line}" for line in EXAMPLES.splitlines()}  # which stay on one line, to be copied
    lines = run("drafter=swift", "--help", COLUMNS="80").stdout.splitlines()
    assert max(len(line) for line in lines if line not in commands) <= 80


@pytest.fixture(scope="module")
def other() -> str:
    """The page of other choices and of peculiar values."""
    choices = ("drafter=swift", "drafter.draft_length=7", "dataset=jsonl", "model=hf", "model.path=${oc.env:NOTHING}")
    done = run("prompt=costs $5\n" + "and more " * 50, *choices, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_shows_the_options_of_the_choices_that_were_made(other: str) -> None:
    shown = one_line(other)
    assert "drafter=swift: The model without some sublayers drafts; the best ones to skip" in shown
    assert "drafter/path=swift: The best skip set" in shown
    assert " drafter.draft_length 7 K: maximum number of drafted tokens " in shown
    assert " drafter.path.tolerance 300 the search ends after this many candidates without an improvement " in shown
    assert " dataset.path ??? the file " in shown
    assert "drafter.window" not in shown.partition("The options of this configuration")[2]


def test_help_shows_long_and_peculiar_values_on_one_line(other: str) -> None:
    (line,) = (line for line in other.splitlines() if line.startswith("  prompt "))
    assert line.split(None, 1)[1].startswith("costs $5 and more and more") and line.endswith("…")
    assert re.search(r"^  model\.path +\$\{oc\.env:NOTHING\}", other, re.MULTILINE)


def test_help_with_a_wrong_override_is_one_clear_line() -> None:
    done = run("drafter.windw=3", "--help")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "drafter.windw: no such option (did you mean window?)" in done.stderr


def test_hydras_own_help_is_still_there() -> None:
    done = run("--hydra-help")
    assert done.returncode == 0
    assert "--multirun" in done.stdout


@pytest.mark.parametrize("example", EXAMPLES.splitlines())
def test_every_example_command_composes(example: str) -> None:
    python, script, *arguments = shlex.split(example.replace("path=F", "path=prompts.jsonl"))
    assert (python, script) == ("python", "run.py")
    overrides = [word for word in arguments if "=" in word]
    # A sweep is as many runs as it has values: the first of each.
    first = [word.partition(",")[0] if "-m" in arguments else word for word in overrides]
    assert overrides
    to_config(composed(*first))
