"""`selfdraft.Drafting`: artifacts, and the cache of costs, which is asked instead of measuring."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import selfdraft
from command_line import environment
from forked import run_forked
from made import measure_once
from selfdraft import Drafting
from selfdraft.app import drafting as face
from selfdraft.core.errors import UserError
from selfdraft.decoding import custom_generate
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring import profiling
from selfdraft.tracking.files import cost_cache
from selfdraft.tracking.files.artifact import Artifact

PROMPT = torch.tensor([[5, 17, 3, 60, 44, 9, 5, 17, 3]])
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def ours(drafting: custom_generate.Drafting, model: PreTrainedModel) -> list[int]:
    return model.generate(PROMPT, custom_generate=drafting, **GREEDY)[0].tolist()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cost files; nothing is in it."""
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "costs"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for every curve that is measured, in one round each."""
    lines: list[str] = []
    measure = profiling.measure_costs

    def noted(target, *, path=None, **options):
        lines.append("full" if path is None else "path")
        return measure(target, path=path, **options)

    monkeypatch.setattr(profiling, "measure_costs", noted)
    monkeypatch.setattr(cost_cache, "crowded", lambda *_: False)  # as tests do run beside each other
    measure_once(monkeypatch)
    return lines


# The package.


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, selfdraft; print(dir(selfdraft)); print({'torch', 'transformers', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    names, heavy = done.stdout.splitlines()
    assert "'Drafting'" in names and heavy == "set()"
    assert selfdraft.Drafting is face.Drafting


def test_the_package_has_no_other_names() -> None:
    assert set(selfdraft.__all__) <= set(dir(selfdraft))
    with pytest.raises(AttributeError, match="has no attribute 'drafting'"):
        selfdraft.drafting  # noqa: B018


# Artifacts.


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    def write(model: PreTrainedModel, drafter: str = "layer_skip", **options: object) -> Path:
        path = tmp_path / "run" / "drafter.yaml"
        path.parent.mkdir(exist_ok=True)
        of = {"label": "tiny llama", "dtype": "float32", "fingerprint": fingerprint(model)}
        Artifact(drafter, options, of, {}, []).write(path)
        return path

    return write


@pytest.mark.parametrize("given", ["file", "folder", "text"])
def test_an_artifact_gives_drafter_and_options(artifact: Callable[..., Path], cache: Path, given: str) -> None:
    model = tiny_model()
    path = artifact(model, skip_mlp=[1], draft_length=3)
    drafting = Drafting.from_artifact({"file": path, "folder": path.parent, "text": str(path)}[given])
    assert type(drafting) is Drafting
    assert (drafting.config.name, drafting.config.draft_length, drafting.config.path.skip_mlp) == ("chain", 3, [1])
    assert ours(drafting, model) == model.generate(PROMPT, **GREEDY)[0].tolist()
    assert drafting.last.new_tokens == 6 and drafting.last.offered


def test_options_take_the_place_of_the_artifact_s(artifact: Callable[..., Path]) -> None:
    path = artifact(tiny_model(), skip_mlp=[1], draft_length=3)
    drafting = Drafting.from_artifact(path, draft_length=5, engine="auto", packed=False)
    assert (drafting.config.draft_length, drafting.config.path.skip_mlp) == (5, [1])
    assert (drafting.engine, drafting.packed) == ("auto", False)


def test_another_model_is_refused(artifact: Callable[..., Path], cache: Path) -> None:
    drafting = Drafting.from_artifact(artifact(tiny_model(), skip_mlp=[1]))
    with pytest.raises(UserError, match=r"run/drafter.yaml was made for tiny llama .*, but this model is llama \("):
        ours(drafting, tiny_model(seed=1))
    ours(drafting, tiny_model())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nowhere", "nowhere: No such file or directory; give the drafter.yaml that task=calibrate"),
        ("torn.yaml", "it does not hold drafter, options"),
    ],
)
def test_what_is_no_artifact_is_one_line(tmp_path: Path, given: str, says: str) -> None:
    (tmp_path / "torn.yaml").write_text("drafter: layer_skip\n")
    with pytest.raises(UserError, match=says) as caught:
        Drafting.from_artifact(tmp_path / given)
    assert str(caught.value).startswith("Drafting.from_artifact=") and "\n" not in str(caught.value)


# The cache of costs.


def test_a_second_object_does_not_measure(cache: Path, measured: list[str]) -> None:
    text = ours(Drafting("jacobi"), tiny_model())
    assert measured == ["full"]
    assert ours(Drafting("pool"), tiny_model(seed=1)) != text  # other weights of the same shape cost the same
    assert measured == ["full"]
    (file,) = cache.iterdir()
    found = json.loads(file.read_text())
    assert found["key"]["dtype"] == "float32" and found["key"]["threads"] == torch.get_num_threads()
    assert list(found["curves"]) == ["full"]


def test_the_curve_that_is_read_is_the_one_that_was_measured(cache: Path, measured: list[str]) -> None:
    one, two = Drafting("jacobi"), Drafting("jacobi")
    for drafting in (one, two):
        ours(drafting, tiny_model())
    assert one._prepared.drafter.curve == two._prepared.drafter.curve


def test_curves_of_paths_are_kept_by_the_drafter_s_options(cache: Path, measured: list[str]) -> None:
    def call(**options: object) -> list[str]:
        measured.clear()
        ours(Drafting("layer_skip", length="gain", **options), tiny_model())
        return sorted(measured)

    assert call(skip_mlp=[1]) == ["full", "path", "path"]  # its own, and the layers after the draft's
    assert call(skip_mlp=[1]) == []
    assert "path" in call(skip_mlp=[1, 2])
    assert call(skip_mlp=[1]) == call(skip_mlp=[1, 2]) == []


@pytest.mark.parametrize("change", ["dtype", "threads", "packed", "layers", "revision"])
def test_other_circumstances_are_measured_anew(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    ours(Drafting("jacobi"), tiny_model())
    drafting, model = Drafting("jacobi", packed=change != "packed"), tiny_model()
    if change == "dtype":
        model = model.to(torch.bfloat16)
    elif change == "layers":
        model = tiny_model(num_hidden_layers=3)
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "revision":
        monkeypatch.setattr(cost_cache, "REVISION", 0)
    ours(drafting, model)
    assert measured == ["full", "full"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"key"',
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"key": KEY, "curves": []}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": [1]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": [2, 1]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": [0.1, NaN]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": [0, 0.1]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": ["a", "b"]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": [1, 2], "seconds": [0.1, 1e999]}}}',
        b'{"key": KEY, "curves": {"full": {"sizes": 1, "seconds": 2}}}',
        b'{"key": {}, "curves": {"full": {"sizes": [1, 2], "seconds": [0.1, 0.2]}}}',
    ],
)
def test_a_malformed_file_is_measured_again_and_replaced(cache: Path, measured: list[str], content: bytes) -> None:
    model = tiny_model()
    text = ours(Drafting("jacobi"), model)
    (file,) = cache.iterdir()
    sound = json.loads(file.read_text())
    file.write_bytes(content.replace(b"KEY", json.dumps(sound["key"]).encode()))
    assert ours(Drafting("jacobi"), model) == text
    assert measured == ["full", "full"]
    assert json.loads(file.read_text())["key"] == sound["key"]
    ours(Drafting("jacobi"), model)
    assert measured == ["full", "full"]


@pytest.mark.parametrize("place", ["a file", "no home", "null byte", "folder in its place"])
def test_a_cache_that_cannot_be_used_fails_no_call(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    model = tiny_model()
    text = ours(Drafting("jacobi"), model)
    if place == "a file":  # as good as a folder without permission, also for root
        (tmp_path / "file").touch()
        monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "file"))
    elif place == "no home":
        monkeypatch.setenv("SELFDRAFT_CACHE", "~nobody_of_this_name/cache")
    elif place == "null byte":
        monkeypatch.setattr(cost_cache, "cache_folder", lambda: Path("a\0b"))
    else:
        (file,) = cache.iterdir()
        file.unlink()
        file.mkdir()
    for _ in range(2):
        assert ours(Drafting("jacobi"), model) == text
    assert measured == ["full"] * 3


def test_the_file_does_not_grow_for_ever(cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_cache, "MAX_CURVES", 3)
    kept, curve = cost_cache.CostCache({"model": "m"}), profiling.CostCurve((1, 2), (0.1, 0.2))
    for name in "abcde":
        assert kept.write(name, curve)
    assert [kept.read(name) == curve for name in "abcde"] == [False, False, True, True, True]
    assert cost_cache.CostCache({"model": "n"}).read("e") is None


def test_costs_of_a_busy_machine_are_used_and_not_kept(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_cache, "crowded", lambda *_: True)
    for _ in range(2):
        ours(Drafting("jacobi"), tiny_model())
    assert measured == ["full", "full"] and not cache.exists()


@pytest.mark.parametrize(
    ("wall", "busy", "own", "cores", "expected"),
    [
        (1.0, 2.0, 2.0, 2, False),  # nobody else
        (1.0, 2.0, 1.2, 2, True),
        (1.0, 1.5, 1.0, 2, False),  # half a core was free
        (1.0, 30.0, 2.0, 64, False),  # others, on cores of their own
        (1.0, 63.0, 2.0, 64, True),
        (1.0, 2.0, 1.92, 2, False),  # hardly anybody
        (0.05, 0.1, 0.06, 2, False),  # the system counts in hundredths of a second
    ],
)
def test_a_machine_is_crowded_if_others_run_and_no_core_is_free(
    wall: float, busy: float, own: float, cores: int, expected: bool
) -> None:
    assert cost_cache.crowded(wall, busy, own, cores) is expected


def test_the_clocks_tell_own_time_from_that_of_others() -> None:
    before = cost_cache._clocks()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    wall, busy, own = (now - then for now, then in zip(cost_cache._clocks(), before, strict=True))
    assert 0.1 <= own < 0.2 and wall >= 0.09 and busy >= own - 0.03


@pytest.mark.slow
def test_a_second_process_does_not_measure(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch; from selfdraft import Drafting; from selfdraft.models.measuring import profiling; "
        "from selfdraft.tracking.files import cost_cache; cost_cache.crowded = lambda *_: False; "
        "from selfdraft.models.loading.tiny import tiny_model; measure = profiling.measure_costs; "
        "profiling.measure_costs = lambda *a, **k: (print('measured'), measure(*a, **k))[1]; "
        "tiny_model().generate(torch.tensor([[5, 17, 3]]), custom_generate=Drafting('jacobi'), max_new_tokens=2)"
    )
    said = []
    for _ in range(2):
        done = run_forked(script, [], cwd=tmp_path, env=environment(), timeout=120)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said == [["measured"], []]
    shutil.rmtree(cache)


def test_long_measuring_is_told_once(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(face, "PATIENCE_S", 0.0)
    for _ in range(2):
        ours(Drafting("layer_skip", length="gain", skip_mlp=[1]), tiny_model())
    assert len(measured) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"selfdraft: measuring what forwards cost here; kept in {cache} for the next time, unless")


def test_short_measuring_is_not_told(cache: Path, measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ours(Drafting("jacobi"), tiny_model())
    assert measured and capsys.readouterr() == ("", "")
