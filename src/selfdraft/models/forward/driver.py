"""Call the layers of a stock model: any of them, one by one or by an engine, on tokens at any place of a cache.

`Driver` prepares a loaded model. It makes light copies of the layers, in which the attention function is ours and the
matrices are fused or packed; the model itself stays as it is. It finds the engine's graph for layers that run at once,
and turns final hidden states into logits. `target.Target` adds the cache and the requests.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree (N = n + 1 with the root), V vocabulary, C hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.attention import FLEX
from selfdraft.models.cache.attention import NAME as GROUPED_SDPA
from selfdraft.models.families.anatomy import Anatomy, dissect, refusing, text_config
from selfdraft.models.families.dispatch import device_of
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.families.rotary import Rotary
from selfdraft.models.families.routing import mixtures
from selfdraft.models.forward.path import Graph, Path
from selfdraft.models.forward.whole import WholeForward, with_attention
from selfdraft.models.kernels.fusing import fast_module
from selfdraft.models.kernels.native.engine import NativeEngine
from selfdraft.models.kernels.packing import PackedLinear
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.kernels.weights import SAME


class Driver:
    """A stock causal LM whose layers are called one by one.

    The model itself is left as it is: packed matrices and the attention function live in light copies of its layers.

    Attributes:
        full: the path of all layers. norm, head: the modules that come after the layers.
        rotary: the rotary positions (see `rotary`).
        whole: runs paths in the model's own forward; None: layers are called one by one.
        rotated: how many numbers of an attention head are rotated, one entry for each way that layers do it.
        share: query heads that `grouped_sdpa` folds into the query length; 1 with other attention functions.
        native: puts together what runs a path's layers in C++; None: layers are run in another way.
        compiled: what runs certain layers in a row at once, by the identities of these layers: graphs (see `compiled`),
            or with `native` the layers of the full model and of trained paths.
        compiled_head: a graph of the head; None: `head` is called.
        weights: how graphs store matrices (see `weights`).
        tell: called with a line before something that takes seconds.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool, attention: str, anatomy: Anatomy | None = None) -> None:
        """Take a loaded model in eval mode. See `Target` for the arguments.

        Args:
            anatomy: its parts; None: they are looked for.

        Raises:
            UserError: the family cannot be driven; the message names it.
        """
        self.model = model
        self.anatomy = anatomy or dissect(model)
        self.device, self.dtype = device_of(model), model.dtype
        self.packed, self.attention = packed, attention
        self.vocab_size = int(text_config(model).vocab_size)
        self.pad_id = first_in(
            self.vocab_size, *(getattr(model.config, n, None) for n in ("pad_token_id", "eos_token_id"))
        )
        self.native: NativeEngine | None = None
        self.compiled: dict[tuple[int, ...], Graph] = {}
        self.compiled_head: Callable[[Tensor], Tensor] | None = None
        self.weights = SAME
        self.tell: Callable[[str], object] = lambda line: None
        with refusing(model):
            self.whole = None if self.anatomy.decoder is None else WholeForward(model, self.anatomy)
            if self.whole is not None:
                self.anatomy = replace(self.anatomy, returned=self.whole.returned)
            self.rotary = Rotary(model, self.anatomy)
            self.rotated = self._rotated()
            layers = [self.driven(layer, place) for place, layer in enumerate(self.anatomy.layers)]
            self.full = Path(tuple(layers), self.anatomy.layer_types, SkipSet(), leading=len(layers))
            self.norm, self.head = self.fastest(self.anatomy.norm), self.fastest(self.anatomy.head)

    def driven(self, layer: nn.Module, place: int) -> nn.Module:
        """Return a light copy of a stock layer for forwards: with our attention, fused and packed where possible.

        Args:
            place: which layer of the model it is.
        """
        layer = light_copy(layer, _stock)
        self._set_attention(layer)
        layer = self.fastest(layer)
        layer.__dict__["place"] = place
        return layer

    def fastest(self, module: nn.Module) -> nn.Module:
        """Return a light copy of a module, fused and packed where possible."""
        return light_copy(module, partial(fast_module, rotated=self.rotated) if self.packed else _stock)

    def graph(self, layers: Sequence[nn.Module], types: Sequence[str]) -> Graph | None:
        """Return what runs these layers at once; None if they have to be called one by one.

        Args:
            types: `full_attention` or `sliding_attention` for each of them.
        """
        if not layers or not self.compiled:
            return None
        found = self.compiled.get(tuple(map(id, layers)))
        return self.native.graph(layers, types) if found is None and self.native is not None else found

    def linears(self) -> list[nn.Module]:
        """Return every matrix of the full path and the head, packed or not."""
        modules = (part for module in (*self.full.layers, self.head) for part in module.modules())
        return [part for part in modules if isinstance(part, nn.Linear | PackedLinear)]

    def mixtures(self) -> list[nn.Module]:
        """Return the parts of the full path that run experts."""
        return mixtures(self.full.layers)

    def logits(self, path: Path, hidden: Tensor, trees: Sequence[TokenTree]) -> list[Tensor]:
        """Return (n + 1, V) logits per row, from (B, N, C) final hidden states."""
        # One 2-D contiguous product of the real tokens only: F.linear on anything else may copy the head's weight.
        real = torch.cat([hidden[b, : 1 + len(tree)] for b, tree in enumerate(trees)])
        with single_threaded(path.head is None and self.compiled_head is not None):
            head = path.head or self.compiled_head or self.head
            logits = head(real) if self.whole is None else self.whole.logits(real, head)
            if self.anatomy.softcap is not None:
                logits = torch.tanh(logits / self.anatomy.softcap) * self.anatomy.softcap
        # The head may be on another device (see `dispatch`); drafters and acceptance know only that of the first layer.
        logits = spread_out(logits, path.vocabulary, self.vocab_size).to(self.device)
        return list(logits.split([1 + len(tree) for tree in trees]))

    @torch.inference_mode()
    def _rotated(self) -> frozenset[int]:
        """Return how many numbers of a head are rotated, for every layer type: some families rotate only a part."""
        if self.whole is not None:
            return frozenset()
        hidden = torch.zeros(1, 1, 1, dtype=self.dtype, device=self.device)
        first = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return frozenset(self.rotary(hidden, first, kind)[0].shape[-1] for kind in set(self.anatomy.layer_types))

    def _set_attention(self, layer: nn.Module) -> None:
        """Give a light copy its attention function: eager in place of sdpa if scores are capped (Gemma 2)."""
        if self.whole is not None:
            self.share = 1
            self._set_attentions(layer)
            return
        attention, name = getattr(layer, self.anatomy.attention_name), self.attention
        attention.config = copy.copy(attention.config)
        if name == "sdpa" and getattr(attention.config, "attn_logit_softcapping", None) is not None:
            name = "eager"
        attention.config._attn_implementation = {"sdpa": GROUPED_SDPA, "flex": FLEX}.get(name, name)
        self.share = int(getattr(attention, "num_key_value_groups", 1)) if name == "sdpa" else 1

    def _set_attentions(self, layer: nn.Module) -> None:
        """Give every part of a light copy that has a configuration one that names our attention function."""
        name = {"sdpa": GROUPED_SDPA, "flex": FLEX, "stock": "sdpa"}.get(self.attention, self.attention)
        for part in layer.modules():
            if isinstance(config := part.__dict__.get("config"), PreTrainedConfig):
                part.__dict__["config"] = with_attention(config, name)


def _stock(_: str, __: nn.Module) -> None:
    """Keep every module: a `Swap` for `light_copy`."""


def spread_out(logits: Tensor, vocabulary: Tensor | None, size: int) -> Tensor:
    """Return (n, v) logits of a part of the vocabulary as (n, size), with -inf for ids that the path cannot draft."""
    if vocabulary is None:
        return logits
    return logits.new_full((len(logits), size), float("-inf")).index_copy_(1, vocabulary, logits)


def first_in(size: int, *ids: int | Sequence[int] | None) -> int:
    """Return the first id of a vocabulary of this size among several that may be given; 0 if there is none."""
    flat = [i for given in ids if given is not None for i in ([given] if isinstance(given, int) else given)]
    return next((int(i) for i in flat if 0 <= i < size), 0)
