import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selfdraft
from selfdraft.tracking.files import environment


def test_the_environment_has_versions_processor_and_commit():
    found = environment.describe_environment("cpu")
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["selfdraft"] == selfdraft.__version__
    assert {"python", "transformers", "pytorch-lightning"} <= found["versions"].keys()
    assert found["cpu"]["name"]
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["cores"] >= found["cpu"]["cores_usable"] >= 1
    assert found["memory_gb"] > 0.5
    assert found["gpu"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_environment_names_the_gpu():
    assert environment.describe_environment("cuda")["gpu"]["name"] == torch.cuda.get_device_name()


def fake_package(monkeypatch, folder: Path) -> Path:
    folder.mkdir(parents=True)
    source = folder / "__init__.py"
    source.write_text("")
    monkeypatch.setattr(environment.selfdraft, "__file__", str(source))
    return source


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_package_itself(tmp_path, monkeypatch):
    source = fake_package(monkeypatch, tmp_path / "package")
    git(tmp_path, "init")
    assert environment._git() is None  # in a checkout, but not part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = environment._git()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    source.write_text("changed = True\n")
    assert environment._git() == clean | {"dirty": True}


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    fake_package(monkeypatch, tmp_path / "package")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._git() is None


def test_the_command_does_not_show_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    command = environment._command(["/home/someone/code/run.py", "model.path=/home/someone/m", "prompt=two words"])
    assert command == "python run.py model.path=~/m 'prompt=two words'"
    for script, start in (
        ("/venv/bin/selfdraft", "selfdraft"),
        ("/venv/lib/selfdraft/__main__.py", "python -m selfdraft"),
        ("/home/someone/scripts/paired.py", "python paired.py"),
    ):
        assert environment._command([script, "seed=1"]) == f"{start} seed=1"


@pytest.mark.parametrize("home", ["/", None])
def test_without_a_home_the_command_stays_as_it_is(monkeypatch, home):
    """`~` is then no folder, or the root of all paths."""
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # a user id without a name, as in containers
    else:
        monkeypatch.setenv("HOME", home)
    assert environment._command(["/code/run.py", "model.path=/m/n"]) == "python run.py model.path=/m/n"


@pytest.mark.slow
def test_a_locale_without_utf_8_does_no_harm():
    code = "from selfdraft.tracking.files.environment import describe_environment as d; print(len(ascii(d())) > 100)"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
