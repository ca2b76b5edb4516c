"""CONTRIBUTING.md: its two worked examples run as printed, and change no text."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import asdict
from types import ModuleType

import pytest
import yaml

import lossless
from command_line import ROOT
from made import made
from selfdraft.app.options.option_help import commented
from selfdraft.core.options import Options, helps_of
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import PRESETS, Preset, configured
from subjects import subject

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST_LINES = 40  # of code: a new drafter is short, or the design has a fault
BATCHES = (1, 2, 5)


def block_after(file: str, language: str) -> str:
    """The first block of a language after the place where the page names the file that holds it."""
    assert f"`{file}`" in TEXT
    _, _, rest = TEXT.partition(f"`{file}`")
    found = re.search(rf"^```{language}\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor part of a docstring."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            compound = getattr(node, "body", None)
            end = compound[0].lineno - 1 if compound else node.end_lineno
            found |= set(range(node.lineno, max(end, node.lineno) + 1))
            found |= {decorator.lineno for decorator in getattr(node, "decorator_list", [])}
    return len(found)


def executed(file: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the page shows, under the name that the file would give it."""
    source = block_after(file, "python")
    assert lines_of_code(source) <= MOST_LINES
    name = file.removeprefix("src/").removesuffix(".py").replace("/", ".")
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, f"CONTRIBUTING.md: {file}", "exec"), module.__dict__)
    return module


def line_for(file: str, table: str, module: ModuleType) -> dict:
    """The entry that the page adds to a table of a file."""
    (cell,) = re.findall(rf"^\| `{re.escape(file)}`, `{table}` \| `(.+)` \|$", section_of(module), re.MULTILINE)
    return eval("{" + cell + "}", {"configured": configured, "Preset": Preset, **module.__dict__})


def section_of(module: ModuleType) -> str:
    """The section that shows the module."""
    name = module.__name__.rpartition(".")[2]
    (found,) = (section for section in TEXT.split("\n## ") if f"/{name}.py`" in section)
    return found


def shown_options(file: str, config: type[Options]) -> dict:
    """The options of a YAML of the page, which names the schema and has the descriptions as comments."""
    text = block_after(file, "yaml")
    assert text == commented(text, helps_of(config))
    plain = yaml.safe_load(text)
    assert plain.pop("defaults") == [f"schema/{config.__name__}@_here_"]
    return plain


def check(configs: list[DrafterConfig]) -> None:
    """Drafts are accepted now and then, and the text is the stock model's in every batch."""
    model = subject("llama", 2, True)
    for config in configs:
        for size in BATCHES:
            runs = model.decode(made(model.target, config), size)
            assert [run.output for run in runs] == model.expected, (config, size)
            offered, accepted = (sum(sum(getattr(r.counts, name)) for r in runs) for name in ("offered", "accepted"))
            assert 0 < accepted < offered, (config, size)


@pytest.mark.slow
def test_a_new_way_to_propose(monkeypatch: pytest.MonkeyPatch) -> None:
    module = executed("src/selfdraft/drafters/bigram.py", monkeypatch)
    for file, name, table in (
        ("drafters/__init__.py", "PROPOSALS", PROPOSALS),
        ("drafters/presets.py", "PRESETS", PRESETS),
    ):
        for key, value in line_for(file, name, module).items():
            assert key not in table
            monkeypatch.setitem(table, key, value)
    rows = line_for("tests/lossless.py", "LOSSLESS", module)
    assert lossless.complaints(lossless.LOSSLESS, {"bigram"}) == ["'bigram' has no entry in LOSSLESS"]
    assert lossless.complaints({**lossless.LOSSLESS, **rows}, {*lossless.TRIED, "bigram"}) == []
    options = shown_options("conf/drafter/bigram.yaml", module.BigramConfig)
    assert {"name": "bigram", **options} == asdict(configured("bigram"))
    check(rows["bigram"])


@pytest.mark.slow
def test_a_new_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = executed("src/selfdraft/drafters/paths/ladder.py", monkeypatch)
    for key, value in line_for("drafters/paths/__init__.py", "PATHS", module).items():
        assert key not in PATHS
        monkeypatch.setitem(PATHS, key, value)
    rows = line_for("tests/lossless.py", "LOSSLESS", module)
    assert lossless.complaints(lossless.LOSSLESS, {"ladder"}) == ["'ladder' has no entry in LOSSLESS"]
    assert lossless.complaints({**lossless.LOSSLESS, **rows}, {*lossless.TRIED, "ladder"}) == []
    options = shown_options("conf/drafter/path/ladder.yaml", module.LadderConfig)
    assert {"name": "ladder", **options} == asdict(module.LadderConfig())
    check(rows["ladder"])
    check([configured("jacobi", path="ladder"), configured("pool", path="ladder", costs="flat")])


def test_code_lines_exclude_docstrings_and_blank_lines() -> None:
    source = (
        '"""About."""\n\nimport ast\n\n\nclass A:\n    """What.\n\n    More.\n    """\n\n    x = [\n        1,\n    ]\n'
    )
    assert lines_of_code(source) == 1 + 1 + 3
    assert lines_of_code("@f\ndef g(\n    a,\n):\n    if a:\n        return 1\n    return 2\n") == 7
