"""Make a random small model of any family that transformers has a causal language model for.

`tiny` makes models of nine families that the test suite knows in every detail. This file makes one of any family, from
its own configuration class: every field that says a size gets a small value. It is for tests and `scripts/families.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from selfdraft.core.errors import UserError
from selfdraft.models.families.anatomy import dissect
from selfdraft.models.families.parts import attribute
from selfdraft.models.loading.tiny import FAMILIES, tiny_model

PARAMETERS = 15_000_000  # a model with more was not made small by SIZES
MILDER = 30.0  # with larger embeddings, sublayers add little, as in trained models, so that some drafts are accepted
WINDOW = 8  # positions that a sliding layer sees, or that a chunk has: fewer than a text has tokens
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
IDS = 95  # the special id of families that must have one
TYPES = ["sliding_attention", "full_attention"] * 2
HYBRID = ["linear_attention", "full_attention"] * 2
SPACE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
# Fields that make a configuration small, where it has them. Names of the same size differ from family to family.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 96),
    **dict.fromkeys(("num_hidden_layers", "decoder_layers", "num_layers", "depth"), 4),
    **dict.fromkeys(("hidden_size", "embedding_size", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "decoder_ffn_dim", "ffn_dim", "intermediate_size_mlp"), 64
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "laurel_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size"), WINDOW),
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "index_topk": WINDOW,  # keys that an indexer chooses: fewer than a text has
    "floor_scale": 4,  # Llama 4 scales queries by their positions, from this one on
    "rotary_dim": 4,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
    "is_decoder": True,
}
# Families whose fields depend on each other.
OWN: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"layer_types": TYPES, "num_kv_shared_layers": 2},
    "gemma4_text": {"layer_types": TYPES, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "modernbert-decoder": {"layer_types": TYPES},
    "bamba": {**SPACE, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {**SPACE, "layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "mamba2": {"num_heads": 8, "state_size": 8, "chunk_size": 8, "n_groups": 1},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "kimi_linear": {"layer_types": HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "bailing_hybrid": {"layer_types": HYBRID, "first_k_dense_replace": 1},
    "longcat_flash": {"moe_topk": 2, "num_experts_per_tok": 2},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 16)},
    "xlm": {"pad_index": 0},
    "prophetnet": {"pad_token_id": 0},
    "xlnet": {"d_head": 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_top_k": 2},
    },
    "gemma4_unified_text": {"layer_types": TYPES, "num_kv_shared_layers": 2},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
        "rope_parameters": None,
        "num_key_value_heads": 4,
        "index_head_dim": 8,
        "index_n_heads": 16,
        "shared_experts_intermediate_size": 32,
    },
    "deepseek_v4": {
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots3_note.vision_config": {"per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note.audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "cohere_compass_text": {
        "layer_types": TYPES,
        "rope_parameters": {name: {"rope_type": "default", "rope_theta": 10000.0} for name in TYPES},
    },
}


NEED_IDS = (
    "gemma4",
    "gemma4_unified",
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


ASSISTANT = "it writes no text by itself: it drafts for another model, whose keys it reads"
SOUND = "it writes no text but sound, as several codes at once"
# Families of which a small model would not help.
OTHER_KINDS = {
    "gemma4_assistant": ASSISTANT,
    "gemma4_unified_assistant": ASSISTANT,
    "musicgen": SOUND,
    "musicgen_melody": SOUND,
}


class TooLarge(Exception):
    """A model was not made small."""


class NoText(Exception):
    """Models of a family write no text by themselves."""


def families() -> list[str]:
    """Return the model types of all causal language models, those of the test suite first."""
    found = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    return [*FAMILIES, *sorted(found - set(FAMILIES))]


def small_config(family: str) -> PreTrainedConfig:
    """Return a small configuration of a family.

    Raises:
        Exception: the family's own, if the sizes do not fit together.
    """
    refused: Exception | None = None
    for special in (None, IDS)[family in NEED_IDS :]:  # some families do not do without special tokens
        try:
            return _small(CONFIG_MAPPING[family], family, special)
        except Exception as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _small(kind: type[PreTrainedConfig], family: str, special: int | None) -> PreTrainedConfig:
    known = kind()
    names = set(known.to_dict()) | set(known.attribute_map)
    fields = {name: value for name, value in SIZES.items() if name in names}
    fields |= {name: special for name in SPECIAL if name in names or kind.sub_configs}
    if "kv_lora_rank" in names and "num_key_value_heads" in names:  # latent attention has keys for every head
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    for name, sub in kind.sub_configs.items():
        if isinstance(sub, type) and isinstance(getattr(known, name, None), PreTrainedConfig):
            fields[name] = _small(type(getattr(known, name)), f"{family}.{name}", special).to_dict()
    of_text = family.replace(".text_config", "_text")
    return kind(**fields | OWN.get(of_text, {}))


def small_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a random small model of a family; one family and dtype always give the same model.

    Raises:
        UserError: the family is refused.
        NoText: its models write no text by themselves.
        TooLarge: `SIZES` did not make it small.
        Exception: transformers' own, if it cannot be made.
    """
    if family in FAMILIES:
        return tiny_model(family, dtype=dtype)
    if family in OTHER_KINDS:
        raise NoText(OTHER_KINDS[family])
    config = small_config(family)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if kind.config_class is not type(config):  # the part of a composite that reads text
        config = config.get_text_config()
    with torch.device("meta"):
        outline = kind._from_config(config)
    if (count := sum(p.numel() for p in outline.parameters())) > PARAMETERS:
        try:
            dissect(outline)
        except UserError:
            raise
        raise TooLarge(f"it has {count:,} parameters: the script does not know the names of its sizes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = kind._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        attribute(model.get_input_embeddings(), "weight", torch.Tensor).mul_(MILDER)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # buffers keep theirs, as in `from_pretrained`
    model.config.dtype = dtype
    model.generation_config = GenerationConfig()  # its texts never end by themselves
    return model
