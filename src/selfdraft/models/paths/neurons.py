"""Make narrow MLPs: only the neurons that a prompt uses most (GRIFFIN, Dong et al. 2024, arXiv 2404.01365).

Shapes: S prompt tokens, F neurons of an MLP (its intermediate size), k of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor, nn

from selfdraft.core.skipset import SkipSet
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.families.lightcopy import light_copy, with_parts
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.fusing import fast_module
from selfdraft.models.paths.mlps import Neurons


class _Recorder(nn.Module):
    """Replaces an MLP's last matrix, and sums the squares of each neuron's share of every token's activation."""

    def __init__(self, down: nn.Module) -> None:
        super().__init__()
        self.down, self.squares = down, torch.zeros(())

    def forward(self, activations: Tensor) -> Tensor:
        """Record (B, S, F) activations; return what the matrix returns for them."""
        shares = torch.nn.functional.normalize(activations.detach().float(), dim=-1)
        self.squares = self.squares + shares.square().flatten(0, -2).sum(0)
        return self.down(activations)


@singledispatch
def most_used_mlps(
    target: TargetProtocol, neurons: Sequence[Neurons], tokens: Sequence[int], ratio: float, skip: SkipSet
) -> dict[int, dict[str, nn.Module]]:
    """Return by layer a narrow MLP: the share `ratio` of its neurons that `tokens` use most. Not for layers in `skip`.

    An MLP is given as parts of the layer, by name.

    Args:
        neurons: those of the target's layers (see `mlps.neurons_of`).
    """
    driver = layered(target)
    return sliced_mlps(driver, neurons, most_active(neuron_statistics(driver, neurons, tokens), ratio), skip)


@torch.inference_mode()
def neuron_statistics(target: Target, neurons: Sequence[Neurons], tokens: Sequence[int]) -> list[Tensor]:
    """Return, per layer, (F,) the norm over the tokens of each neuron's normalised activation (GRIFFIN's statistic).

    Runs the full layers once over the tokens, with a temporary cache.
    """
    layers, recorders = [], []
    for layer, its in zip(target.full.layers, neurons, strict=True):
        recorders.append(_Recorder(layer.get_submodule(its.down)))
        layers.append(with_parts(layer, {its.down: recorders[-1]}))
    path = replace(target.full, layers=tuple(layers))
    target.fill(path, tokens, KVCache(len(layers), 1, len(tokens)))
    return [recorder.squares.sqrt() for recorder in recorders]


@torch.inference_mode()
def sliced_mlps(
    target: Target, neurons: Sequence[Neurons], kept: Sequence[Tensor], skip: SkipSet
) -> dict[int, dict[str, nn.Module]]:
    """Return, by layer, the parts that make up its MLP, with only the neurons ``kept[layer]`` (k,).

    Layers whose MLP is skipped have none.
    """
    sliced = {}
    for index, (layer, its) in enumerate(zip(target.anatomy.layers, neurons, strict=True)):
        if index not in skip.mlp:
            parts = its.sliced(layer, kept[index])
            narrow = with_parts(layer, parts)
            names = dict.fromkeys(name.partition(".")[0] for name in parts)
            sliced[index] = {name: narrow.get_submodule(name) for name in names}
            if target.packed:
                sliced[index] = {name: light_copy(part, fast_module) for name, part in sliced[index].items()}
    return sliced


def most_active(statistics: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Return, per layer, the fraction `ratio` of neurons with the largest statistics, at least one, ascending."""
    return [s.topk(max(1, round(ratio * len(s)))).indices.sort().values for s in statistics]
