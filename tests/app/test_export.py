"""task=export: what peft makes of an exported adapter is what drafts run through, and the folder alone drafts."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from command_line import SMOKE, read_result, run, said_by
from selfdraft.app.tasks import export
from selfdraft.core.errors import UserError
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import load_tiny
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter
from selfdraft.tracking.files.artifact import Artifact

TINY = ("llama", 0, "float32", torch.device("cpu"))


def exported(run: Path, out: Path, *more: str) -> str:
    """Run the task, and return what it prints."""
    given = ("model=tiny", "drafter=layer_skip", f"artifact='{run}'", f"task.to='{out}'", *more)
    return said_by(out.parent / f"export of {run.name}", *SMOKE, "task=export", "logger=none", *given)


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
def test_weights_merged_by_peft_equal_those_of_the_draft_path(case: str, tmp_path: Path) -> None:
    model = load_tiny(*TINY).model
    tensors, skip = CASES[case](model)
    run, out = finetuned(tmp_path / "run", tensors, skip, draft_length=3), tmp_path / "out"
    exported(run, out)

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


def test_an_exported_folder_can_draft_by_itself(tmp_path: Path) -> None:
    tensors = {**lora_of(load_tiny(*TINY).model, [0, 3]), "vocabulary": torch.arange(9)}
    run, out = finetuned(tmp_path / "run", tensors, [1, 2], draft_length=3), tmp_path / "out"
    exported(run, out)
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
    exported(run, out)  # once more, over its own


def refused(run: Path, out: Path, message: str, *more: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        exported(run, out, *more)
    assert "\n" not in str(caught.value)


def test_what_is_no_artifact_of_finetune_is_refused(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    with pytest.raises(UserError, match=r"drafter\.from=<folder of a task=finetune run>"):
        said_by(tmp_path / "export", *SMOKE, "task=export", "logger=none")
    refused(run, out, "drafter.yaml")
    (run / "drafter.yaml").write_text("a: [")
    refused(run, out, "it is no YAML")
    label = {"label": "tiny llama", "dtype": "float32", "fingerprint": "0" * 16}
    Artifact("layer_skip", {"skip_attention": [1]}, label, {}, []).write(run / "drafter.yaml")
    refused(run, out, "was written by task=calibrate")
    Artifact("layer_skip", {"adapter": "."}, label, {}, []).write(run / "drafter.yaml")
    refused(run, out, "it has no adapter.safetensors|there is no adapter.safetensors there")
    assert not out.exists()


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    finetuned(run, {"pseudo": noise(2, 32), "sampler.inner.bias": noise(32)}, [])
    refused(run, out, "peft has no place for the rest")
    finetuned(run, {"norm.weight": noise(32)}, [])
    refused(run, run, "holds something else")
    refused(run, out, "was made for tiny llama", "model.family=qwen2")
    finetuned(run, {"lora.0.q.A": noise(2, 8), "lora.0.q.B": noise(8, 2), **lora_of(load_tiny(*TINY).model, [1])}, [])
    refused(run, out, "only one rank")
    assert not out.exists()


def test_the_export_of_gated_rows_explains_their_lora(tmp_path: Path) -> None:
    tensors = {**lora_of(load_tiny(*TINY).model, [2]), "mask": noise(2, 32), "confidence.outer.bias": noise(1)}
    finetuned(tmp_path / "run", tensors, [])
    exported(tmp_path / "run", tmp_path / "out")
    said = (tmp_path / "out" / "README.md").read_text()
    assert "2 gated rows" in said and "confidence" in said


def test_the_export_of_pseudo_tokens_explains_their_lora(tmp_path: Path) -> None:
    tensors = {**lora_of(load_tiny(*TINY).model, [2]), "pseudo": noise(2, 32), "sampler.inner.bias": noise(32)}
    run, out = finetuned(tmp_path / "run", tensors, []), tmp_path / "out"
    exported(run, out)
    said = (out / "README.md").read_text()
    assert "2 pseudo tokens" in said and "sampler" in said and "skip the attention" not in said


def test_the_folder_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out, calls = finetuned(tmp_path / "run", {"norm.weight": noise(32)}, []), tmp_path / "out", []
    monkeypatch.setattr(export, "create_repo", lambda repo, private, exist_ok: calls.append((repo, private, exist_ok)))
    monkeypatch.setattr(export, "upload_folder", lambda **given: calls.append(given) or "https://there")
    assert "https://there" in exported(run, out, "task.push_to_hub=me/drafts")
    assert calls[0] == ("me/drafts", True, True)
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/drafts", out)

    def refuse(*_: object, **__: object) -> None:
        raise HFValidationError("Repo id must be\nof another form")

    monkeypatch.setattr(export, "create_repo", refuse)
    other = finetuned(tmp_path / "other", {"norm.weight": noise(32)}, [])
    refused(other, out, "^task.push_to_hub=me: Repo id must be; the folder itself is complete", "task.push_to_hub=me")


def test_the_command_writes_beside_its_own_files(tmp_path: Path) -> None:
    """By default the folder is in the run's own, and the drafter's options come from the artifact."""
    run_dir = finetuned(tmp_path / "run", {"norm.weight": noise(32)}, [1])
    given = ("task=export", "model=tiny", f"drafter.from={run_dir}", "logger=none", f"hydra.run.dir={tmp_path / 'e'}")
    done = run(*SMOKE, *given)
    assert done.returncode == 0, done.stderr
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "e" / "peft").iterdir()
    }
    result = read_result(tmp_path / "e")
    assert (result["recipe"], result["whole_modules"], result["lora_rank"]) == ("sparse_distill", 1, 0)
