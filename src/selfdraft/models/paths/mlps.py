"""Find the neurons of a model's MLPs: the matrices whose outputs they are, and the one whose inputs they are.

They are found by structure and not by names. 1. The stock model runs once, and what it calls in each layer besides
attention is noted. 2. The last matrix takes the neurons; the ones before it make them: one (GPT-2), two with a gate
(Llama), or both joined in one (Phi-3). 3. Each layer runs once more with a few neurons only, because an MLP may hold
something that needs them all, and because only this tells how joined matrices are laid out.

Shapes: F neurons of an MLP (its intermediate size), k of them kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.models.families.anatomy import Anatomy
from selfdraft.models.families.lightcopy import light_copy, with_parts
from selfdraft.models.families.parts import plain_weight
from selfdraft.models.families.routing import mixtures
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.target import Target
from selfdraft.models.paths.sparse import sliced_linear

TRIED = 3  # neurons that a trial keeps
# From k neurons and F: the outputs that make them.
LAYOUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "single": lambda neurons, count: neurons,
    "halves": lambda neurons, count: torch.cat([neurons, neurons + count]),  # all gates first, as in Phi-3
    "pairs": lambda neurons, count: torch.stack([2 * neurons, 2 * neurons + 1], dim=1).flatten(),
}


@dataclass(frozen=True)
class Neurons:
    """Where the neurons of one layer's MLP are.

    Attributes:
        ups: dotted names, within the layer, of the matrices whose outputs are the neurons.
        down: name of the matrix whose inputs they are.
        count: F.
        layout: which of LAYOUTS the outputs of `ups` have.
    """

    ups: tuple[str, ...]
    down: str
    count: int
    layout: str = "single"

    def sliced(self, layer: nn.Module, kept: Tensor) -> dict[str, nn.Module]:
        """Return the layer's matrices with the neurons `kept` (k,) only, by name."""
        rows = LAYOUTS[self.layout](kept, self.count)
        ups = {name: sliced_linear(layer.get_submodule(name), rows=rows) for name in self.ups}
        return {**ups, self.down: sliced_linear(layer.get_submodule(self.down), columns=kept)}


@dataclass
class _Calls:
    """What one layer got when the model ran.

    Attributes:
        given: its arguments, by position and by name.
        inputs: by name of a matrix besides attention, what each of its calls got; in the order of first calls.
    """

    given: tuple[Any, Any] = ((), {})
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)


class _OtherKind(Exception):
    """An MLP has no neurons that can be chosen; the message says why (see `refused`)."""


@singledispatch
def neurons_of(target: TargetProtocol) -> list[Neurons]:
    """Return, per layer, where its neurons are.

    Raises:
        UserError: there is an MLP whose neurons cannot be chosen; the message names the family and says why.
    """
    driver = layered(target)
    try:
        return _found(driver)
    except _OtherKind as odd:
        raise refused(driver, str(odd)) from odd


def refused(target: Target, reason: str) -> UserError:
    """Return the error for a model whose neurons cannot be chosen, for a reason that goes on after "its MLPs"."""
    family = target.model.config.model_type
    return Unsupported(
        f"drafter/path=width_skip: the neurons of model family '{family}' cannot be chosen: its MLPs {reason}; "
        "take another path, such as early_exit or low_bit"
    )


@torch.inference_mode()
def _found(target: Target) -> list[Neurons]:
    anatomy = target.anatomy
    mlps = [getattr(layer, anatomy.mlp_name) for layer in anatomy.layers if anatomy.mlp_name]
    if mixtures(mlps) or any(p.dim() > 2 for mlp in mlps for p in mlp.parameters()):
        raise _OtherKind("are mixtures of experts")
    found = []
    for layer, calls in zip(anatomy.layers, _watched(target), strict=True):
        shaped = _shaped(anatomy, layer, calls)
        found.append(_tried(layer, calls, shaped))
    return found


def _watched(target: Target) -> list[_Calls]:
    """Run a copy of the stock model over two tokens; return what was called in each layer."""
    names = {id(module): name for name, module in target.model.named_modules()}
    copied, found = light_copy(target.model, lambda name, stock: None), []
    for stock in target.anatomy.layers:
        calls, layer = _Calls(), copied.get_submodule(names[id(stock)])
        layer.register_forward_pre_hook(_note_layer(calls), with_kwargs=True)
        for name, part in _matrices(target.anatomy, layer):
            part.register_forward_pre_hook(_note_matrix(calls, name))
        found.append(calls)
    tokens = torch.zeros(1, 2, dtype=torch.long, device=target.device)
    cast("Any", copied)(input_ids=tokens, use_cache=False)
    return found


def _note_layer(calls: _Calls) -> Callable[..., None]:
    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.given = args, kwargs

    return note


def _note_matrix(calls: _Calls, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.inputs.setdefault(name, []).append(args[0])

    return note


def _matrices(anatomy: Anatomy, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a layer's matrices in its MLP, or outside attention if that is no part of its own, by dotted names."""
    inside = f"{anatomy.mlp_name}." if anatomy.mlp_name else ""
    attention = f"{anatomy.attention_name}." if anatomy.attention_name else None
    taken: list[str] = []  # a matrix with a LoRA holds others
    for name, part in layer.named_modules():
        apart = attention is not None and not inside and name.startswith(attention)
        if name.startswith(inside) and not apart and not name.startswith(tuple(taken)) and sizes(part) is not None:
            taken.append(f"{name}.")
            yield name, part


def sizes(part: nn.Module) -> tuple[int, int] | None:
    """Return how many inputs and outputs a matrix has; None for any other part."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    outputs, inputs = plain_weight(part).shape
    told = getattr(part, "in_features", None), getattr(part, "out_features", None)
    return (inputs, outputs) if isinstance(part, Conv1D) or told == (inputs, outputs) else None


def _shaped(anatomy: Anatomy, layer: nn.Module, calls: _Calls) -> Neurons:
    """Return where the neurons are by the sizes of the matrices; joined ones have the layout `halves` for now."""
    kind = "are not one or two matrices, an activation and one more matrix"
    if len(calls.inputs) < 2 or any(len(each) > 1 for each in calls.inputs.values()):
        raise _OtherKind(kind)
    known = dict(_matrices(anatomy, layer))
    if anatomy.mlp_name:  # else parts of others may lie unused beside it, such as attention to images
        others = [
            name
            for name, parameter in getattr(layer, anatomy.mlp_name).named_parameters(prefix=anatomy.mlp_name)
            if parameter.dim() > 1 and not any(name.startswith(f"{each}.") for each in calls.inputs)
        ]
        if others:
            raise _OtherKind(kind)
    *ups, down = calls.inputs
    if not all(torch.equal(calls.inputs[up][0], calls.inputs[ups[0]][0]) for up in ups):
        raise _OtherKind(kind)
    (count, _), outputs = cast("tuple[int, int]", sizes(known[down])), [cast("Any", sizes(known[up]))[1] for up in ups]
    if len(ups) <= 2 and set(outputs) == {count}:
        return Neurons(tuple(ups), down, count)
    if outputs == [2 * count]:
        return Neurons(tuple(ups), down, count, "halves")
    raise _OtherKind(kind)


def _tried(layer: nn.Module, calls: _Calls, shaped: Neurons) -> Neurons:
    """Run the layer with a few neurons; return the neurons with the layout for which these are as they were.

    Without joined matrices there is nothing to choose. Then activations may depend on all neurons a little (Gemma 3n).
    """
    before = calls.inputs[shaped.down][0]
    kept = before.float().abs().flatten(0, -2).sum(0).topk(min(TRIED, shaped.count)).indices.sort().values
    wanted = before[..., kept]
    if shaped.layout == "single":
        _run(layer, calls, shaped, kept)
        return shaped
    tolerance = 1e-3 if wanted.dtype == torch.float32 else 3e-2
    apart = {}
    for layout in ("halves", "pairs"):
        found = replace(shaped, layout=layout)
        apart[found] = float((_run(layer, calls, found, kept) - wanted).abs().max())
    best = min(apart, key=lambda each: apart[each])
    if apart[best] > tolerance * float(wanted.abs().max()):
        raise _OtherKind("join two matrices in a way of their own")
    return best


def _run(layer: nn.Module, calls: _Calls, neurons: Neurons, kept: Tensor) -> Tensor:
    """Return (…, k) what the last matrix gets in a layer with the neurons `kept` only."""
    seen = _Calls()
    args, kwargs = calls.given
    try:
        parts = neurons.sliced(layer, kept)
        parts[neurons.down].register_forward_pre_hook(_note_matrix(seen, neurons.down))
        with_parts(layer, parts)(*args, **kwargs)
        return seen.inputs[neurons.down][0]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as broken:
        error = type(broken).__name__
        raise _OtherKind(f"do not run with fewer neurons ({error}): they may have a norm over all of them") from broken
