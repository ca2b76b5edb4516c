"""Every option is described once, where it is declared; comments in conf/ and `--help` are copies of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from command_line import CONF
from selfdraft.app.options.option_help import (
    HOW_TO_REWRITE,
    commented,
    main,
    rewritten,
    schema_of,
)
from selfdraft.app.options.schemas import SCHEMAS, Config
from selfdraft.app.terminal.help import WIDTH, head_of
from selfdraft.app.terminal.option_index import FILE
from selfdraft.core.options import Options, choice_name, helps_of, option, redefault

FILES = sorted(CONF.rglob("*.yaml"))
CLASSES = [Config, *(schema for schemas in SCHEMAS.values() for schema in schemas)]
UNDESCRIBED = {"defaults"}  # Hydra's own


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    """What the files in conf/ should contain."""
    return rewritten(CONF)


def own_fields(schema: type[Options]) -> Iterator[tuple[str, dict]]:
    """The options of a class, each with its metadata; its groups are no options."""
    types = get_type_hints(schema)
    for f in fields(schema):
        if not is_dataclass(types[f.name]) and f.name not in UNDESCRIBED:
            yield f.name, dict(f.metadata)


@pytest.mark.parametrize("schema", CLASSES, ids=lambda schema: schema.__name__)
def test_every_option_has_a_description_that_names_its_choices(schema: type[Options]) -> None:
    for name, metadata in own_fields(schema):
        text = metadata.get("help", "")
        assert text.strip(), f"{schema.__name__}.{name} has no help"
        assert text == " ".join(text.split()) and not text.endswith("."), f"{schema.__name__}.{name}: {text!r}"
        if name != "name":
            assert [choice for choice in metadata["choices"] or () if str(choice) not in text] == [], name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_the_comments_of_a_yaml_are_the_descriptions_of_its_options(file: Path, texts: dict[Path, str]) -> None:
    wanted = texts.get(file)
    if wanted is None:  # it sets options of other files, and only its head is a comment
        assert file.parent.name in {"experiment", "hparams"}
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if "#" in line]
        assert all(line.startswith("#") for line in comments)
        return
    assert file.read_text(encoding="utf-8") == wanted, f"run {HOW_TO_REWRITE}"


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != CONF], ids=lambda f: f.relative_to(CONF).as_posix())
def test_a_yaml_has_a_head_and_no_other_comments(file: Path) -> None:
    assert head_of(file)
    schema = schema_of(file)
    described = "" if schema is None else " ".join(helps_of(schema).values())
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for comment in (line.partition("# ")[2] for line in lines if "#" in line):
        assert comment in described


def test_a_preset_has_the_options_of_the_choice_it_begins_with() -> None:
    assert schema_of(CONF / "drafter" / "swift.yaml").__name__ == "ChainConfig"
    assert schema_of(CONF / "drafter" / "path" / "swift.yaml").__name__ == "SwiftConfig"
    assert schema_of(CONF / "config.yaml") is Config
    assert schema_of(CONF / "experiment" / "smoke.yaml") is None


@dataclass
class Some(Options):
    name: str = choice_name("some")
    size: int = option(8, at_least=1, help="number of things")
    long: str = option("x", help=" ".join(["many words"] * 20))


def test_comments_are_written_beside_the_values_in_one_column_and_wrapped() -> None:
    old = ["size: 8 # old", "# Between:", "long: 'a#b'   # older", "             # rest", "other: 1"]
    text = "\n".join(["# Head.", "# More.", "defaults: [a]", "", *old])
    out = commented(text, helps_of(Some)).splitlines()
    assert out[:5] == ["# Head.", "# More.", "defaults: [a]", "", "size: 8       # number of things"]
    assert out[5].startswith("long: 'a#b'   # many words many") and out[6].startswith(f"{'':<14}# ")
    assert out[-1] == "other: 1"
    assert max(map(len, out)) <= WIDTH
    described = " ".join(line.partition("# ")[2] for line in out[5:-1])
    assert described == helps_of(Some)["long"]
    assert commented("\n".join(out), helps_of(Some)).splitlines() == out


def test_the_command_rewrites_what_differs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "path" / "full.yaml"
    file.parent.mkdir()
    (tmp_path / "config.yaml").write_text((CONF / "config.yaml").read_text())
    file.write_text("# All.\ndefaults: [schema/LayerSkipConfig@_here_]\n\nsparsity: 0.2\n")
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"rewritten: {file}\nrewritten: {tmp_path / FILE}\n"
    assert "sparsity: 0.2   # share of the sublayers" in file.read_text()
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_not_conf_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("mine: 1  # a comment\n")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"option_help: {tmp_path} has no config.yaml: give the folder conf of SelfDraft\n"
    assert (tmp_path / "own.yaml").read_text() == "mine: 1  # a comment\n"


def test_another_default_keeps_range_and_description() -> None:
    @dataclass
    class Other(Some):
        size: int = redefault(Some, "size", 3)

    assert Other().size == 3
    assert helps_of(Other) == helps_of(Some)
    with pytest.raises(Exception, match="size=0: must be at least 1"):
        Other(size=0)
