"""`python run.py --help` is where a user starts: everything there is to choose, and commands to try."""

from __future__ import annotations

import re
import shlex

import pytest

from command_line import CONF, composed, run
from selfdraft.app.build import to_config
from selfdraft.app.help import EXAMPLES


@pytest.fixture(scope="module")
def page() -> str:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_group_with_every_choice(page: str) -> None:
    rows = dict(re.findall(r"^  (\S+) +(\w+(?:, \w+)*)$", page, re.MULTILINE))
    groups = {folder.relative_to(CONF).as_posix(): folder for folder in CONF.rglob("*") if folder.is_dir()}
    assert "drafter/path" in groups
    for group, folder in groups.items():
        assert rows[group].split(", ") == sorted(path.stem for path in folder.glob("*.yaml"))


def test_help_shows_at_least_five_commands(page: str) -> None:
    commands = [line.strip() for line in page.splitlines() if line.strip().startswith("python run.py ")]
    assert len(commands) >= 5


def test_help_shows_the_configuration_with_its_defaults(page: str) -> None:
    assert "drafter:\n  name: jacobi\n  path:\n    name: full\n  window: 8" in page
    assert "$CONFIG" not in page


@pytest.mark.parametrize("example", EXAMPLES.splitlines())
def test_every_example_command_composes(example: str) -> None:
    python, script, *arguments = shlex.split(example.replace("path=F", "path=prompts.jsonl"))
    assert (python, script) == ("python", "run.py")
    overrides = [word for word in arguments if "=" in word]
    # A sweep is as many runs as it has values: the first of each.
    first = [word.partition(",")[0] if "-m" in arguments else word for word in overrides]
    assert overrides
    to_config(composed(*first))
