"""Modules that stand for layers and other parts while the model's own forward runs (see `whole`).

A `Place` stands for a layer. `Given` returns a value that is known already, `Called` calls a function, and `Noting`
notes what a sublayer returns.

Shapes: B rows of one forward, N tokens a row, K keys, H query heads, C hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from selfdraft.models.cache.cache import CacheWindow
from selfdraft.models.families.anatomy import FULL
from selfdraft.models.families.rotary import Rotary

MASKS = ("attention_mask", "causal_mask", "mask")  # the names that families give to a layer's arguments
CACHES = ("past_key_values", "past_key_value", "layer_past")
BIAS = "alibi"  # a bias that is proportional to the position of the key, (B * H, 1, K)
States = list[Tensor] | None


@dataclass
class Call:
    """What one forward through the places gets and leaves.

    Attributes:
        layers: by place, the layer that runs there. masks: by place, the mask that this layer adds to its scores.
        view: our cache; None: layers get the mask and the cache that the family gives them.
        first, last: the places of the first and the last layer that run.
        hidden: (B, N, C) input of the first layer that runs; None: the states that the family computes.
        key_positions: (B, K) the position of every key, for biases by distance.
        slopes: (B * H,) how much such a bias grows from one position to the next; None: the family has none.
        states: see `Path.run`.
        entered, left: the states before the first layer that runs and after the last one.
        seen: by place, the mask that the family made. returned: how many things the layers return; 0: only a tensor.
        bias: the tensor that the family made for a bias by distance.
    """

    layers: Mapping[int, nn.Module]
    masks: Mapping[int, Tensor | None] = field(default_factory=dict)
    view: CacheWindow | None = None
    first: int = 0
    last: int = 0
    hidden: Tensor | None = None
    key_positions: Tensor | None = None
    slopes: Tensor | None = None
    states: States = None
    entered: Tensor | None = None
    left: Tensor | None = None
    seen: dict[int, object] = field(default_factory=dict)
    returned: int = 0
    bias: Tensor | None = None


def together(hidden: Tensor) -> Tensor:
    """Return (B, N, C) states as they are, and those of S parallel streams, (S, B, N, C), as (B, N, S * C)."""
    return hidden.movedim(0, 2).flatten(2) if hidden.dim() == 4 else hidden


def apart(hidden: Tensor, streams: int) -> Tensor:
    """Return (B, N, S * C) states as those of S streams, (S, B, N, C)."""
    return hidden.unflatten(2, (streams, -1)).movedim(2, 0)


class Place(nn.Module):
    """Stands for one layer of the decoder: runs the path's layer there, or none."""

    def __init__(self, index: int, stock: nn.Module, call: Call, returned: int, signature: inspect.Signature) -> None:
        """Take a layer's place.

        Args:
            returned: see `Call`. signature: of the stock layer's forward; finding it takes time.
        """
        super().__init__()
        # Not as children: the decoder's own forward must see no other modules than it has.
        self.__dict__.update(index=index, stock=stock, call=call, returned=returned, signature=signature)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stock layer, such as its type of attention."""
        return getattr(self.__dict__["stock"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the path's layer here, with our mask and cache, or return the states as they are."""
        call: Call = self.__dict__["call"]
        given = self.signature.bind(*args, **kwargs)
        first = next(iter(given.arguments))
        hidden = given.arguments[first]
        call.seen[self.index] = next((given.arguments[name] for name in MASKS if name in given.arguments), None)
        call.bias = given.arguments.get(BIAS)
        if self.index == call.first:
            if call.hidden is not None:
                hidden = given.arguments[first] = apart(call.hidden, len(hidden)) if hidden.dim() == 4 else call.hidden
            call.entered = together(hidden)
            if call.states is not None:
                call.states.append(call.entered)
        layer = call.layers.get(self.index)
        if layer is None:
            if call.view is not None:
                _share_keys(self.stock, given, call.view)
            return (hidden, *[None] * (self.returned - 1)) if self.returned else hidden
        if call.view is not None:
            _take_ours(given, call, self.index)
        out = layer(*given.args, **given.kwargs)
        after = out if isinstance(out, Tensor) else out[0]
        call.returned = 0 if isinstance(out, Tensor) else len(out)
        if call.states is not None:
            call.states.append(together(after))
        if self.index == call.last:
            call.left = together(after)
        return out


def _share_keys(stock: nn.Module, given: inspect.BoundArguments, view: CacheWindow) -> None:
    """Give later layers the keys of a layer that is not run, if they read them: those that are in the cache."""
    shared = given.arguments.get("shared_kv_states")
    for part in stock.children():
        if shared is not None and getattr(part, "store_full_length_kv", False):
            index, kind = cast("Any", part).layer_idx, cast("Any", part).layer_type
            if (held := view.read(index)) is not None:
                shared[kind] = held


def _take_ours(given: inspect.BoundArguments, call: Call, index: int) -> None:
    """Put our mask, cache and bias in the place of the family's."""
    parameters = given.signature.parameters
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    others = given.arguments.get(rest, {}) if rest is not None else {}
    for names, value in ((MASKS, call.masks[index]), (CACHES, call.view)):
        known = next((name for name in names if name in parameters), None)
        if known is not None:
            given.arguments[known] = value
        elif (name := next((name for name in names if name in others), None)) is not None:
            others[name] = value
    if "use_cache" in parameters:
        given.arguments["use_cache"] = True
    if call.slopes is not None and call.key_positions is not None:
        slopes = call.slopes.repeat(len(call.key_positions))[:, None, None]
        positions = call.key_positions.repeat_interleave(len(call.slopes), 0)
        given.arguments[BIAS] = (slopes * positions[:, None]).to(given.arguments[BIAS].dtype)


class Given(nn.Module):
    """Stands for a module whose result is known: returns that value, whatever it is called with."""

    def __init__(self, value: object, inner: str = "", stock: nn.Module | None = None) -> None:
        """Take the value.

        Args:
            inner: a dotted name of a part of it, which returns the value, too.
            stock: the module that it stands for: what is asked of it besides a call comes from there.
        """
        super().__init__()
        self.__dict__.update(value=value, stock=stock)
        if inner:
            name, _, rest = inner.partition(".")
            self.add_module(name, Given(value, rest))

    def __getattr__(self, name: str) -> Any:
        """Return a part of its own, or an attribute of the module that it stands for."""
        parts = self.__dict__["_modules"]
        return parts[name] if name in parts else getattr(self.__dict__["stock"], name)

    def forward(self, *_: object, **__: object) -> Any:
        """Return the value."""
        return self.__dict__["value"]


class Output(BaseModelOutputWithPast):
    """The output of a base model of which only the last states are known; other fields are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


class Lengths(nn.Module):
    """Rotary positions that depend on the length of the text at which each token is computed (see `rotary`)."""

    def __init__(self, rotary: Rotary, lengths: Tensor) -> None:
        super().__init__()
        self.rotary, self.lengths = rotary, lengths

    def forward(self, hidden: Tensor, position_ids: Tensor, layer_type: str = FULL) -> Any:
        """Return the cosines and sines."""
        return self.rotary(hidden, position_ids, layer_type, self.lengths)


class Noting(nn.Module):
    """Runs a sublayer, and notes how many things it returns; 0: only a tensor."""

    def __init__(self, stock: nn.Module, note: Callable[[int], object]) -> None:
        super().__init__()
        self.stock, self.note = stock, note

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the sublayer."""
        parts = self.__dict__["_modules"]
        return parts[name] if name in parts else getattr(parts["stock"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the sublayer."""
        out = self.stock(*args, **kwargs)
        self.__dict__["note"](0 if isinstance(out, Tensor) else len(out))
        return out
