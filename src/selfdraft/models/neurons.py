"""Make narrow MLPs: only the neurons that a prompt uses most (GRIFFIN, Dong et al. 2024, arXiv 2404.01365).

Shapes: S prompt tokens, F neurons of an MLP (its intermediate size), k of them kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor, nn

from selfdraft.core.errors import Unsupported
from selfdraft.core.skipset import SkipSet
from selfdraft.models.cache import KVCache
from selfdraft.models.fusing import fast_module
from selfdraft.models.layered import layered
from selfdraft.models.lightcopy import light_copy
from selfdraft.models.protocol import TargetProtocol
from selfdraft.models.sparse import sliced_linear
from selfdraft.models.target import Target

DOWN = "down_proj"
GATED_MLPS = ({"gate_proj", "up_proj", DOWN}, {"gate_up_proj", DOWN})  # the second is Phi-3's


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
def most_used_mlps(target: TargetProtocol, tokens: Sequence[int], ratio: float, skip: SkipSet) -> dict[int, nn.Module]:
    """Return by layer a narrow MLP: the share `ratio` of its neurons that `tokens` use most. Not for layers in `skip`.

    Raises:
        UserError: the family's MLPs cannot be sliced; the message names it.
    """
    driver = layered(target)
    require_gated_mlps(driver)
    return sliced_mlps(driver, most_active(neuron_statistics(driver, tokens), ratio), skip)


def require_gated_mlps(target: Target) -> None:
    """Refuse a model whose MLPs cannot be sliced.

    Raises:
        UserError: there is such an MLP; the message names the family.
    """
    for layer in target.anatomy.layers:
        mlp = getattr(layer, target.anatomy.mlp_name) if target.anatomy.mlp_name else nn.Identity()
        # Weights of any other part, such as BitNet's norm in the MLP, are sized for all neurons.
        weighted = {name for name, part in mlp.named_children() if next(part.parameters(), None) is not None}
        if weighted not in GATED_MLPS:
            raise Unsupported(
                f"drafter/path=width_skip: model family '{target.model.config.model_type}' has no gated MLPs with a "
                f"{DOWN} to be sliced; Llama, Qwen2/3, Mistral, Gemma 2/3, Phi-3 and OLMo2 have"
            )


@torch.inference_mode()
def neuron_statistics(target: Target, tokens: Sequence[int]) -> list[Tensor]:
    """Return, per layer, (F,) the norm over the tokens of each neuron's normalised activation (GRIFFIN's statistic).

    Runs the full layers once over the tokens, with a temporary cache.
    """
    anatomy, layers, recorders = target.anatomy, [], []
    for layer in target.full.layers:
        mlp = copy.copy(getattr(layer, anatomy.mlp_name))
        recorders.append(_Recorder(getattr(mlp, DOWN)))
        mlp._modules = dict(mlp._modules) | {DOWN: recorders[-1]}
        recording = copy.copy(layer)
        recording._modules = dict(layer._modules) | {anatomy.mlp_name: mlp}
        layers.append(recording)
    path = replace(target.full, layers=tuple(layers))
    target.fill(path, tokens, KVCache(len(layers), 1, len(tokens)))
    return [recorder.squares.sqrt() for recorder in recorders]


@torch.inference_mode()
def sliced_mlps(target: Target, kept: Sequence[Tensor], skip: SkipSet) -> dict[int, nn.Module]:
    """Return, by layer, its MLP with only the neurons ``kept[layer]`` (k,); layers whose MLP is skipped have none."""
    sliced = {}
    for index, layer in enumerate(target.anatomy.layers):
        if index in skip.mlp:
            continue
        mlp, neurons = copy.copy(getattr(layer, target.anatomy.mlp_name)), kept[index]
        parts = dict(mlp._modules)
        parts[DOWN] = sliced_linear(mlp.down_proj, columns=neurons)
        if "gate_up_proj" in parts:  # Phi-3: both in one matrix, the gates first
            both = torch.cat([neurons, neurons + mlp.down_proj.weight.shape[1]])
            parts["gate_up_proj"] = sliced_linear(mlp.gate_up_proj, rows=both)
        else:
            for name in ("gate_proj", "up_proj"):
                parts[name] = sliced_linear(parts[name], rows=neurons)
        mlp._modules = parts
        sliced[index] = light_copy(mlp, fast_module) if target.packed else mlp
    return sliced


def most_active(statistics: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """Return, per layer, the fraction `ratio` of neurons with the largest statistics, at least one, ascending."""
    return [s.topk(max(1, round(ratio * len(s)))).indices.sort().values for s in statistics]
