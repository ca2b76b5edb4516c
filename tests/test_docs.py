"""README and docs/: every command composes, every link has a target, and every drafter is named."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from command_line import CONF, ROOT
from selfdraft.app.options.typed_config import to_config
from selfdraft.drafters import PATHS
from selfdraft.drafters.presets import PRESETS
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

README = ROOT / "README.md"
PACKAGE = ROOT / "src" / "selfdraft"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINES = 120  # of README: what does not fit belongs in docs/

FOLDERS = ("src", "scripts", "tests", "experiments")
SOURCES = {"run.py", "setup.py"} | {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
EXAMPLES = {"bigram.py", "ladder.py"}  # CONTRIBUTING.md shows them in full: see test_contributing.py
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIABLE = re.compile(r'(\w+)="(.*)"')
ELSEWHERE = ("drafter.from=", "prompt=", "hydra.", "hydra/")  # these are handled before the configuration is composed


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    return (text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks: variables replaced, placeholders filled in."""
    for block in blocks(page, "bash"):
        variables = {"F": "prompts.jsonl"}
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\$(\w+)", lambda found: variables[found[1]], line)  # noqa: B023 (used in this round only)
            if set_here := VARIABLE.fullmatch(line):
                variables[set_here[1]] = set_here[2]
            elif words := shlex.split(re.sub(r"<[^<>]+>", "somewhere", line), comments=True):
                yield words


def overrides(words: list[str]) -> list[str]:
    """The overrides of a command; of a sweep, those of its first job."""
    given = [word for word in words if "=" in word and not word.startswith(ELSEWHERE)]
    return [word.partition(",")[0] if "-m" in words else word for word in given]


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = [words for page in PAGES for words in commands(page)]
RUNS = sorted({tuple(overrides(words)) for words in COMMANDS if words[:2] == ["python", "run.py"]})


@pytest.fixture(scope="module")
def conf() -> Iterator[None]:
    """Hydra, initialised once for all commands."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.slow  # a third of a second each, some seventy of them
@pytest.mark.parametrize("given", RUNS, ids=" ".join)
def test_every_command_composes(given: tuple[str, ...], conf: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    to_config(compose("config", list(given)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_targets_of_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        elif words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words
    assert set(re.findall(r"\b(\w+\.py)\b(?=[ `])", page.read_text(encoding="utf-8"))) <= SOURCES | EXAMPLES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_existing_targets(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_can_be_parsed(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "commands.md"], ids=lambda page: page.name)
def test_python_blocks_run_as_they_are(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but a model and its tokenizer; CONTRIBUTING.md's are run by test_contributing.py."""
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path))
    tokenizer = tiny_tokenizer()
    given = {"model": tiny_model(vocab_size=len(tokenizer)), "tokenizer": tokenizer}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), dict(given))


def test_readme_is_one_page_and_names_every_drafter() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert [name for name in PRESETS if f"`{name}`" not in text] == []


def test_the_commands_name_every_path() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in PATHS if f"`{name}`" not in text] == []


def test_the_files_in_the_tree_exist() -> None:
    tree = next(text for text in blocks(ROOT / "docs" / "architecture.md", "") if text.startswith("run.py"))
    named = set(re.findall(r"\b\w+\.py\b", tree))
    assert len(named) > 80
    assert named <= SOURCES


def test_modules_that_docstrings_name_exist() -> None:
    # `decoding.` also begins the names of options, as a folder of conf/ does.
    floors = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists() and not (CONF / path.name).exists()]
    named = re.compile(rf"`(?:{'|'.join(floor.name for floor in floors)})(?:\.\w+)+")
    found = {
        (path.relative_to(ROOT), name[1:])
        for folder in (ROOT / "src", ROOT / "tests")
        for path in folder.rglob("*.py")
        for name in named.findall(path.read_text(encoding="utf-8"))
    }
    assert len(found) > 20
    assert [each for each in sorted(found) if not _is_in_a_module(each[1])] == []


def _is_in_a_module(name: str) -> bool:
    """Whether a dotted name is that of a module or a folder of the package, or of something in a module."""
    parts = name.split(".")
    modules = (PACKAGE.joinpath(*parts[:count]).with_suffix(".py") for count in range(2, len(parts) + 1))
    return PACKAGE.joinpath(*parts).is_dir() or any(module.exists() for module in modules)
