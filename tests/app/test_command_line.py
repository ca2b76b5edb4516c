"""Prompts and artifacts reach Hydra as plain text: never as an interpolation, a choice or a missing value."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from command_line import SMOKE, composed, run_here
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import measured_config
from selfdraft.app.terminal.command_line import as_override, quoted_prompt, with_artifact
from selfdraft.core.errors import UserError
from selfdraft.drafters.presets import configured
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.run_folder import claim_run_dir

SECRET = "a-secret-of-the-environment"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


def prompt_of(*arguments: str) -> str | None:
    return to_config(composed(*SMOKE, *quoted_prompt(quoted_prompt(arguments)))).prompt


PROMPTS = [
    "${oc.env:TOKEN}", "${HOME}", "???", "$", "${", "\\${oc.env:TOKEN}", "\\\\${oc.env:TOKEN}", "a\\", "${a}\\", '"',
    "'", '"a" and "b"', "a, b", "[1]", "{a: 1}", "a=b", "a\nb", "${a:${b}}", "$${oc.env:TOKEN}", "'${a}' \"${b}\"",
    "glob(*)", "true", "1", "~", "@", "$(id)", "%s", "é", "\\n", "nul", "None", "  spaces  ", "'${oc.env:TOKEN}",
]  # fmt: skip


def as_text(texts: Sequence[str]) -> list[str]:
    """What becomes of these prompts in a configuration: many options of one, since composing it is what takes time.

    Quoting twice changes nothing, since the processes of a sweep quote once more.
    """
    typed = quoted_prompt(quoted_prompt([f"prompt={text}" for text in texts]))
    config = composed(*SMOKE, *(f"+p{i}={one.removeprefix('prompt=')}" for i, one in enumerate(typed)))
    return ["???" if OmegaConf.is_missing(config, f"p{i}") else config[f"p{i}"] for i in range(len(texts))]


def test_a_prompt_is_text() -> None:
    assert as_text(PROMPTS) == PROMPTS
    for text in ("${oc.env:TOKEN}", "???", "a, b"):
        assert prompt_of(f"prompt={text}") == text
        assert prompt_of(f"++prompt={text}") == text


def test_any_prompt_is_text() -> None:
    draw = random.Random(0)
    symbols = ["\\", "$", "{", "}", '"', "'", "a", ":", "[", "=", "${", "\n", "?"]
    texts = ["".join(draw.choices(symbols, k=8)) for _ in range(200)]
    texts = [text for text in texts if (text[0], text[-1]) not in {('"', '"'), ("'", "'")}]
    assert as_text(texts) == texts


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ('"${oc.env:TOKEN}"', "${oc.env:TOKEN}"),
        ("'${oc.env:TOKEN}'", "${oc.env:TOKEN}"),
        ('"a, b"', "a, b"),
        ('"\\${x}"', "${x}"),
        ('"null"', "null"),
        ("null", None),
        ("", ""),
    ],
)
def test_a_quoted_prompt_is_the_text_in_the_quotes(typed: str, text: str | None) -> None:
    assert prompt_of(f"prompt={typed}") == text


def test_a_trace_has_the_prompt_and_no_secret(tmp_path: Path) -> None:
    text = "${oc.env:TOKEN}"
    run_here(tmp_path, *SMOKE, "task=trace", "decoding.max_new_tokens=4", *quoted_prompt([f"prompt={text}"]))
    assert json.loads((tmp_path / "trace.json").read_text())["prompt"] == text
    assert SECRET not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_the_configuration_of_a_run_has_the_prompt_and_no_secret(tmp_path: Path) -> None:
    config = measured_config(composed(*SMOKE, *quoted_prompt(["prompt=${oc.env:TOKEN}"])))
    for _ in range(2):
        claim_run_dir(tmp_path, config, task="evaluate")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["prompt"] == "${oc.env:TOKEN}"


def test_plain_values_reach_hydra_unchanged() -> None:
    values = [None, True, False, 3, -1.5, 1e-07, [1, 2], [], ["a, b", "${oc.env:TOKEN}"], "x'\""]
    config = composed(*SMOKE, *(f"+x{i}={as_override(value)}" for i, value in enumerate(values)))
    found = OmegaConf.to_container(config, resolve=True)
    for i, value in enumerate(values):
        assert found[f"x{i}"] == value and type(found[f"x{i}"]) is type(value)


MODEL = {"label": "tiny llama", "dtype": "float32", "fingerprint": "0" * 16}


def artifact(folder: Path, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Artifact("layer_skip", options, MODEL, {}, []).write(folder / "drafter.yaml")
    return folder


@pytest.mark.parametrize("name", ["plain", "${oc.env:TOKEN}", "a, b", 'it\'s "so"', "x=[1]"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / name, adapter=".", draft_length=3, reuse=True, min_confidence=0.5)
    config = to_config(composed(*with_artifact([*SMOKE, f"drafter.from={folder}"])))
    assert config.artifact == config.drafter.path.adapter == str(folder)
    assert (config.drafter.draft_length, config.drafter.reuse, config.drafter.min_confidence) == (3, True, 0.5)


def test_nothing_in_an_artifact_is_resolved(tmp_path: Path) -> None:
    for options in ({"length": "${oc.env:TOKEN}"}, {"draft_length": "${oc.env:TOKEN}"}, {"bonus": "???"}):
        with pytest.raises(UserError, match=r"^drafter\.from=") as refused:
            with_artifact([f"drafter.from={artifact(tmp_path, **options)}"])
        assert SECRET not in str(refused.value)


# What the tasks wrote before a drafter had a path: name and options, as in drafter.yaml.
WRITTEN = {
    "calibrate": ("layer_skip", "{skip_attention: [1, 2], skip_mlp: [1], draft_length: 6, min_confidence: 0.4}"),
    "sparse_distill": ("layer_skip", "{adapter: ., draft_length: 4}"),
    "exit_adapter": ("early_exit", "{adapter: ., draft_length: 8, siblings: true, length: gain}"),
    "pseudo_tokens": ("pseudo_tokens", "{adapter: .}"),
    "consistency": ("jacobi", "{adapter: ., window: 15, refine_steps: 2, mode: literal}"),
    "consistency of a path": ("sparse_jacobi", "{adapter: ., window: 15, refine_steps: 2}"),
}


def before_the_paths(folder: Path, case: str) -> Path:
    """A folder with the drafter.yaml of that time."""
    drafter, options = WRITTEN[case]
    about = f"model: {json.dumps(MODEL)}\nobjective: {{name: tokens_per_s, value: 1.5}}\nhistory: []\n"
    (folder / "drafter.yaml").write_text(f"drafter: {drafter}\noptions: {options}\n{about}")
    return folder


@pytest.mark.parametrize("case", WRITTEN)
def test_an_artifact_written_before_paths_existed_composes(case: str, tmp_path: Path) -> None:
    folder = before_the_paths(tmp_path, case)
    found = Artifact.read(folder)
    assert found.drafter == WRITTEN[case][0]
    arguments = with_artifact([*SMOKE, f"drafter.from={folder}"])
    assert ("drafter/path=trained" in arguments) == (case not in ("calibrate", "pseudo_tokens"))
    drafter = to_config(composed(*arguments)).drafter
    assert drafter == configured(found.drafter, **found.options)
    adapter = getattr(drafter, "adapter", None) or getattr(getattr(drafter, "path", None), "adapter", None)
    assert adapter == (None if case == "calibrate" else str(folder))


def test_typed_options_override_those_of_an_artifact(tmp_path: Path) -> None:
    folder = before_the_paths(tmp_path, "calibrate")
    typed = ["drafter.draft_length=2", "drafter.path.skip_mlp=[2]"]
    drafter = to_config(composed(*with_artifact([*SMOKE, f"drafter.from={folder}", *typed]))).drafter
    assert (drafter.draft_length, drafter.path.skip_attention, drafter.path.skip_mlp) == (2, [1, 2], [2])
