"""Tiny random models of families whose layers keep a state, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfdraft.models.loading.tiny import tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
}
LAYERS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
SPACE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
# One of every kind: short convolutions, gated delta rules, and state spaces beside attention.
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "qwen3_next": {**EXPERTS, **LINEAR, "layer_types": LAYERS},
    "qwen3_5_text": {**LINEAR, "layer_types": LAYERS},
    "falcon_h1": {**SPACE, "mamba_chunk_size": 8},
}
REFUSED = {
    "mamba": {"state_size": 8},  # its forward takes up a text from a state one token at a time only
}
MILDER = 30.0  # see `subjects.MILDER`


@cache
def hybrid(family: str, vocab_size: int = 96) -> PreTrainedModel:
    """A random model of a family, made once."""
    config = AutoConfig.for_model(family, **{**SIZES, "vocab_size": vocab_size, **(HYBRIDS | REFUSED)[family]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(MILDER)
    return model


def save_hybrid(family: str, folder: Any) -> None:
    """Write a model with a byte tokenizer."""
    tokenizer = tiny_tokenizer()
    hybrid(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
