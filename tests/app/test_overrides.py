"""Wrong overrides give one clear line before Hydra parses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from command_line import CONF, SMOKE, composed, run
from selfdraft.app.terminal.command_line import flags_first
from selfdraft.app.terminal.errors import explain
from selfdraft.app.terminal.help import groups_under
from selfdraft.app.terminal.overrides import checked, with_home
from selfdraft.core.errors import UserError

GROUPS = groups_under(CONF)
DIGITS = "9" * 5000


def error_line(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        checked(arguments, CONF)
    line = explain(refused.value)
    assert line is not None and line.isprintable()
    return line


@pytest.mark.parametrize("value", ["null", "1", "true", "[]", "[a,b]", "null,evaluate"])
@pytest.mark.parametrize("group", sorted(set(GROUPS) - {"experiment", "hparams"}))
def test_a_group_without_a_valid_name_lists_its_choices(group: str, value: str) -> None:
    choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
    assert error_line("seed=1", f"{group}={value}") == f"{group}={value}: no such choice; choose one of {choices}"


@pytest.mark.parametrize("typed", ["drafter.path=swift", "+drafter.path=swift", "drafter.path=swift,clasp"])
def test_a_group_in_a_group_is_chosen_with_a_slash(typed: str) -> None:
    key, _, value = typed.lstrip("+").partition("=")
    assert error_line(typed) == f"{typed}: choose one with {key.replace('.', '/')}={value}"


@pytest.mark.parametrize("group", ["launcher", "help", "output", "job_logging", "sweeper", "env"])
def test_hydra_s_own_groups_list_their_choices_too(group: str) -> None:
    assert error_line(f"hydra/{group}=null") == f"hydra/{group}=null: no such choice: give the name of one"


def test_experiment_null_is_accepted() -> None:
    """As config.yaml has it."""
    tiny = ["model=tiny", "+experiment=null", "seed=1"]
    assert checked(tiny, CONF) == ["model=tiny", "+experiment=[]", "seed=1"]
    assert composed(*checked(["experiment=null", "seed=1"], CONF)) == composed("seed=1")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (f"seed={DIGITS}", "a number has too many digits"),
        (f"dataset.categories=[{DIGITS}]", "a number has too many digits"),
        ("decoding.stop=" + "[" * 3000 + "]" * 3000, "is nested too deeply"),
        ("+x=" + "{a:" * 500 + "1" + "}" * 500, "is nested too deeply"),
        ("+=", "+= has no key: write key=value"),
        ("=x", "=x has no key: write key=value"),
        (
            "dataset.path=Gr\udcfc\udcdfe",
            "dataset.path=Gr\\udcfc\\udcdfe: not UTF-8; write it, and name files, in UTF-8",
        ),
        ("seed=\x1b[31m", "seed=\\x1b[31m cannot be read: write key=value"),
        ("seed=[", "seed=[ cannot be read: write key=value"),
    ],
    ids=range(9),
)
def test_unreadable_overrides_give_one_short_line(argument: str, expected: str) -> None:
    line = error_line(argument)
    assert expected in line
    assert len(line) < 300


def test_valid_overrides_are_not_changed() -> None:
    sound = [
        "-m",
        "drafter=jacobi,pool",
        "drafter.window=4,8",
        "drafter/path=full,layer_skip",
        "drafter.path.sparsity=0.2,0.3",
        "~dataset",
        "+a=1",
        "decoding.stop=[a]",
        "hydra.job.num=1",
    ]
    assert checked(sound, CONF) == sound
    assert checked(["--cfg", "job", "--config-name", "config"], CONF) == ["--cfg", "job", "--config-name", "config"]


def test_an_unknown_flag_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line("seed=1", "--task", "seed=2")
    assert line == "unknown: --task; write options as group.option=value: --help lists them"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("typed", ["hydra/sweeper=optuna", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=a"])
def test_options_of_sweeps_need_the_flag(typed: str) -> None:
    assert error_line(typed) == f"{typed} is an option of sweeps: add -m"
    for more in (["-m"], ["--help"], ["--cfg", "job"], ["hydra.mode=MULTIRUN"]):
        assert checked([*more, typed], CONF) == [*more, typed]


def test_a_flag_may_stand_anywhere() -> None:
    assert flags_first(["a=1", "-m", "b=2,3"]) == ["-m", "a=1", "b=2,3"]
    assert flags_first(["a=1", "--cfg", "job"]) == ["a=1", "--cfg", "job"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dataset.path=~/a b.jsonl", "/home/me/a b.jsonl"),
        ("model.path=~", "/home/me"),
        ("dataset.path=~nobody-of-this-name/x", "~nobody-of-this-name/x"),
    ],
)
def test_a_tilde_after_an_equals_sign_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, argument: str, value: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (override,) = OverridesParser.create().parse_overrides(with_home([argument]))
    assert override.value() == value
    for other in ("~dataset", "dataset.path='~/x'", "dataset.path=~/a,~/b", "seed=1"):
        assert with_home([other]) == [other]


def test_other_errors_of_composing_give_one_clear_line() -> None:
    """Such as KeyError for `hydra.job.env_copy`, or ValueError for hydra=null."""
    os.environ.pop("NO_SUCH_VARIABLE", None)
    for override, reason in [("hydra.job.env_copy=[NO_SUCH_VARIABLE]", "KeyError"), ("hydra=null", "ValueError")]:
        with pytest.raises(Exception, match=r"NO_SUCH_VARIABLE|NoneType") as raised:
            composed(override)
        line = explain(raised.value)
        assert line is not None and line.startswith(f"the configuration cannot be composed ({reason}: ")
    assert explain(KeyError("a bug of ours")) is None


def test_a_removed_group_is_asked_for() -> None:
    """Even where only the name of the run's folder asks for it."""
    with pytest.raises(Exception, match="drafter") as raised:
        _ = composed("~drafter", "+prompts=${drafter.name}").prompts
    assert explain(raised.value) == "drafter is needed: give it as drafter=<value>"


def test_run_py_checks_overrides(tmp_path: Path) -> None:
    done = run(*SMOKE, "dataset=null", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("selfdraft: dataset=null: no such choice; choose one of alpaca, bundled, gsm8k, ")
