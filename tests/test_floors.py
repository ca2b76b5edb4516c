"""The floors of the package: which folders each folder may import, read from the source without running it.

    core < models < drafters, data < decoding < tracking < modules < app

A package imports itself and the packages left of it, except that data knows neither drafters nor decoding, nor they it.
Only models knows transformers, core imports only torch and numerics, and the package's own `__init__` nothing: the
names that it offers are imported when they are asked for, and for type checkers.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdraft

ROOT = Path(selfdraft.__file__).parent

LOWER: dict[str, set[str]] = {"core": set()}
LOWER["models"] = {"core"}
LOWER["drafters"] = LOWER["data"] = {"core", "models"}
LOWER["decoding"] = {"core", "models", "drafters"}
LOWER["tracking"] = {"core", "models", "drafters", "decoding", "data"}
LOWER["modules"] = LOWER["tracking"] | {"tracking"}
LOWER["app"] = LOWER["modules"] | {"modules"}

CORE_STANDS_ON = {"torch", "numpy", "scipy", "selfdraft", "typing_extensions"} | set(sys.stdlib_module_names)


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that `source` imports, inside functions and for type checking too."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            parts = [*parts, node.module] if node.module else parts
            # `from selfdraft import app` imports selfdraft.app: the name counts, not only the package.
            yield from ((node.lineno, ".".join([*parts, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def for_type_checkers(source: str) -> set[int]:
    """The lines of `if TYPE_CHECKING:` blocks."""
    blocks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    found = [node for node in blocks if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"]
    return {line for node in found for line in range(node.lineno, node.body[-1].lineno + 1)}


def complaints(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of `module` (such as `selfdraft.core.tree`) that are not allowed."""
    parts = module.split(".")
    floor = parts[1] if len(parts) > 1 else ""
    # `python -m selfdraft` stands above all floors.
    allowed = set(LOWER) if floor == "__main__" else LOWER.get(floor, set()) | {floor}
    found = []
    unseen = for_type_checkers(source) if module == "selfdraft" else set()
    for line, name in imported(source, module, is_package):
        if line in unseen:
            continue
        top, *rest = name.split(".")
        if top == "selfdraft" and rest and rest[0] in LOWER and rest[0] not in allowed:
            found.append(f"{module}:{line} imports {name}, but {floor or 'the package itself'} is below {rest[0]}")
        if top == "transformers" and floor != "models":
            found.append(f"{module}:{line} imports {name}, but only models may know transformers")
        if floor == "core" and top not in CORE_STANDS_ON:
            found.append(f"{module}:{line} imports {name}, but core imports torch, numpy and scipy only")
    return found


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_every_folder_has_a_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == set(LOWER)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_floor_imports_upward(path: Path) -> None:
    is_package = path.name == "__init__.py"
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(("selfdraft", *(parts[:-1] if is_package else parts)))
    assert complaints(path.read_text(encoding="utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("selfdraft.core.tree", "from selfdraft.models.target import Target"),
        ("selfdraft.core.tree", "def later():\n    import selfdraft.app.tasks"),
        ("selfdraft.core.tree", "from ..models import target"),
        ("selfdraft.core.tree", "from .. import models"),
        ("selfdraft.core.tree", "import pandas"),
        ("selfdraft.drafters.jacobi", "from selfdraft import decoding"),
        ("selfdraft.drafters.jacobi", "from transformers.cache_utils import DynamicCache"),
        ("selfdraft.drafters.jacobi", "import importlib\nimportlib.import_module('transformers')"),
        ("selfdraft.drafters.jacobi", "if TYPE_CHECKING:\n    from selfdraft.data import prompts"),
        ("selfdraft.tracking.wandb", "from ..modules.evaluate import Evaluate"),
        ("selfdraft.modules.evaluate", "from selfdraft.app import build"),
        ("selfdraft", "from selfdraft.core import tree"),
        ("selfdraft", "from .core import tree"),
        ("selfdraft", "if TYPE_CHECKING:\n    from .core import blocks\nelse:\n    from .core import tree"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, planted: str) -> None:
    assert len(complaints(planted, module, is_package=module == "selfdraft")) == 1


@pytest.mark.parametrize(
    ("module", "fine"),
    [
        ("selfdraft.core.tree", "import math\nimport torch\nfrom scipy import stats\nfrom . import errors"),
        ("selfdraft.models.target", "from transformers import AutoModelForCausalLM\nfrom ..core.tree import Tree"),
        ("selfdraft.decoding.loop", "from selfdraft.drafters.base import Drafter"),
        ("selfdraft.modules.evaluate", "from selfdraft.tracking import atomic\nimport selfdraft"),
        ("selfdraft.app.build", "from selfdraft.modules.evaluate import Evaluate\nfrom selfdraft import __version__"),
        ("selfdraft", "if TYPE_CHECKING:\n    from selfdraft.app.drafting import Drafting"),
    ],
)
def test_downward_imports_are_allowed(module: str, fine: str) -> None:
    assert complaints(fine, module) == []


def circles(folder: Path) -> list[list[str]]:
    """Groups of a folder's files and folders that import each other in a circle, also in functions and for types."""
    prefix = ".".join(("selfdraft", *folder.relative_to(ROOT).parts))
    units: dict[str, list[Path]] = {}
    for path in folder.rglob("*.py"):
        if path.name != "__init__.py":
            units.setdefault(f"{prefix}.{path.relative_to(folder).with_suffix('').parts[0]}", []).append(path)
    graph: dict[str, set[str]] = {}
    for unit, files in units.items():
        names = {
            name
            for file in files
            for _, name in imported(
                file.read_text(encoding="utf-8"),
                f"selfdraft.{'.'.join(file.relative_to(ROOT).with_suffix('').parts)}",
                False,
            )
        }
        graph[unit] = {
            other
            for other in units
            for name in names
            if other != unit and (name == other or name.startswith(f"{other}."))
        }
    while free := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in free:
            del graph[module]
    return [sorted(graph)] if graph else []


FOLDERS = sorted(folder for folder in ROOT.rglob("*") if folder.is_dir() and any(folder.glob("*.py")))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_there_are_no_import_cycles(folder: Path) -> None:
    assert circles(folder) == []


def test_a_planted_import_cycle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "one.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from selfdraft.models import two\n"
    )
    (folder / "two.py").write_text("def late():\n    from selfdraft.models.one import thing\n")
    (folder / "three.py").write_text("from selfdraft.models.two import other\n")
    (folder / "four.py").write_text("import torch\n")
    assert circles(folder) == [["selfdraft.models.one", "selfdraft.models.three", "selfdraft.models.two"]]


def test_a_planted_cycle_of_folders_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name, imports in (("a/x", "b.y"), ("b/y", "core.z"), ("b/w", "a.x")):
        file = tmp_path / "models" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"import selfdraft.models.{imports}\n")
    assert circles(tmp_path / "models") == [["selfdraft.models.a", "selfdraft.models.b"]]
