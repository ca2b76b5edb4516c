"""Find the parts of a loaded model: its embedding, layers, norm and head, and how its layers are called.

Parts are found by structure and not by a list of classes, so that most new families just work. `target` then compares
our forward through the parts with the model's own. A family whose logits differ is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.models.families.peculiar import peculiarity

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
USUAL_LENGTH = 2048  # tokens of the texts on which BLOOM was trained, which needs no limit


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
        decoder: the module whose own forward runs the layers; None: they are called one by one. With it, `norm` and
            `rotary` do nothing where they were not found, and a name of a sublayer may be empty: it has no module.
        returned: by layer and sublayer, how many things the sublayer returns; 0: only a tensor. Known with `decoder`.
        family: the model type, for messages. Known with `decoder`.
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
    decoder: nn.Module | None = None
    returned: Mapping[tuple[int, str], int] = field(default_factory=dict)
    family: str = ""

    def shares_keys(self, index: int) -> bool:
        """Return whether later layers read the keys of this one (Gemma 3n and 4), so that it cannot be left out."""
        attention = getattr(self.layers[index], self.attention_name, None) if self.attention_name else None
        return self.decoder is not None and bool(getattr(attention, "store_full_length_kv", False))


def refuse(model: PreTrainedModel, reason: str) -> UserError:
    """Return the error for a model that cannot be driven.

    It names a change to this one object if there is any (see `peculiar`), and the whole family otherwise.

    Args:
        reason: what is missing or differs.
    """
    if (found := peculiarity(model)) is not None:
        return Unsupported(f"this {type(model).__name__} cannot be driven as it is: {found} ({reason})")
    subs = {name: vars(model.config).get(name) for name in model.config.sub_configs}
    if parts := [name for name, sub in subs.items() if hasattr(sub, "num_hidden_layers")]:
        reason = f"it is composed of several models ({', '.join(parts)})"
    return Unsupported(
        f"model family '{model.config.model_type}' ({type(model).__name__}) is not supported: {reason}; "
        "supported are decoder-only models whose forward goes on from a cache of the text, such as Llama, Qwen, "
        "Mistral, Gemma, Phi, GPT-OSS, Cohere and DeepSeek; docs/families.md lists them"
    )


@contextmanager
def refusing(
    model: PreTrainedModel, what: str = "its layers do not run with the mask and the cache of a draft"
) -> Iterator[None]:
    """Turn exceptions of a model's parts, when we call them, into the one-line error of `refuse`, which says `what`.

    Raises:
        UserError: in place of any exception but UserError itself and errors for lack of memory.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as broken:
        raise refuse(model, f"{what} ({type(broken).__name__})") from broken


def dissect(model: PreTrainedModel) -> Anatomy:
    """Find the parts of `model`: those of `dissect_layers` if they can be found, else those of `dissect_whole`.

    Raises:
        UserError: neither can be found; the message names the family and the part.
    """
    try:
        return dissect_layers(model)
    except UserError:
        if peculiarity(model) is not None:
            raise
        return dissect_whole(model)


def dissect_layers(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model whose layers can be called one by one.

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
        raise refuse(model, f"it has layers of type {', '.join(sorted(unknown))}, which keep more than keys and values")
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


def dissect_whole(model: PreTrainedModel) -> Anatomy:
    """Find what is needed to run a path in the model's own forward: its decoder, layers, embedding and head.

    Raises:
        UserError: a part is missing.
    """
    base, config = model.base_model, text_config(model)
    if config.is_encoder_decoder:
        raise refuse(model, "it is an encoder-decoder")
    depth = getattr(config, "num_hidden_layers", None)
    stacks = [
        (name, stack)
        for name, stack in base.named_modules()
        if isinstance(stack, nn.ModuleList) and len(stack) and len(stack) == depth and _takes_cache(stack[0])
    ]
    if len(stacks) != 1:
        raise refuse(model, "it has no single stack of layers that keep their keys in a cache")
    name, layers = stacks[0]
    if any("cross_attn" in layer._modules for layer in layers):
        raise refuse(model, "some of its layers attend to images, and are left out where there are none")
    decoder: nn.Module | None = None
    while decoder is None or "input_ids" not in inspect.signature(decoder.forward).parameters:
        if not name:
            raise refuse(model, "the part of it that runs its layers takes no token ids")
        name = name.rpartition(".")[0]
        decoder = base.get_submodule(name)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embed is None or head is None:
        raise refuse(model, "its embedding or head was not found")
    if "position_ids" not in inspect.signature(decoder.forward).parameters and "alibi" not in _parameters(layers[0]):
        raise refuse(model, "its positions cannot be given, as a draft with branches needs")
    types = getattr(config, "layer_types", None) or [FULL] * len(layers)
    if unknown := set(types) - {FULL, SLIDING, CHUNKED}:
        kinds = ", ".join(sorted(unknown))
        raise refuse(model, f"it has layers of type {kinds}, which keep more than keys and values")
    rotary = getattr(decoder, "rotary_emb", None) or nn.Identity()
    norms = ("norm", "final_layer_norm", "ln_f", "norm_f", "final_layernorm", "layer_norm")
    return Anatomy(
        embed=embed,
        layers=tuple(layers),
        norm=next((m for name, m in decoder.named_children() if name in norms), nn.Identity()),
        rotary=rotary,
        head=head,
        attention_name=_named_in_all(layers, ("self_attn", "attention", "attn", "self_attention")),
        mlp_name=_named_in_all(layers, ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")),
        cache_argument="past_key_values",
        layer_types=tuple(types),
        window=None,
        rotary_per_type="layer_type" in inspect.signature(rotary.forward).parameters,
        softcap=None,
        decoder=decoder,
        family=model.config.model_type,
    )


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration of the part of a model that reads text."""
    return model.config.get_text_config(decoder=True)


def position_limit(config: PreTrainedConfig, unlimited: int = USUAL_LENGTH) -> int:
    """Return how many positions a model has; `unlimited` if it has no limit (biases by distance)."""
    names = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
    found = (getattr(config, name, None) for name in names)
    return next((int(limit) for limit in found if isinstance(limit, int)), unlimited)


def _parameters(layer: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(layer.forward).parameters


def _takes_cache(layer: nn.Module) -> bool:
    return any(name in _parameters(layer) for name in ("past_key_values", "past_key_value", "layer_past"))


def _named_in_all(layers: nn.ModuleList, names: tuple[str, ...]) -> str:
    """Return the first name of a sublayer that all layers have, or nothing."""
    has = (name for name in names if all(isinstance(getattr(layer, name, None), nn.Module) for layer in layers))
    return next(has, "")
