"""Other engines: their processes are started, asked, and may die. The engine here is a script of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.models.reference import others
from selfdraft.models.reference.others import ENGINES, OTHERS, Engine, OtherEngine
from selfdraft.models.reference.stock import OTHER_VALUES, SAME_VALUES

SCRIPT = """
import os, sys

def load(settings):
    assert settings["source"].endswith("a.gguf") and settings["extra"] == "yes" and not settings["lookup"]
    print("a library that talks")

    def answer(ids):
        if ids == [13]:
            sys.stderr.write("first\\nout of luck\\n")
            sys.exit(1)
        if ids == [9]:
            os.kill(os.getpid(), 9)
        if ids == [7]:
            sys.stderr.write("warning\\n" * 100_000)  # more than a pipe holds
            os.close(0)
        held = bytearray(ids[0] * 10**6)
        held[::4096] = bytes(len(held[::4096]))  # every page of it is touched
        return [i + 1 for i in ids][: settings["tokens"]], 0.0

    return answer
"""


def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str = SCRIPT, weights: str = OTHER_VALUES
) -> OtherEngine:
    (tmp_path / "engine.py").write_text(script)
    monkeypatch.setattr(others, "CHILDREN", tmp_path)
    monkeypatch.setitem(ENGINES, "made_up", Engine("engine.py", "made-up"))
    return OtherEngine(
        "made_up",
        tmp_path / "a.gguf",
        max_new_tokens=3,
        positions=9,
        eos=[2],
        threads=1,
        weights=weights,
        settings={"extra": "yes"},
    )


def test_ids_go_in_and_come_out_with_its_own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(tmp_path, monkeypatch, weights=SAME_VALUES)
    for prompt, output in (([5, 6], [6, 7]), ([1, 2, 3, 4], [2, 3, 4])):
        answer = engine.decode(prompt)
        assert (answer.output, answer.decoded, answer.failed) == (output, len(output) - 1, "")
        assert 0 < answer.decode_s == answer.latency_s < 60
    assert engine.load_s is not None and 0 <= engine.load_s < 60
    assert engine.judged and engine.weights == SAME_VALUES
    engine.close()


def test_its_own_peak_memory_is_kept_and_not_that_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(tmp_path, monkeypatch)
    begun = engine.peak_memory_mb
    assert begun is not None and 1 < begun < 100  # this process, with torch, has several times as much
    for megabytes in (150, 20):
        engine.decode([megabytes])
        assert engine.peak_memory_mb is not None and begun + 140 < engine.peak_memory_mb < begun + 200
    assert not engine.judged
    engine.close()


@pytest.mark.parametrize(("prompt", "reason"), [([13], "out of luck"), ([9], "ended by signal 9")])
def test_one_that_dies_says_why_and_answers_no_more(
    prompt: list[int], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(tmp_path, monkeypatch)
    for _ in range(2):
        answer = engine.decode(prompt)
        assert (answer.output, answer.failed) == ([], reason)


def test_one_that_prints_many_messages_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(tmp_path, monkeypatch)
    assert engine.decode([7]).output == [8]
    engine.close()


def test_a_missing_package_or_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError,
        match=r"^made_up needs a package that is not installed: pip install made-up \(or 'selfdraft\[engines\]' for",
    ):
        started(tmp_path, monkeypatch, "import a_package_that_nobody_has\n")
    with pytest.raises(UserError, match=r"^made_up does not start with .*a\.gguf \(ValueError: no such file\)$"):
        started(tmp_path, monkeypatch, "raise ValueError('no such file')\n")
    with pytest.raises(UserError, match=r"^task\.python=/no/where: No such file or directory$"):
        OtherEngine("llama_cpp", tmp_path, max_new_tokens=1, positions=1, eos=[], threads=1, python="/no/where")


def test_every_engine_has_its_script_and_its_package_among_the_extras() -> None:
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for engine in ENGINES.values():
        assert (others.CHILDREN / engine.script).is_file()
        assert f'"{engine.package}>=' in extras
    assert set(OTHERS) == {*ENGINES, "vllm"}
