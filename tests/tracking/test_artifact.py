"""drafter.yaml is untrusted data: a malformed file gives one clear line, and nothing in it is resolved or run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.plain import MAX_BYTES, MAX_VALUES

MODEL = {"label": "tiny llama", "dtype": "float32", "fingerprint": "0123456789abcdef"}
GOOD = {
    "drafter": "layer_skip",
    "options": {"skip_attention": [1], "skip_mlp": [1, 2], "draft_length": 3},
    "model": MODEL,
    "objective": {"name": "tokens_per_s", "method": "bayes", "value": 1.5},
    "history": [{"value": 1.5, "skip_attention": [1], "skip_mlp": [1, 2], "length": 3, "threshold": None}],
}


def read(tmp_path: Path, text: str | bytes) -> Artifact:
    path = tmp_path / "drafter.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Artifact.read(tmp_path)


def changed(**parts: object) -> str:
    return yaml.safe_dump({**GOOD, **parts})


def with_options(drafter: str = "layer_skip", **options: object) -> str:
    return changed(drafter=drafter, options=options)


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    Artifact(**GOOD).write(tmp_path / "drafter.yaml")
    assert Artifact.read(tmp_path) == Artifact.read(tmp_path / "drafter.yaml") == Artifact(**GOOD)


def test_interpolations_are_plain_text(tmp_path: Path) -> None:
    found = read(tmp_path, changed(model={**MODEL, "label": "${oc.env:HOME}"}))
    assert found.model["label"] == "${oc.env:HOME}"


def test_the_adapter_is_next_to_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, with_options(adapter=".")).options["adapter"] == str(tmp_path)
    for elsewhere in ("/etc", "../other", "a/../../b", "~/../x"):
        with pytest.raises(UserError, match="does not lie beside it"):
            read(tmp_path, with_options(adapter=elsewhere))


MALFORMED = {
    "nothing": "",
    "text": "hello",
    "a list": "[1, 2]",
    "no YAML": "a: [",
    "no UTF-8": b"drafter: \xff",
    "zeros": b"\0" * 100,
    "two documents": "a: 1\n---\nb: 2",
    "deep": "[" * 100_000,
    "deep and closed": "[" * 5000 + "]" * 5000,
    "deep mappings": "".join(" " * depth + "a:\n" for depth in range(100)),
    "a bomb": "a: &a [x, x, x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in pairwise("abcdefghi")),
    "an anchor": changed().replace("tiny llama", "&x tiny llama"),
    "a tag": changed().replace("1.5", "!!python/object/apply:os.system [ls]"),
    "a set": changed(options={"skip_mlp": {1, 2}}),
    "a long number": changed().replace("draft_length: 3", "draft_length: " + "9" * 5000),
    "a long hexadecimal number": changed().replace("draft_length: 3", "draft_length: 0x" + "f" * 5000),
    "a date that is none": changed().replace("draft_length: 3", "draft_length: 2026-99-99"),
    "a date": changed().replace("draft_length: 3", "draft_length: 2026-09-09"),
    "numbers as keys": changed(options={1: 2}),
    "a part too few": yaml.safe_dump({name: part for name, part in GOOD.items() if name != "history"}),
    "a part too many": changed(more=1),
    "no drafter": changed(drafter="nobody"),
    "a list of drafters": changed(drafter=["layer_skip"]),
    "a drafter that is an override": changed(drafter="layer_skip hydra.run.dir=x"),
    "options as text": changed(options="draft_length=3"),
    "no options": changed(options=None),
    "an unknown option": with_options(hydra=1),
    "a name": with_options(name="pool"),
    "an option with a dot": with_options(**{"draft_length.x": 3}),
    "an interpolation for a number": with_options(draft_length="${oc.env:HOME}"),
    "an interpolation for a choice": with_options(length="${oc.env:HOME}"),
    "true for a number": with_options(draft_length=True),
    "a number and a half": with_options(draft_length=1.5),
    "a number out of range": with_options(draft_length=0),
    "not a number": with_options(sparsity=float("nan")),
    "text in a list": with_options(skip_mlp=["1"]),
    "a number for a list": with_options(skip_mlp=1),
    "null for a number": with_options(draft_length=None),
    "a list for a path": with_options(path=["swift"]),
    "a path that is none": with_options(path="medusa"),
    "a path for a drafter that takes none": with_options("suffix", path="swift"),
    "an option of another path": with_options(path="swift", skip_mlp=[1]),
    "a list for an adapter": with_options(adapter=["."]),
    "no model": changed(model=None),
    "no fingerprint": changed(model={"label": "tiny llama", "dtype": "float32"}),
    "a number for a fingerprint": changed(model={**MODEL, "fingerprint": 12}),
    "an objective that is a list": changed(objective=[]),
    "a history that is none": changed(history=[1]),
    "a long file": b"#" * (MAX_BYTES + 1),
    "many values": "[" + "1," * (MAX_VALUES + 1) + "]",
}  # fmt: skip


def test_a_malformed_artifact_gives_one_clear_line(tmp_path: Path) -> None:
    for case in MALFORMED:
        with naming(case):
            with pytest.raises(UserError, match=r"^drafter\.from=.*drafter\.yaml: ") as refused:
                read(tmp_path, MALFORMED[case])
            assert "\n" not in str(refused.value) and len(str(refused.value)) < 800


@pytest.mark.parametrize("name", ["nowhere", "~nobody/x", "a" * 300, "drafter.yaml"])
def test_a_missing_file_gives_one_clear_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "drafter.yaml").mkdir()
    with pytest.raises(UserError, match=r"^drafter\.from="):
        Artifact.read(tmp_path / name if not name.startswith("~") else Path(name))
