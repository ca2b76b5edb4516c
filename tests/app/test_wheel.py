"""A wheel: it has conf/ and the command `selfdraft`, which runs from any folder without a checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from command_line import CONF, ROOT, SMALLEST, environment
from selfdraft.app.main import conf_folder, with_config_path
from selfdraft.app.terminal.help import EXAMPLES

PAGE = ROOT / "src" / "selfdraft" / "tracking" / "report" / "page"
SOURCE = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "run.py")


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the checkout, because building writes into the folder."""
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml requires; nothing is downloaded here
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        shutil.copy(ROOT / name, source)
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def selfdraft(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed into an environment that has this one's libraries and not the checkout."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # .pth files there are not read
    pip("install", "--no-deps", "--no-index", "--ignore-installed", wheel, python=folder / "bin" / "python")
    return folder / "bin" / "selfdraft"


@dataclass(frozen=True)
class Done:
    """A command that has succeeded: what it printed, and the folder it was called in."""

    out: str
    folder: Path


@pytest.fixture(scope="module")
def done(selfdraft: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Two commands, at the same time: most of their time is that of their imports."""
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    commands = {"sweep": ["-m", *SMALLEST, "logger=none", "seed=3", "hydra.sweep.dir=swept"], "help": ["--help"]}
    folders = {name: tmp_path_factory.mktemp(name) for name in commands}
    running = {
        name: subprocess.Popen(
            [selfdraft, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folders[name],
            env=env,
        )
        for name, arguments in commands.items()
    }
    said = {name: process.communicate(timeout=120)[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == dict.fromkeys(commands, 0), said
    return {name: Done(said[name], folders[name]) for name in commands}


@pytest.mark.slow
def test_a_wheel_has_the_whole_of_conf_and_the_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name.removeprefix("selfdraft/conf/") for name in names if name.startswith("selfdraft/conf/")}
    assert packed == {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_file()}
    assert {
        "selfdraft/data/bundled.jsonl",
        "hydra_plugins/selfdraft.py",
        "selfdraft/__main__.py",
        "selfdraft/py.typed",
        *(f"selfdraft/tracking/report/page/{path.name}" for path in PAGE.iterdir()),
    } <= set(names)
    assert not [name for name in names if name.startswith(("conf/", "run.py", "setup.py"))]


@pytest.mark.slow
def test_the_installed_command_runs_from_any_folder(done: dict[str, Done]) -> None:
    """A sweep's job is a run, in a process that the command starts by itself."""
    swept = done["sweep"].folder / "swept"
    assert pd.read_csv(swept / "sweep.csv")["status"].tolist() == ["completed"]
    (job,) = (path.parent for path in swept.glob("*/result.json"))
    assert json.loads((job / "result.json").read_text())["lossless"]["mismatch"] == 0
    where = json.loads((job / "environment.json").read_text())
    assert where["command"].startswith("selfdraft experiment=smoke ")
    assert where["git"] is None  # the package is not the checkout's


@pytest.mark.slow
def test_the_installed_command_helps_from_any_folder(done: dict[str, Done]) -> None:
    said = [line.strip() for line in done["help"].out.splitlines()]
    examples = [line.replace("python run.py", "selfdraft").rstrip() for line in EXAMPLES.splitlines()]
    assert [line for line in said if line in examples] == examples
    assert "run.py" not in done["help"].out
    assert list(done["help"].folder.iterdir()) == []


def test_in_a_checkout_the_folder_at_its_top_is_taken() -> None:
    assert conf_folder() == CONF


def test_a_relative_config_path_is_taken_from_the_working_directory() -> None:
    here = Path.cwd()
    for given, taken in (
        (["--config-path=mine", "seed=1"], [f"--config-path={here}/mine", "seed=1"]),
        (["--config-path", "mine", "-m"], ["--config-path", f"{here}/mine", "-m"]),
        (["-cp", "/mine"], ["-cp", "/mine"]),
        (["-cp=pkg://mine", "prompt=--config-path=x"], ["-cp=pkg://mine", "prompt=--config-path=x"]),
        (["seed=1", "--config-path"], ["seed=1", "--config-path"]),
    ):
        assert with_config_path(given) == taken
