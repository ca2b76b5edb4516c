"""Make random models of many families and a tokenizer for them, small enough for tests. Nothing is downloaded.

They are stock transformers architectures, so a test on one of them (masks, windows, caches, skipped sublayers) runs the
same code as a real checkpoint of the family. Only the sizes are small and the weights random.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from selfdraft.core.errors import UserError

WINDOW = 8  # tokens that sliding-window layers see: few, so that a text of some dozen tokens is longer

# Options of each family besides the sizes that all share. The keys are transformers' own model types.
# Gemma's embeddings are untied: tied and random, they make it repeat the last token for ever.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": WINDOW},  # in every layer
    "gemma2": {"sliding_window": WINDOW, "tie_word_embeddings": False},  # every other layer, as this family always does
    "gemma3_text": {"sliding_window": WINDOW, "sliding_window_pattern": 2, "tie_word_embeddings": False},
    "phi3": {},
    "gpt_neox": {},
    "olmo2": {},
}
_WITHOUT_GQA = {"gpt_neox"}  # its configuration has no such field, and one added here would mislead code that reads it

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    vocab_size: int = 96,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    max_positions: int = 512,
    eos_token_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """Make a random model of a family, in eval mode. A seed gives the same weights in every dtype, up to rounding.

    Args:
        family: One of `FAMILIES`.
        seed: Of the weights. The global generator is left as it was.
        vocab_size: `len(tiny_tokenizer())` for text.
        layers: Decoder layers.
        hidden: Width of the residual stream; the MLP is twice as wide.
        heads: Attention heads.
        kv_heads: Key-value heads, in the families that group queries.
        max_positions: The longest sequence the model is made for.
        eos_token_id: None for a model that never stops by itself.
        dtype: Of the parameters.
        attn_implementation: None for transformers' choice: sdpa, but eager for gemma2.
        **overrides: Any other field of the family's configuration.

    Raises:
        UserError: there is no such family, or the sizes do not divide.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no tiny model family {family!r}: choose one of {', '.join(FAMILIES)}")
    if hidden % (2 * heads) or heads % kv_heads:
        rule = "hidden must be a multiple of 2 * heads, and heads of kv_heads"
        raise UserError(f"hidden={hidden}, heads={heads}, kv_heads={kv_heads} do not divide: {rule}")
    shape = {
        "vocab_size": vocab_size,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": max_positions,
        # Spread wide enough that greedy text wanders instead of repeating one token, and that the best token leads the
        # second by far more than rounding; at the usual 0.02 every token is about as likely as any other.
        "initializer_range": 0.5,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": eos_token_id,
    }
    if family not in _WITHOUT_GQA:
        shape["num_key_value_heads"] = kv_heads
    if family.startswith("gemma"):
        shape["query_pre_attn_scalar"] = hidden // heads
    config = AutoConfig.for_model(family, **{**shape, **FAMILIES[family], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    # Drawn in float32 and rounded here, so that a seed gives one model. Buffers keep their dtype, because rotary
    # frequencies must not be rounded (`from_pretrained` keeps them as well).
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of 256 bytes and three special tokens, with a chat template. It encodes any text losslessly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *_SPECIAL])}
    backend = Tokenizer(BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TINY_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
