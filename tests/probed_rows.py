"""A target in the middle of two texts, and its logits of trees with probes, for tests of trained probes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.trained.adapter import Adapter

PROMPT = [7, 33, 81, 2, 14, 27, 55, 90, 1, 68, 12, 44]  # longer than the window
CANDIDATES = TokenTree.merged([[5, 6, 7], [5, 8], [9]])
KINDS = [(packed, dtype) for packed in (True, False) for dtype in (torch.float32, torch.bfloat16)]


def begun(packed: bool = True, dtype: torch.dtype = torch.float32, family: str = "llama") -> Target:
    target = Target(tiny_model(family, dtype=dtype), packed=packed)
    target.allocate(2, 0)
    for row in range(2):
        target.prefill(row, PROMPT[: -1 - row])
    return target


def without_lora(adapter: Adapter) -> Adapter:
    zeroed = {name: torch.zeros_like(t) if name.endswith(".B") else t for name, t in adapter.tensors.items()}
    return replace(adapter, tensors=zeroed)


def logits_through(target: Target, tree: TokenTree, path: Path | None) -> Tensor:
    """Logits of a row with the given tree, in a batch of two; the other row has only candidates."""
    logits = target.forward([0, 1], [PROMPT[-1], PROMPT[-2]], [tree, CANDIDATES], through=path)
    return torch.cat([logits[1], logits[0]])


def repeating_target() -> Target:
    """Tied and random, its embeddings make it repeat the last token for ever."""
    model = tiny_model("llama", tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(300.0)
    return Target(model)
