"""task=export task.format=speculators: the exported head drafts what the jump drafts, where both see the same keys.

The checkpoint is loaded by its documented layout, with transformers' own layer. A test with the package itself runs
only where speculators is installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from command_line import SMOKE, said_by
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import load_tiny
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.speculators_format import KIND, VERSION
from selfdraft.tracking.files.artifact import Artifact

CHAIN = [5, 9, 2, 6]
LAYER = "mtp_layers.0."


def model_of(family: str = "qwen3") -> PreTrainedModel:
    return load_tiny(family, 0, "float32", torch.device("cpu")).model


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / shape[-1] ** 0.5


def jump(model: PreTrainedModel, copies: tuple[int, ...] = (3,)) -> dict[str, Tensor]:
    """A jump as finetune=jump trains it, with random weights."""
    width = model.config.hidden_size
    whole = {
        f"layer.{index}.{name}": p.detach() + 0.1 * noise(*p.shape)
        for index in copies
        for name, p in model.model.layers[index].named_parameters()
    }
    matrices = {"feature.weight": noise(width, width), "jump.weight": torch.eye(width) + noise(width, width)}
    return {**whole, **matrices, "norm.weight": 1 + noise(width)}


def finetuned(run: Path, tensors: dict[str, Tensor], copies: tuple[int, ...] = (3,), family: str = "qwen3") -> Path:
    """A run's folder as task=finetune leaves it."""
    rest = [index for index in range(4) if index not in copies]
    Adapter("jump", {"scale": 0.0, "first": 0, "skip_attention": rest, "skip_mlp": rest}, tensors).write(run)
    label = {"label": f"tiny {family}", "dtype": "float32", "fingerprint": fingerprint(model_of(family))}
    Artifact("trained", {"adapter": ".", "draft_length": 2}, label, {"name": "expected_accepted"}, []).write(
        run / "drafter.yaml"
    )
    return run


def exported(run: Path, out: Path, family: str = "qwen3") -> str:
    """Run the task, and return what it prints."""
    given = ("model=tiny", f"model.family={family}", "drafter=layer_skip", f"artifact='{run}'", f"task.to='{out}'")
    return said_by(
        out.parent / f"export of {run.name}", *SMOKE, "task=export", "task.format=speculators", "logger=none", *given
    )


class Head(nn.Module):
    """The head that config.json and model.safetensors describe: documented names, and transformers' own layer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        said = json.loads((folder / "config.json").read_text())
        assert (said["speculators_model_type"], said["speculators_version"]) == (KIND, VERSION)
        assert said["architectures"] == ["MTPDraftModel"] and said["num_nextn_predict_layers"] == 1
        given = dict(said["transformer_layer_config"])
        config = AutoConfig.for_model(given.pop("model_type"), **given)
        config._attn_implementation = "eager"
        width, eps = config.hidden_size, config.rms_norm_eps
        self.layer, self.rotary = Qwen3DecoderLayer(config, 0), Qwen3RotaryEmbedding(config)
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            setattr(self.layer, name, Qwen3RMSNorm(width, eps=eps))
        self.layer.input_proj = nn.Linear(2 * width, width, bias=False)
        tensors = load_file(folder / "model.safetensors")
        assert all(name.startswith(LAYER) for name in tensors)
        self.layer.load_state_dict(
            {name.removeprefix(LAYER): t for name, t in tensors.items()}
        )  # all of them, no other

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """(N, C) outputs for the (N, C) final states of the tokens before, and the tokens' embeddings."""
        layer, width = self.layer, len(embedded)
        given = torch.cat([layer.token_layernorm(embedded), layer.hidden_layernorm(hidden)], dim=-1)
        positions = torch.arange(width)[None]
        mask = torch.full((width, width), torch.finfo(torch.float32).min).triu(1)[None, None]
        projected = layer.input_proj(given)[None]
        out = layer(projected, attention_mask=mask, position_embeddings=self.rotary(projected, positions))
        return layer.final_layernorm(out[0] if isinstance(out, tuple) else out)[0]


@torch.no_grad()
def drafted_by(head: Head, model: PreTrainedModel) -> Tensor:
    """(N, V) logits of a chain at the beginning of a text, where there are no keys but the head's own."""
    embedded, hidden = model.get_input_embeddings()(torch.tensor(CHAIN)), torch.zeros(1, model.config.hidden_size)
    for _ in CHAIN:
        out = head(hidden, embedded[: len(hidden)])
        hidden = torch.cat([torch.zeros_like(hidden[:1]), out])
    return model.lm_head(out)


def test_the_head_drafts_what_the_jump_drafts_where_both_see_the_same_keys(tmp_path: Path) -> None:
    model = model_of()
    run, out = finetuned(tmp_path / "run", jump(model)), tmp_path / "out"
    assert "keys of its own" in exported(run, out)
    target = Target(model, packed=False)
    target.allocate(1, 16)
    path = adapted_path(target, Adapter.read(run))
    ours = target.draft_forward(path, [0], 0, CHAIN[:1], [TokenTree.chain(CHAIN[1:])])[0]
    torch.testing.assert_close(drafted_by(Head(out), model), ours, rtol=1e-3, atol=1e-3)


def test_the_package_itself_loads_the_checkpoint(tmp_path: Path) -> None:
    mtp = pytest.importorskip("speculators.models.mtp")
    model = model_of()
    run, out = finetuned(tmp_path / "run", jump(model)), tmp_path / "out"
    exported(run, out)
    config = mtp.MTPSpeculatorConfig.from_pretrained(out)
    assert config.num_speculative_steps == 2
    head = mtp.MTPDraftModel(config)
    tensors = load_file(out / "model.safetensors")
    missing, unknown = head.load_state_dict(tensors, strict=False)
    assert not unknown and not [name for name in missing if name.startswith("mtp_layers")]


def test_the_folder_says_what_differs_and_its_subfolder_drafts(tmp_path: Path) -> None:
    run, out = finetuned(tmp_path / "run", jump(model_of())), tmp_path / "out"
    exported(run, out)
    exported(run, out)  # once more, over its own
    said = (out / "README.md").read_text()
    assert "keys of its own" in said and f"{'<this folder>'}/selfdraft model=tiny model.family=qwen3" in said
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    found = Artifact.read(out / "selfdraft")
    assert found.options == {"adapter": str(out / "selfdraft"), "draft_length": 2}
    ours, theirs = Adapter.read(run), Adapter.read(found.options["adapter"])
    assert ours.tensors.keys() == theirs.tensors.keys()
    method = json.loads((out / "config.json").read_text())["speculators_config"]["proposal_methods"][0]
    assert method["speculative_tokens"] == 2


def refused(run: Path, out: Path, message: str, family: str = "qwen3") -> None:
    with pytest.raises(UserError, match=message) as caught:
        exported(run, out, family)
    assert "\n" not in str(caught.value) and not out.exists()


def test_what_no_kind_fits_is_refused_with_the_reason(tmp_path: Path) -> None:
    model, out, run = model_of(), tmp_path / "out", tmp_path / "run"
    refused(finetuned(run, jump(model, (2, 3)), (2, 3)), out, r"one layer: train with 'finetune\.copies=\[3\]'$")
    refused(finetuned(run, jump(model), (2, 3)), out, "runs other layers beside the trained one")
    some = {**jump(model), "vocabulary": torch.arange(9)}
    refused(finetuned(run, some), out, r"drafts 9 token ids, .* train with finetune\.vocabulary=null$")
    refused(
        finetuned(run, jump(model_of("llama")), family="llama"), out, "model of type llama, .* qwen3 only$", "llama"
    )
    exits = {name: t for name, t in jump(model).items() if name != "jump.weight"}
    refused(finetuned(run, exits), out, "trained no jump: .* task.format=peft takes them$")
    finetuned(run, jump(model))
    refused_folder = run  # a folder that holds something else
    with pytest.raises(UserError, match="holds something else"):
        exported(run, refused_folder)
