"""Other engines: their processes are started, asked, and may die. The engine here is a script of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.models import others
from selfdraft.models.others import OTHERS, Engine, OtherEngine

SCRIPT = """
import json, os, sys
settings = json.loads(sys.argv[1])
print(json.dumps({"load_s": 0.5}), flush=True)
for line in sys.stdin:
    ids = json.loads(line)
    if ids == [13]:
        sys.stderr.write("first\\nout of luck\\n")
        sys.exit(1)
    if ids == [9]:
        os.kill(os.getpid(), 9)
    output = [i + 1 for i in ids][: settings["tokens"]]
    print(json.dumps({"output": output, "first_s": 0.25, "latency_s": 1.0, "first_tokens": 1}), flush=True)
"""


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str = SCRIPT) -> OtherEngine:
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(others, "CHILDREN", tmp_path)
    monkeypatch.setitem(OTHERS, "made_up", Engine("child.py", "made-up"))
    return OtherEngine("made_up", tmp_path / "a.gguf", max_new_tokens=3, positions=9, eos=[2], threads=1)


def test_ids_go_in_and_come_out_with_its_own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(tmp_path, monkeypatch)
    for prompt, output in (([5, 6], [6, 7]), ([1, 2, 3, 4], [2, 3, 4])):
        answer = engine.decode(prompt)
        assert (answer.output, answer.decoded) == (output, len(output) - 1)
        assert (answer.decode_s, answer.latency_s, answer.failed) == (0.75, 1.0, "")
    assert engine.load_s == 0.5
    engine.close()


@pytest.mark.parametrize(("prompt", "reason"), [([13], "out of luck"), ([9], "ended by signal 9")])
def test_one_that_dies_says_why_and_answers_no_more(
    prompt: list[int], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(tmp_path, monkeypatch)
    for _ in range(2):
        answer = engine.decode(prompt)
        assert (answer.output, answer.failed) == ([], reason)


def test_a_missing_package_or_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^made_up needs a package that is not installed: pip install made-up$"):
        started(tmp_path, monkeypatch, "import a_package_that_nobody_has\n")
    with pytest.raises(UserError, match=r"^made_up does not start with .*a\.gguf \(ValueError: no such file\)$"):
        started(tmp_path, monkeypatch, "raise ValueError('no such file')\n")
    with pytest.raises(UserError, match=r"^task\.python=/no/where: No such file or directory$"):
        OtherEngine("llama_cpp", tmp_path, max_new_tokens=1, positions=1, eos=[], threads=1, python="/no/where")
