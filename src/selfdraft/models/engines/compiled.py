"""The compiled engine: layers as one graph of OpenVINO, so that a forward on a CPU does not wait for Python.

The graph is made by tracing the model's own layers, so no model code is written twice. It takes any number of rows,
tokens and slots. The keys and values in the cache are its inputs. Those of the new tokens are outputs, which are
written to the cache afterwards.

Shapes: B rows of one forward, N tokens a row, S slots of the cache, C hidden size, H query heads, G key/value heads, D
head size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from selfdraft.models.cache.attention import additive
from selfdraft.models.cache.cache import CacheWindow
from selfdraft.models.engines.graph import compiled
from selfdraft.models.families.lightcopy import SkippedAttention, light_copy
from selfdraft.models.families.parts import matrix
from selfdraft.models.families.rotary import Rotation
from selfdraft.models.forward.driver import Driver
from selfdraft.models.kernels.weights import SAME

NAME = "selfdraft_two_part"
TRACED = (2, 3, 5)  # rows, tokens and slots of the example that is traced: all different, none of them 1


def two_part(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Run attention over keys in two pieces: those in the cache, and those of the new tokens, not yet in it.

    Query heads that share keys are folded into the query length, so that keys are not repeated for each of them.

    Args:
        query: (B, H, N, D). key, value: pairs of (B, G, S, D) and (B, G, N, D).
        attention_mask: (B, 1, H/G * N, S + N), added to the scores.

    Returns:
        (B, N, H, D) and no weights, as transformers' attention functions do.
    """
    batch, heads, width, size = query.shape
    # Joining the pieces copies this layer's keys and values, but it needs fewer operations than working on each piece.
    # OpenVINO prepares every operation anew when a forward has another number of tokens than the one before.
    keys, values = torch.cat(key, dim=2), torch.cat(value, dim=2)
    folded = (query * scaling).reshape(batch, keys.shape[1], -1, size)
    if softcap is None:
        out = scaled_dot_product_attention(folded, keys, values, attn_mask=attention_mask, scale=1.0)
    else:  # which that operation does not have
        scores = torch.tanh(folded @ keys.transpose(2, 3) / softcap) * softcap
        out = (scores + attention_mask).softmax(-1) @ values
    return out.reshape(batch, heads, width, -1).transpose(1, 2), None


AttentionInterface.register(NAME, two_part)  # transformers' public registry of attention functions


class _TwoParts:
    """The cache of a traced forward: hands attention both pieces, and notes the new one."""

    def __init__(self, held: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self._held = held
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Any, Any]:
        self.new[layer_idx] = keys, values
        old_keys, old_values = self._held.get(layer_idx, (keys, values))
        return (old_keys, keys), (old_values, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _Layers(nn.Module):
    """Layers as a pure function of tensors, to be traced."""

    def __init__(self, layers: Sequence[nn.Module], types: Sequence[str], cache_argument: str) -> None:
        super().__init__()
        self.layers, self.types, self.cache_argument = nn.ModuleList(layers), list(types), cache_argument
        self.kinds = sorted(set(types))
        self.indices: list[int] = []  # which layers write keys

    def run(self, hidden: Tensor, by_kind: Sequence[Tensor], cache: _TwoParts) -> Tensor:
        """Return the (B, N, C) output. `by_kind`: mask, cosines and sines of each kind of layer, in turn."""
        for layer, kind in zip(self.layers, self.types, strict=True):
            mask, cos, sin = by_kind[3 * self.kinds.index(kind) :][:3]
            hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin), **{self.cache_argument: cache})
        return hidden

    def forward(self, hidden: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and the new keys, then values of all n layers that have any, (2 n * B, G, N, D)."""
        by_kind, held = given[: 3 * len(self.kinds)], given[3 * len(self.kinds) :]
        count = len(self.indices)
        cache = _TwoParts(dict(zip(self.indices, zip(held[:count], held[count:], strict=True), strict=True)))
        hidden = self.run(hidden, by_kind, cache)
        new = [cache.new[i] for i in self.indices]
        return hidden, torch.cat([pair[0] for pair in new] + [pair[1] for pair in new])


class CompiledLayers:
    """Several layers of a model, one after the other, as one graph."""

    def __init__(
        self,
        driver: Driver,
        layers: Sequence[nn.Module],
        types: Sequence[str],
        weights: str = SAME,
        *,
        of: Sequence[nn.Module],
    ) -> None:
        """Trace and compile: some seconds.

        Args:
            layers: stock layers. types: `full_attention` or `sliding_attention`, for each of them.
            weights: one of `weights.WEIGHTS`: how the graph stores matrices, where that keeps their values.
            of: the path's own layers that this graph runs for. Graphs are found by the identities of these layers. So
                the graph keeps them: Python may give the identity of a deleted layer to another one.

        Raises:
            ImportError: OpenVINO is not installed. Exception: of many types, if the layers cannot be traced.
        """
        self.of = tuple(of)
        self._dtype = driver.dtype
        copies = [_with_two_parts(layer, driver) for layer in layers]
        self._layers = _Layers(copies, types, driver.anatomy.cache_argument)
        self._share = max(_share(layer, driver) for layer in copies)
        with torch.inference_mode():
            example = self._example(driver)
            masks = range(1, 1 + 3 * len(self._layers.kinds), 3)  # the first of three inputs for each kind of layer
            lasts = [-1 if at in masks else tensor.shape[-1] for at, tensor in enumerate(example)]
            shapes = [
                [-1, -1, last] if tensor.dim() == 3 else [-1, tensor.shape[1], -1, last]
                for tensor, last in zip(example, lasts, strict=True)
            ]
            self._request = compiled(self._layers, example, shapes, weights)
        self._bound: tuple[int, ...] = ()  # which memory the request reads keys from
        self._given: list[Any] = []  # inputs of the last forward, which the request only points to
        self._held: list[Any] = []  # likewise the cache's memory

    @property
    def alike(self) -> int:
        """See `path.Graph`: no other graph is known to cost the same."""
        return id(self)

    def _example(self, driver: Driver) -> list[Tensor]:
        """Return inputs to trace with; finds out which layers write keys, and of what shape."""
        rows, width, slots = TRACED
        hidden = torch.randn(rows, width, int(driver.model.config.hidden_size), dtype=self._dtype)
        positions = torch.arange(width)[None].expand(rows, width)
        by_kind: list[Tensor] = []
        for kind in self._layers.kinds:
            mask = torch.zeros(rows, 1, self._share * width, 2 * width, dtype=self._dtype)
            rotation = driver.rotary(hidden, positions, kind)
            by_kind += [mask, *(part.expand(rows, -1, -1).contiguous() for part in rotation)]
        seen = _TwoParts({})
        self._layers.run(hidden, by_kind, seen)
        self._layers.indices, self._like = list(seen.new), seen.new
        for at in range(0, len(by_kind), 3):
            by_kind[at] = torch.zeros(rows, 1, self._share * width, slots + width, dtype=self._dtype)
        keys, values = zip(*seen.new.values(), strict=True)
        held = [new.new_zeros(*new.shape[:2], slots, new.shape[3]) for new in (*keys, *values)]
        return [hidden, *by_kind, *held]

    def __call__(
        self,
        hidden: Tensor,
        rotations: Mapping[str, Rotation],
        visible: Mapping[str, Tensor | None],
        view: CacheWindow,
    ) -> Tensor:
        """Return the (B, N, C) states after the layers, and write the new keys and values to the cache.

        Args:
            hidden: (B, N, C) input of the first layer.
            rotations: by kind of layer. visible: by kind of layer, (B, N, span) of `visible_slots`; None: all.
            view: the slots of the cache that are read and written.
        """
        rows, width, _ = hidden.shape
        by_kind: list[Tensor] = []
        for kind in self._layers.kinds:
            mask = self._mask(visible[kind], view, rows, width)
            by_kind += [mask, *(part.expand(rows, -1, -1).contiguous() for part in rotations[kind])]
        self._given = self._give([hidden.contiguous(), *by_kind], first=0)
        held = view.held(self._like)
        bound = (*(each.data_ptr() for each in held), len(view.starts), view.slots)
        if bound != self._bound:  # the request keeps pointing at the cache's memory until that is another one
            self._held, self._bound = self._give(held, first=len(self._given)), bound
        self._request.start_async()
        self._request.wait()
        out, new = (torch.from_numpy(self._request.get_output_tensor(at).data) for at in (0, 1))
        view.store(self._layers.indices, new.view(-1, rows, *new.shape[1:]))
        return out.clone()  # the request's own memory is overwritten by the next forward

    def _mask(self, visible: Tensor | None, view: CacheWindow, rows: int, width: int) -> Tensor:
        """Return the (B, 1, H/G * N, S + N) mask of the keys in the cache, then of the new ones."""
        slots = view.slots
        both = torch.zeros(rows, width, slots + width, dtype=torch.bool)
        for row, start in enumerate(view.starts):
            if visible is None:  # one token that sees all before it, and itself
                both[row, :, :start] = both[row, :, slots:] = True
            else:
                both[row, :, :start] = visible[row, :, :start]
                both[row, :, slots:] = visible[row, :, start : start + width]
        mask = additive(both, self._dtype, self._share)
        assert mask is not None
        return mask

    def _give(self, inputs: Sequence[Tensor], first: int) -> list[Any]:
        """Point the request's inputs from the one numbered `first` on at these tensors; return what must be kept."""
        from openvino import Tensor as Shared

        given = [Shared(each.numpy(), shared_memory=True) for each in inputs]
        for at, shared in enumerate(given, start=first):
            self._request.set_input_tensor(at, shared)
        return given


class CompiledHead:
    """The head as a graph of its own, because it runs on fewer tokens than the layers."""

    def __init__(self, head: nn.Module, weights: str = SAME) -> None:
        """Trace and compile; see `CompiledLayers`."""
        inputs = matrix(head).weight.shape[1]
        with torch.inference_mode():
            self._request = compiled(head, [torch.zeros(2, inputs)], [[-1, inputs]], weights)
        self._outputs = matrix(head).weight.shape[0]

    def __call__(self, states: Tensor) -> Tensor:
        """Return (n, V) logits of (n, C) states."""
        from openvino import Tensor as Shared

        states, logits = states.contiguous(), torch.empty(len(states), self._outputs)
        given, wanted = (Shared(each.numpy(), shared_memory=True) for each in (states, logits))
        self._request.set_input_tensor(0, given)
        self._request.set_output_tensor(0, wanted)
        self._request.start_async()
        self._request.wait()
        return logits


def _with_two_parts(layer: nn.Module, driver: Driver) -> nn.Module:
    """Return a light copy of a stock layer with our attention function."""
    layer = light_copy(layer, lambda *_: None)
    attention = getattr(layer, driver.anatomy.attention_name)
    if isinstance(attention, SkippedAttention):
        return layer
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = NAME
    return layer


def _share(layer: nn.Module, driver: Driver) -> int:
    return int(getattr(getattr(layer, driver.anatomy.attention_name), "num_key_value_groups", 1))
