"""Choose the layers to skip anew every few steps, by how little each changes the hidden state (CLaSp).

Source: Chen et al. 2025, arXiv 2505.24196. A dynamic program finds, for each number of layers and of skipped layers,
the state that is most similar to the full model's. ``g(i, j)`` is the state after the first i layers with j of them
skipped. It has two candidates: ``g(i - 1, j)`` run through layer i, and ``g(i - 1, j - 1)`` bypassing it. All j are
tokens of one forward, so a choice costs about one forward of M + 1 tokens.

Shapes: L layers, C hidden size, M layers to skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from selfdraft.core.skipset import SkipSet
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.places import apart, together
from selfdraft.models.forward.protocol import TargetProtocol


class _Choice(nn.Module):
    """One layer of the dynamic program: each of the M + 1 states runs through it or bypasses it."""

    def __init__(self, layer: nn.Module, wanted: Tensor, most: int) -> None:
        """`wanted`: (C,) the full model's state after the layer. `most`: how many may have been skipped before it."""
        super().__init__()
        self.layer, self.wanted, self.most = layer, wanted, most
        self.bypassed = torch.zeros(0)
        if "place" in layer.__dict__:
            self.__dict__["place"] = layer.__dict__["place"]

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Any:
        """Return the (1, M + 1, C) states after the layer, from those before it, as the layer returns them."""
        out = self.layer(hidden, *args, **kwargs)
        after = out if isinstance(out, Tensor) else out[0]
        states, ran = together(hidden), together(after)
        bypassed = states.roll(1, dims=1)
        skipped = torch.arange(states.shape[1], device=states.device)
        near = [nn.functional.cosine_similarity(x.float(), self.wanted.float(), dim=-1)[0] for x in (ran, bypassed)]
        near[0] = near[0].masked_fill(skipped > self.most, -2.0)  # such a state does not exist
        near[1] = near[1].masked_fill((skipped == 0) | (skipped > self.most + 1), -3.0)
        self.bypassed = near[1] > near[0]
        chosen = torch.where(self.bypassed[None, :, None], bypassed, ran)
        chosen = apart(chosen, len(after)) if after.dim() == 4 else chosen
        return chosen if isinstance(out, Tensor) else (chosen, *out[1:])


@singledispatch
@torch.inference_mode()
def most_similar_skips(
    target: TargetProtocol, row: int, position: int, token: int, states: Tensor, count: int, layers: Sequence[int]
) -> SkipSet:
    """Choose `count` of `layers` to skip whole so that the committed `token` keeps a last state as similar as possible.

    Args:
        position: of the token; its own keys in the cache are not used.
        states: (L + 1, C) the full model's states of the token, before the first layer and after each.
    """
    driver = layered(target)
    path, most, chosen = [], 0, []
    for index, layer in enumerate(driver.full.layers):
        if index in layers:
            layer = _Choice(layer, states[index + 1], most)
            chosen.append((index, layer))
            most += 1
        path.append(layer)
    width = count + 1
    start = driver.cache.lengths[row]
    tokens, depths = torch.full((1, width), token), torch.zeros(1, width, dtype=torch.long)
    only_itself = torch.eye(width, dtype=torch.bool)[None]
    block = Block([row], [start], tokens, depths, only_itself, driver.cache, [position])
    replace(driver.full, layers=tuple(path)).run(driver, block)
    bypassed, j, skipped = torch.stack([choice.bypassed for _, choice in chosen]).cpu(), count, []
    for (index, _), row_bypassed in zip(reversed(chosen), bypassed.flip(0), strict=True):
        if row_bypassed[j]:
            skipped.append(index)
            j -= 1
    return SkipSet(frozenset(skipped), frozenset(skipped))


@singledispatch
@torch.inference_mode()
def exit_tokens(target: TargetProtocol, states: Tensor) -> Tensor:
    """Return the (m,) most likely ids for (m, C) hidden states of any layer: final norm, head and argmax."""
    driver = layered(target)
    if driver.whole is not None:
        states = states.unflatten(-1, (driver.whole.streams, -1)).mean(-2)
    return driver.head(driver.norm(states)).argmax(-1)
