"""scripts/export.py: what peft makes of an exported adapter is what drafts run through, and OUT alone drafts."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from script_module import script_module
from selfdraft.models.adapted import adapted_path
from selfdraft.models.adapter import Adapter
from selfdraft.models.fingerprint import fingerprint
from selfdraft.models.loading import load_tiny
from selfdraft.models.target import Target
from selfdraft.tracking.artifact import Artifact

ROOT = Path(__file__).parents[2]
TINY = ("llama", 0, "float32", torch.device("cpu"))


def script() -> ModuleType:
    return script_module("export")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora_of(model: PreTrainedModel, layers: list[int], rank: int = 3) -> dict[str, Tensor]:
    tensors = {}
    for index in layers:
        for name, module in model.model.layers[index].named_modules():
            if isinstance(module, nn.Linear):
                out, width = module.weight.shape
                tensors[f"lora.{index}.{name}.A"] = noise(rank, width)
                tensors[f"lora.{index}.{name}.B"] = noise(out, rank)
    return tensors


def whole(model: PreTrainedModel, index: int) -> dict[str, Tensor]:
    named = model.model.layers[index].named_parameters()
    return {f"layer.{index}.{name}": p.detach() + noise(*p.shape) for name, p in named}


def finetuned(run: Path, tensors: dict[str, Tensor], skip: list[int], **options: object) -> Path:
    """A run's folder as task=finetune leaves it."""
    settings = {"scale": 0.5, "first": 0, "skip_attention": skip, "skip_mlp": skip}
    Adapter("sparse_distill", settings, tensors).write(run)
    label = {"label": "tiny llama", "dtype": "float32", "fingerprint": fingerprint(load_tiny(*TINY).model)}
    Artifact("layer_skip", {"adapter": ".", **options}, label, {"name": "expected_accepted"}, []).write(
        run / "drafter.yaml"
    )
    return run


CASES = {
    "every layer's LoRA": lambda model: (lora_of(model, [0, 1, 2, 3]), []),
    "LoRA, a whole layer and a norm": lambda model: (
        {**lora_of(model, [0, 2]), **whole(model, 3), "norm.weight": noise(32)},
        [1],
    ),
    "no LoRA": lambda model: ({**whole(model, 3), "norm.weight": noise(32), "vocabulary": torch.arange(9)}, [1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_merges_what_drafts_run_through(case: str, tmp_path: Path) -> None:
    model = load_tiny(*TINY).model
    tensors, skip = CASES[case](model)
    run, out = finetuned(tmp_path / "run", tensors, skip, draft_length=3), tmp_path / "out"
    assert script().main([str(run), str(out)]) == 0

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("error", message=".*inconsistency.*")
        merged = PeftModel.from_pretrained(load_tiny(*TINY).model, out).merge_and_unload()
    path = adapted_path(Target(model, packed=False), Adapter.read(run))
    kept = [index for index in range(4) if index not in skip]
    assert len(path.layers) == len(kept)
    for index, layer in zip(kept, path.layers, strict=True):
        theirs = dict(merged.model.layers[index].named_parameters())
        for name, ours in layer.named_parameters():
            assert torch.allclose(theirs[name], ours, atol=1e-5), (index, name)
    norm = tensors.get("norm.weight", model.model.norm.weight)
    assert torch.equal(merged.model.norm.weight, norm)
    for index in skip:  # what drafts skip, nobody touched
        for name, p in model.model.layers[index].named_parameters():
            assert torch.equal(merged.model.layers[index].get_parameter(name), p)
    assert torch.isfinite(merged(torch.tensor([[1, 2, 3]])).logits).all()


def test_the_folder_alone_drafts(tmp_path: Path) -> None:
    tensors = {**lora_of(load_tiny(*TINY).model, [0, 3]), "vocabulary": torch.arange(9)}
    run, out = finetuned(tmp_path / "run", tensors, [1, 2], draft_length=3), tmp_path / "out"
    assert script().main([str(run), str(out)]) == 0
    found = Artifact.read(out)
    assert found.options == {"adapter": str(out / "selfdraft.safetensors"), "draft_length": 3}
    ours, theirs = Adapter.read(run), Adapter.read(found.options["adapter"])
    assert (ours.recipe, ours.settings) == (theirs.recipe, theirs.settings)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(t, theirs.tensors[name]) for name, t in ours.tensors.items())
    said = (out / "README.md").read_text()
    assert "python run.py drafter.from=<this folder> model=tiny model.family=llama" in said
    assert "skip the attention of layers [1, 2] and the MLP of layers [1, 2]" in said
    assert "only 9 of the model's ids" in said
    assert script().main([str(run), str(out)]) == 0  # once more, over its own


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert script().main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_no_artifact_of_finetune_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "holds no drafter.yaml" in told(capsys, tmp_path, out)
    (tmp_path / "drafter.yaml").write_text("a: [")
    assert "it is no YAML" in told(capsys, tmp_path, out)
    label = {"label": "tiny llama", "dtype": "float32", "fingerprint": "0" * 16}
    Artifact("layer_skip", {"skip_attention": [1]}, label, {}, []).write(tmp_path / "drafter.yaml")
    assert "was written by task=calibrate" in told(capsys, tmp_path, out)
    Artifact("layer_skip", {"adapter": "."}, label, {}, []).write(tmp_path / "drafter.yaml")
    assert "there is no such file" in told(capsys, tmp_path, out)
    assert not out.exists()


def test_what_cannot_be_exported_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    finetuned(run, {"pseudo": noise(2, 32), "sampler.inner.bias": noise(32)}, [])
    assert "peft has no place for the rest" in told(capsys, run, out)
    finetuned(run, {"norm.weight": noise(32)}, [])
    assert "holds something else" in told(capsys, run, run)
    artifact = Artifact.read(run)
    for label, complaint in (("tiny qwen2", "was made for"), ("my_llama", "as --model")):
        Artifact("layer_skip", {"adapter": "."}, {**artifact.model, "label": label}, {}, []).write(run / "drafter.yaml")
        assert complaint in told(capsys, run, out)
    assert "no such folder" in told(capsys, run, out, "--model", tmp_path / "nowhere")
    (run / "config.yaml").write_text("model: {name: other}")
    assert "names no model" in told(capsys, run, out)
    finetuned(run, {"lora.0.q.A": noise(2, 8), "lora.0.q.B": noise(8, 2), **lora_of(load_tiny(*TINY).model, [1])}, [])
    (run / "config.yaml").unlink()
    assert "only one rank" in told(capsys, run, out)


def test_what_only_pseudo_tokens_feel_is_said(tmp_path: Path) -> None:
    tensors = {**lora_of(load_tiny(*TINY).model, [2]), "pseudo": noise(2, 32), "sampler.inner.bias": noise(32)}
    run, out = finetuned(tmp_path / "run", tensors, []), tmp_path / "out"
    assert script().main([str(run), str(out)]) == 0
    said = (out / "README.md").read_text()
    assert "2 pseudo tokens" in said and "sampler" in said and "skip the attention" not in said


def test_the_folder_is_uploaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = finetuned(tmp_path / "run", {"norm.weight": noise(32)}, []), tmp_path / "out"
    module, calls = script(), []
    monkeypatch.setattr(module, "create_repo", lambda repo, private, exist_ok: calls.append((repo, private, exist_ok)))
    monkeypatch.setattr(module, "upload_folder", lambda **given: calls.append(given) or "https://there")
    assert module.main([str(run), str(out), "--push-to-hub", "me/drafts"]) == 0
    assert calls[0] == ("me/drafts", True, True)
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/drafts", out)
    assert "https://there" in capsys.readouterr().out

    def refuse(*_: object, **__: object) -> None:
        raise HFValidationError("Repo id must be\nof another form")

    monkeypatch.setattr(module, "create_repo", refuse)
    assert module.main([str(run), str(out), "--push-to-hub", "me"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export: --push-to-hub me: Repo id must be")
