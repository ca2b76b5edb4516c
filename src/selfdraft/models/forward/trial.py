"""Try a family: compare forwards of token trees with the model's own forwards of the texts that the trees hold.

A family that runs in its own forward (see `whole`) may read the order of slots where it should read positions: in a
window of its own, or in a bias by distance. An empty cache and a chain would not show that. So this tries what decoding
does: rows of different lengths, branches, and a branch that is committed.

Shapes: n nodes of a tree, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.families.anatomy import refuse
from selfdraft.models.families.dispatch import device_of
from selfdraft.models.forward.protocol import TargetProtocol

PREFIXES = (9, 4)  # tokens before the roots of two rows
PARENTS = (ROOT, 0, ROOT, 1, 2, 0, 4)
TAKEN = (2, 4, 6)  # nodes that are committed
LEAVES = (3, 5, 6)


@torch.inference_mode()
def distance_of_trees(target: TargetProtocol, model: PreTrainedModel) -> float:
    """Return how far logits at the nodes of trees differ from stock ones at most, in sigmas of the stock ones."""
    random = torch.Generator().manual_seed(1)
    texts = [torch.randint(target.vocab_size, (size + 1,), generator=random).tolist() for size in PREFIXES]
    drawn = torch.randint(target.vocab_size, (len(PARENTS),), generator=random)
    tree = TokenTree(drawn, torch.tensor(PARENTS), torch.ones(len(PARENTS), dtype=torch.bool))
    tokens, errors = tree.tokens.tolist(), []
    target.allocate(len(texts), max(PREFIXES) + len(PARENTS))
    for row, text in enumerate(texts):
        target.prefill(row, text[:-1])
    found = target.forward([0, 1], [text[-1] for text in texts], [tree, tree])
    for text, ours in zip(texts, found, strict=True):
        for leaf in LEAVES:
            path = _path_to(leaf)
            stock = _stock(model, [*text, *(tokens[node] for node in path)])[len(text) - 1 :]
            errors.append(_distance(ours[[0, *(node + 1 for node in path)]], stock))
    target.commit(1, TAKEN)
    after = [*texts[1], *(tokens[node] for node in TAKEN)]
    (ours,) = target.forward([1], [tokens[0]], [TokenTree.chain(tokens[1:2])])
    errors.append(_distance(ours, _stock(model, [*after, *tokens[:2]])[len(after) :]))
    return max(errors, key=lambda error: (error != error, error))  # NaN counts as the largest


@torch.inference_mode()
def stock_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return (N, V) logits of the model's own forward of a text, (N,) tokens.

    Raises:
        UserError: it fails, or gives other logits if it is told the positions, as `generate` does.
    """
    given: dict[str, Any] = {"input_ids": tokens[None].to(device_of(model)), "use_cache": False}
    try:
        stock = model(**given).logits[0].float()
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = torch.arange(len(tokens), device=device_of(model))[None]
        told = model(**given).logits[0].float()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as broken:
        dtype = str(model.dtype).removeprefix("torch.")
        raise refuse(model, f"its own forward of a text fails in {dtype} ({type(broken).__name__})") from broken
    if _distance(told, stock) > 0.01:
        said = "its own forward counts the positions of a text in another way than `generate`"
        raise refuse(model, f"{said}, so that there is no one right text")
    return stock


def _path_to(node: int) -> list[int]:
    path = [node]
    while PARENTS[path[0]] != ROOT:
        path.insert(0, PARENTS[path[0]])
    return path


def _stock(model: PreTrainedModel, text: Sequence[int]) -> Tensor:
    """Return (len(text), V) logits of the model's own forward."""
    ids = torch.tensor([text], device=device_of(model))
    return model(input_ids=ids, use_cache=False).logits[0].float()


def _distance(ours: Tensor, stock: Tensor) -> float:
    return float((stock - ours.float()).abs().mean() / stock.std(dim=-1).mean())
