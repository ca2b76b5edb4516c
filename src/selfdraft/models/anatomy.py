"""Find the parts of a stock transformers decoder, and how its layers are called.

Parts are found by structure rather than by a list of classes, so that most new families just work; `target.py` then
compares our forward through the parts with the model's own, and a family that differs is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.models.peculiar import peculiarity

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True)
class Anatomy:
    """The parts of one decoder-only model.

    Attributes:
        layers: the stock decoder layers, in order.
        embed, norm, rotary, head: the input embedding, the final norm, the rotary embedding and the output head.
        attention_name, mlp_name: the attribute names of a layer's two sublayers.
        cache_argument: the keyword under which a layer takes the cache.
        layer_types: per layer, `full_attention` or `sliding_attention`.
        window: number of keys that a sliding layer sees, the token itself included; None without sliding layers.
        rotary_per_type: whether positions are embedded differently per layer type (Gemma 3).
        softcap: final logits are softcap * tanh(logits / softcap) if given (Gemma 2).
    """

    embed: nn.Module
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    rotary: nn.Module
    head: nn.Module
    attention_name: str
    mlp_name: str
    cache_argument: str
    layer_types: tuple[str, ...]
    window: int | None
    rotary_per_type: bool
    softcap: float | None


def refuse(model: PreTrainedModel, reason: str) -> UserError:
    """Return the error for a model that cannot be driven.

    It names a change to this one object if there is any (see `peculiar`), and the whole family otherwise.

    Args:
        reason: what is missing or differs.
    """
    if (found := peculiarity(model)) is not None:
        return UserError(f"this {type(model).__name__} cannot be driven as it is: {found} ({reason})")
    if parts := [name for name in model.config.sub_configs if name in vars(model.config)]:
        reason = f"it is composed of several models ({', '.join(parts)})"
    return UserError(
        f"model family '{model.config.model_type}' ({type(model).__name__}) is not supported: {reason}; "
        "supported are decoder-only models with rotary positions, such as Llama, Qwen2/3, Mistral, Gemma 2/3, Phi-3, "
        "GPT-NeoX and OLMo2"
    )


@contextmanager
def refusing(model: PreTrainedModel) -> Iterator[None]:
    """Turn exceptions of a model's parts, when we call them, into the one-line error of `refuse`.

    Raises:
        UserError: in place of any exception but UserError itself and errors for lack of memory.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as broken:
        reason = f"its layers cannot be driven one by one ({type(broken).__name__})"
        raise refuse(model, reason) from broken


def dissect(model: PreTrainedModel) -> Anatomy:
    """Find the parts of `model`.

    Raises:
        UserError: a part is missing or of an unknown kind; the message names the family and the part.
    """
    base, config = getattr(model, "base_model", None), getattr(model, "config", None)
    if base is None or config is None:
        raise UserError(f"a {type(model).__name__} is no transformers model: {peculiarity(model)}")
    if config.is_encoder_decoder:
        raise refuse(model, "it is an encoder-decoder")
    depth = getattr(config, "num_hidden_layers", None)
    stacks = [m for m in base.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1 or not depth:
        raise refuse(model, "it has no single stack of decoder layers")
    layers = tuple(stacks[0])
    rotary = getattr(base, "rotary_emb", None)
    if rotary is None:
        raise refuse(model, "it has no rotary position embedding shared by its layers")
    norm = next((m for name, m in base.named_children() if name in ("norm", "final_layer_norm")), None)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if norm is None or embed is None or head is None:
        raise refuse(model, "its final norm, embedding or head was not found")
    if not all(isinstance(getattr(config, name, None), int) for name in ("max_position_embeddings", "vocab_size")):
        raise refuse(model, "its configuration does not say how many positions and token ids it has")
    parameters = inspect.signature(layers[0].forward).parameters
    cache_argument = next((name for name in ("past_key_values", "layer_past") if name in parameters), None)
    if cache_argument is None or "position_embeddings" not in parameters:
        raise refuse(model, "its layers do not take a cache and position embeddings")
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    types = getattr(config, "layer_types", None) or [FULL if window is None else SLIDING] * depth
    unknown = set(types) - {FULL, SLIDING}
    if unknown:
        raise refuse(model, f"it has layers of type {', '.join(sorted(unknown))}")
    return Anatomy(
        embed=embed,
        layers=layers,
        norm=norm,
        rotary=rotary,
        head=head,
        attention_name=_sublayer(model, layers[0], ("self_attn", "attention")),
        mlp_name=_sublayer(model, layers[0], ("mlp",)),
        cache_argument=cache_argument,
        layer_types=tuple(types),
        window=window if SLIDING in types else None,
        rotary_per_type="layer_type" in inspect.signature(rotary.forward).parameters,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _sublayer(model: PreTrainedModel, layer: nn.Module, names: tuple[str, ...]) -> str:
    found = next((name for name in names if isinstance(getattr(layer, name, None), nn.Module)), None)
    if found is None:
        raise refuse(model, f"its layers have no sublayer called {' or '.join(names)}")
    return found
