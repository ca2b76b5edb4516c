"""drafter.yaml, adapters and checkpoints of any content: each is accepted, or refused with one printable line."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from budget import SETTINGS, budget
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Timer
from safetensors.torch import save_file
from texts import AWKWARD, values, words
from torch import Tensor

from selfdraft.app.runs.session import quiet
from selfdraft.app.terminal.command_line import with_artifact
from selfdraft.app.terminal.errors import explain
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.data.distilled import Text
from selfdraft.data.textmodule import TextDataModule
from selfdraft.drafters import PROPOSALS
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.models.trained.pseudo import pseudo_tokens
from selfdraft.modules.checkpoints import LAST, Checkpoints, DataOnly, Patience
from selfdraft.modules.finetune import WATCHED
from selfdraft.modules.recipes import RECIPES
from selfdraft.tracking.files.artifact import Artifact

ARTIFACT = {
    "drafter": "layer_skip",
    "options": {"skip_attention": [1], "skip_mlp": [1, 2], "draft_length": 3, "min_confidence": 0.25, "reuse": True},
    "model": {"label": "tiny llama", "dtype": "float32", "fingerprint": "0123456789abcdef"},
    "objective": {"name": "tokens_per_s", "method": "bayes", "value": 1.5, "data": ["outputs/texts"]},
    "history": [{"value": 1.5, "skip_attention": [1], "skip_mlp": [1, 2], "length": 3, "threshold": None}],
}
OTHER_NAMES = [
    "name", "adapter", "length", "bonus", "hydra", "draft_length.x", "defaults", "sparsity", "exit_layer", "path",
]  # fmt: skip
YAML = [
    "&a [*a]", "*x", "!!python/name:os.system", "!!binary x", "<<: {a: 1}", "? [a]\n: b", "{" * 3000, "---\na: 1",
    "%YAML 9.9\n---\n", "\t", "0x" + "f" * 6000, "9" * 6000, "2026-99-99", ".nan", "1:1:1", "!<tag:x> y", "\x00",
]  # fmt: skip


def taken_or_a_line(load: Callable[[], Any]) -> Any:
    """What `load` returns; None where it refuses in one line."""
    try:
        return load()
    except UserError as error:
        line = explain(error)
        assert line is not None and line == one_line(line) and len(line) < 4000
        return None


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def changed(draw: st.DrawFn, sound: Any, odd: st.SearchStrategy[Any]) -> Any:
    """A copy of nested values in which one or two are replaced, removed or added."""
    made = copy.deepcopy(sound)
    for _ in range(draw(st.integers(0, 2))):
        at = made
        while True:
            places = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            inner = at[place]
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
                at = inner
                continue
            kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
            if kind == "replace":
                at[place] = draw(odd)
            elif kind == "remove":
                del at[place]
            elif isinstance(at, dict):
                at[draw(st.one_of(words, st.sampled_from(OTHER_NAMES)))] = draw(odd)
            else:
                at.append(draw(odd))
            break
    return made


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file cut short, with some bytes replaced, or with some left out."""
    at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
    kind = draw(st.sampled_from(["cut", "replace", "replace", "leave out", "zeros"]))
    if kind == "cut":
        return content[:at]
    new = {"replace": draw(st.binary(min_size=length, max_size=length)), "leave out": b"", "zeros": bytes(length)}[kind]
    return content[:at] + new + content[at + length :]


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    drafter = draw(st.sampled_from(["layer_skip", *PRESETS]))
    plain = draw(changed({**ARTIFACT, "drafter": drafter}, values))
    try:
        content = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
    except (yaml.YAMLError, ValueError):  # what it cannot write: numbers of thousands of digits
        content = repr(plain)[:5000]
    kind = draw(st.sampled_from(["as it is", "as it is", "more", "odd value", "bytes"]))
    if kind == "more":
        content += draw(st.sampled_from(YAML))
    elif kind == "odd value":
        content = content.replace(
            draw(st.sampled_from(["3", "1.5", "tiny llama", "true"])), draw(st.sampled_from(YAML))
        )
    raw = content.encode("utf-8", "surrogatepass")
    return draw(damaged(raw)) if kind == "bytes" else raw


@settings(max_examples=budget(80, 3000), **SETTINGS)
@given(content=yaml_files(), name=st.one_of(st.just("made"), st.sampled_from(AWKWARD)))
def test_an_artifact_is_accepted_or_gives_one_clear_line(folder: Path, content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as here:
        path = Path(here, "made") if "/" in name or "\x00" in name or len(name) > 50 else Path(here, name)
        try:
            path.mkdir(exist_ok=True)
        except (OSError, ValueError):
            path = Path(here)
        (path / "drafter.yaml").write_bytes(content)
        if (found := taken_or_a_line(lambda: Artifact.read(path))) is None:
            return
        config = configured(found.drafter, **found.options)
        assert isinstance(config, PROPOSALS[PRESETS[found.drafter].proposal].Config)
        for override in with_artifact([f"drafter.from={path}"]):
            OverridesParser.create().parse_override(override).value()
        found.write(path / "again.yaml")
        assert Artifact.read(path / "again.yaml").drafter == found.drafter


TENSORS = {
    "lora.1.mlp.up_proj.A": torch.ones(2, 32),
    "lora.1.mlp.up_proj.B": torch.ones(64, 2),
    "layer.3.mlp.up_proj.weight": torch.ones(64, 32),
    "norm.weight": torch.ones(32),
    "vocabulary": torch.arange(9),
    "feature.weight": torch.ones(32, 32),
}
SETTING = {"scale": 0.5, "first": 0, "skip_attention": [2], "skip_mlp": [0]}
tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 65), max_size=3),
    st.sampled_from(
        [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]
    ),
    st.sampled_from([0.0, 1.0, float("nan"), 2.0**40, -1.0]),
)
tensor_names = st.sampled_from(
    [*TENSORS, "pseudo", "lora.9.x.A", "lora.-1.x.A", "layer.0.x", "norm.x", "x", "sampler.x"]
)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_model("llama", seed=0), packed=False)


@settings(max_examples=budget(60, 1500), **SETTINGS)
@given(
    more=st.dictionaries(tensor_names, tensors, max_size=2),
    fewer=st.lists(st.sampled_from(list(TENSORS)), max_size=3),
    setting=changed(SETTING, values),
    data=st.data(),
)
def test_an_adapter_is_applied_or_gives_one_clear_line(
    folder: Path, target: Target, more: dict[str, Tensor], fewer: list[str], setting: Any, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as here:
        file = Path(here, FILE)
        about = {"recipe": "some", "settings": json.dumps(setting)}
        save_file({name: t for name, t in {**TENSORS, **more}.items() if name not in fewer}, file, metadata=about)
        if data.draw(st.integers(0, 3)) == 0:
            file.write_bytes(data.draw(damaged(file.read_bytes())))
        adapter = taken_or_a_line(lambda: Adapter.read(here))
        if adapter is not None:
            taken_or_a_line(lambda: adapted_path(target, adapter))
            taken_or_a_line(lambda: pseudo_tokens(target, here, 1, 0.0))


LENGTH = 24


def train(folder: Path, steps: int, *, resume: bool) -> list[dict[str, Any]]:
    """A training of the tiniest kind, a validation a step, from the last checkpoint or from the beginning."""
    quiet()
    drawn = torch.Generator().manual_seed(0)
    texts = [Text(str(n), [1, 2], torch.randint(90, (10,), generator=drawn).tolist()) for n in range(4)]
    options = {"steps": steps, "batch_size": 1, "length": LENGTH, "longest_prompt": 4, "rank": 1, "block": 2}
    config = RECIPES["sparse_distill"].Config(**options)
    module = RECIPES["sparse_distill"](
        config, lambda _: Target(tiny_model("llama"), packed=False), draft_ids=None, seed=0
    )
    data = TextDataModule(texts, texts, length=LENGTH, longest_prompt=4, batch_size=1, steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[Checkpoints(folder, WATCHED), Patience(WATCHED, 99), Timer(timedelta(minutes=5), verbose=False)],
        plugins=[DataOnly()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(folder / LAST) if resume else None, weights_only=True)
    return module.history


@pytest.fixture(scope="module")
def begun(folder: Path) -> bytes:
    """The last checkpoint of a training that has begun."""
    made = folder / "begun"
    assert len(train(made, 2, resume=False)) == 2
    return (made / LAST).read_bytes()


def test_undamaged_checkpoints_are_resumed(folder: Path, begun: bytes) -> None:
    (folder / "sound").mkdir()
    (folder / "sound" / LAST).write_bytes(begun)
    assert [line["step"] for line in train(folder / "sound", 3, resume=True)] == [1, 2, 3]


@settings(max_examples=budget(12, 400), **SETTINGS)
@given(data=st.data())
def test_a_checkpoint_is_resumed_or_gives_one_clear_line(folder: Path, begun: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as here:
        path = Path(here, LAST)
        path.write_bytes(begun)
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(begun)))
        else:
            genuine = torch.load(path, weights_only=True)
            torch.save(data.draw(changed(genuine, st.one_of(values, tensors))), path)
        history = taken_or_a_line(lambda: train(Path(here), 3, resume=True))
        assert history is None or len(history) <= 4
