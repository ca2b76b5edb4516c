"""Write a trained jump as a checkpoint of kind `mtp` of vllm-project/speculators, which that package and vLLM load.

Such a head has one decoder layer. Its input is a matrix times the evened embedding and the evened final hidden state of
the token before, which is what a `JumpPath` of one layer computes. One thing differs: the head has its own keys of the
committed tokens, computed from predicted states, where a jump reads those that the full model left. So it drafts other
tokens in a longer text, and how many of them are accepted has to be measured there.

The layout is that of speculators 0.9.0: config.json and model.safetensors, without embeddings and head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.models.trained.adapter import FEATURE, JUMP, SKIPPED, Adapter

KIND, VERSION = "mtp", "0.9.0"
FAMILIES = ("qwen3",)  # of the model types that this kind knows, those whose layers are driven here
LAYER = "mtp_layers.0."  # prefix of the head's tensors


@dataclass(frozen=True)
class SpeculatorsCheckpoint:
    """The contents of a checkpoint: its config.json, and its tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write the checkpoint into a folder, which is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(dict(self.tensors), folder / "model.safetensors", metadata={"format": "pt"})


def to_speculators(adapter: Adapter, model: PreTrainedModel, *, base: str, draft_length: int) -> SpeculatorsCheckpoint:
    """Convert a jump that was trained for `model`.

    Args:
        base: hub id or label of the model.
        draft_length: number of tokens that the head drafts by default.

    Raises:
        UserError: speculators has no kind for these weights; the message says why.
    """
    index = _only_layer(adapter, model)
    feature, jump = adapter.tensors[FEATURE], adapter.tensors[JUMP]
    even = torch.ones(len(feature))
    tensors = {
        "input_proj.weight": torch.cat([jump, feature], dim=1),  # embedding first
        "token_layernorm.weight": even,
        "hidden_layernorm.weight": even.clone(),
        "final_layernorm.weight": adapter.under("norm.")["weight"],
        **adapter.under(f"layer.{index}."),
    }
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": draft_length,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    config = {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": KIND,
        "speculators_version": VERSION,
        "num_nextn_predict_layers": 1,
        "transformer_layer_config": json.loads(model.config.to_json_string(use_diff=False)),
        "speculators_config": {
            "algorithm": KIND,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": base, "architectures": list(model.config.architectures or ())},
        },
    }
    return SpeculatorsCheckpoint(config, {f"{LAYER}{name}": t.contiguous() for name, t in tensors.items()})


def _only_layer(adapter: Adapter, model: PreTrainedModel) -> int:
    """Return the index of the one layer that a jump runs.

    Raises:
        UserError: it is no jump, or one that this kind cannot hold.
    """
    family = str(model.config.model_type)
    wrong = f"task.format=speculators: recipe '{adapter.recipe}'"
    if JUMP not in adapter.tensors:
        raise UserError(
            f"{wrong} trained no jump: heads of speculators (mtp, eagle3, dflash) begin after the model's last layer, "
            "and these weights are for drafts that run the model's own first layers; task.format=peft takes them"
        )
    if family not in FAMILIES:
        raise UserError(
            f"{wrong} was trained for a model of type {family}, and speculators' kind {KIND} has layers of type "
            f"{' or '.join(FAMILIES)} only"
        )
    copies = sorted({int(name.split(".")[1]) for name in adapter.tensors if name.startswith("layer.")})
    if len(copies) != 1:
        raise UserError(
            f"{wrong} trained copies of layers {copies}, and speculators' kind {KIND} has one layer: train with "
            f"'finetune.copies=[{copies[-1]}]'"
        )
    if "vocabulary" in adapter.tensors:
        raise UserError(
            f"{wrong} drafts {len(adapter.tensors['vocabulary'])} token ids, and speculators' kind {KIND} drafts all: "
            "train with finetune.vocabulary=null"
        )
    skips = [set(adapter.settings.get(name, ())) for name in SKIPPED]
    layers = set(range(model.config.num_hidden_layers))
    if any(skip != layers - set(copies) for skip in skips):
        raise UserError(f"{wrong} runs other layers beside the trained one, and speculators' kind {KIND} has one layer")
    return copies[0]
