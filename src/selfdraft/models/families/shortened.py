"""Cut a model to its first layers, so that a trial of it takes a fraction of the time."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from selfdraft.models.families.anatomy import dissect, refusing
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.families.quiet import quiet_transformers

FEWEST = 4  # layers; drafters that leave out layers need a few


def enough_layers(config: PreTrainedConfig) -> int:
    """Return the number of first layers that include one of each type, at least `FEWEST`."""
    types = list(getattr(config, "layer_types", None) or [])
    return min(config.num_hidden_layers, max([FEWEST, *(types.index(kind) + 1 for kind in set(types))]))


def shortened(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a copy of a model that has its first layers only, and shares their weights.

    Raises:
        UserError: its layers are not found.
    """
    with refusing(model):
        stack = dissect(model).layers
        cut = _cut_config(model.config, layers)

        def swap(_: str, module: nn.Module) -> nn.Module | None:
            return nn.ModuleList(stack[:layers]) if tuple(module.children()) == stack else None

        short = light_copy(model, swap)
        assert isinstance(short, PreTrainedModel)
        short.config = short.base_model.config = cut
        return short


def random_first_layers(
    outline: PreTrainedModel, layers: int, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Return a model of the shape of an outline's first layers, with random weights.

    Raises:
        UserError: the family cannot be made so.
    """
    with refusing(outline), quiet_transformers(), torch.random.fork_rng(), device:
        torch.manual_seed(0)
        cut = _cut_config(outline.config, layers)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(cut, dtype=dtype, trust_remote_code=False)
    return model.eval()


def _cut_config(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layers
    if getattr(cut, "layer_types", None):
        cut.layer_types = list(cut.layer_types)[:layers]
    return cut
