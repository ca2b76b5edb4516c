"""The path of `drafter=fused_jacobi`: one forward verifies this draft and writes the next one.

Besides the draft, each forward has *gated rows*: tokens that only guess, and that get LoRA weights which no other token
of the forward gets. Every probe of a tree is a gated row and follows a node (the root or a candidate).

1. Before layer `enter`, a gated row gets the hidden state of the node that it follows. To this is added, through a
   trained matrix, the embedding of the token that the step before predicted for its position; or a mask embedding, if
   there is no prediction.
2. From there on, only gated rows get the LoRA, and only they see each other. Root and candidates keep the target's own
   logits, to the bit.
3. Where the full path is one graph, root and candidates run through it, and the gated rows through the later layers
   after them.

Sources: gated LoRA (see `gated`), I-DLM (predictions fed back), DSpark (heads, see `heads`).

Shapes: k gated rows in a chain, C hidden size, B rows of N tokens, m of these B * N are gated rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.predictions import best_tokens
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path, Runner, States, Trees
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.gated import Gate
from selfdraft.models.trained.heads import DraftHeads
from selfdraft.models.trained.pseudo import PseudoTokens, random_lora

Places = tuple[list[int], list[int], list[int]]  # see `gated_places`


@dataclass(frozen=True)
class FusedPath(Path):
    """The full path, with the probes of its trees as gated rows.

    Attributes:
        masks: (k, C) the input of the j-th row of a chain where no prediction is fed back.
        feed: maps the embedding of a prediction to that input; None if none is fed back.
        enter: the layer before which gated rows enter.
        nothing: the token of a probe for which there is no prediction.
        kept: by cache row, the (N, C) normed hidden states of the last forward.
        stock: the full path's own layers.
    """

    masks: Tensor = field(kw_only=True)
    feed: nn.Linear | None = field(kw_only=True)
    enter: int = field(kw_only=True)
    nothing: int = field(kw_only=True)
    gate: Gate = field(kw_only=True)
    kept: dict[int, Tensor] = field(kw_only=True)
    stock: tuple[nn.Module, ...] = field(kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`; `trees` say which tokens are probes."""
        places = gated_places(trees, block.tokens.shape[1])
        base = self._base(runner, block, trees) if states is None else 0
        hidden = self._after(runner, block, places, base) if base else self._together(runner, block, places, states)
        self.kept.clear()
        self.kept.update(zip(block.rows, hidden, strict=True))
        return hidden

    def _base(self, runner: Runner, block: Block, trees: Trees) -> int:
        """Return how many first tokens of each row the full path runs through its graph; 0 if all run together.

        Gated rows must be the last ones of every row, and as many everywhere.
        """
        if not self.enter or runner.graph(self.stock[: self.enter], self.types[: self.enter]) is None:
            return 0
        bases = {1 + int(tree.is_candidate.sum()) for tree in trees}
        width = block.tokens.shape[1]
        fits = len(bases) == 1 and all(len(tree) == width - 1 for tree in trees)
        ordered = all(not (~tree.is_candidate[:-1] & tree.is_candidate[1:]).any() for tree in trees)
        return bases.pop() if fits and ordered else 0

    def _together(self, runner: Runner, block: Block, places: Places, states: States) -> Tensor:
        """Return (B, N, C) normed states: all rows run through the layers in one forward."""
        later: States = None if states is None else []
        hidden = self.part(0, self.enter).drive(runner, block, states=states, normed=False)
        rows, followed, numbers = (torch.tensor(each, dtype=torch.long) for each in places)
        if len(rows):
            flat, at = hidden.view(-1, hidden.shape[-1]), rows.to(hidden.device)
            given = self._inputs(runner, block.tokens.flatten()[rows], numbers)
            flat.index_copy_(0, at, flat[followed.to(hidden.device)] + given)
        with self.gate.open(rows, block.tokens.numel(), hidden.device):
            hidden = self.part(self.enter, len(self.layers)).drive(runner, block, hidden, states=later)
        if states is not None:
            states += (later or [])[1:]  # the first of them is the last of the earlier layers
        return hidden

    def _after(self, runner: Runner, block: Block, places: Places, base: int) -> Tensor:
        """Return the same, if the first `base` tokens of each row run through the full path's own layers first."""
        sees = None if block.sees is None else block.sees[:, :base, :base]
        first = replace(block, tokens=block.tokens[:, :base], depths=block.depths[:, :base], sees=sees)
        full = replace(self, layers=self.stock)
        lower = full.part(0, self.enter).drive(runner, first, normed=False)
        hidden = full.part(self.enter, len(self.stock)).drive(runner, first, lower.clone())
        rows, followed, numbers = (torch.tensor(each, dtype=torch.long) for each in places)
        if not len(rows):
            return hidden
        width = block.tokens.shape[1]
        given = self._inputs(runner, block.tokens.flatten()[rows], numbers)
        given = given + lower.flatten(0, 1)[followed // width * base + followed % width]
        with self.gate.open(torch.arange(len(rows)), len(rows), hidden.device):
            given = given.unflatten(0, (len(hidden), width - base))
            gated = self.part(self.enter, len(self.layers)).drive(runner, block, given, since=base)
        return torch.cat([hidden, gated], dim=1)

    def _inputs(self, runner: Runner, tokens: Tensor, numbers: Tensor) -> Tensor:
        """Return (m, C) what is added to the followed node's state, for the m rows with these tokens and numbers."""
        masks = self.masks.index_select(0, numbers.to(self.masks.device))
        if self.feed is None or bool((tokens == self.nothing).all()):
            return masks
        known = self.feed(runner.anatomy.embed(tokens.to(runner.device)))
        return torch.where((tokens != self.nothing).to(masks.device)[:, None], known, masks)


class FusedRows(PseudoTokens):
    """An adapter's gated rows, put in place for forwards of the target; `PseudoTokens` has the attributes.

    Attributes:
        heads: read the rows' hidden states. feeds: whether predictions are fed back.
    """

    tensor: ClassVar[str] = "mask"
    noun: ClassVar[str] = "gated rows"

    def __init__(self, target: Driver, adapter: Adapter, name: str = "null") -> None:
        """See `PseudoTokens`."""
        self.kept: dict[int, Tensor] = {}
        if target.whole is not None and target.whole.streams > 1:
            family = target.model.config.model_type
            raise UserError(
                f"drafter=fused_jacobi: layers of model family '{family}' pass several streams of states on"
            )
        super().__init__(target, adapter, name)
        try:
            self.heads = DraftHeads.of(adapter.tensors).to(target.device, target.dtype).eval()
        except (RuntimeError, KeyError, IndexError, ValueError):
            raise self._other_model("its heads are of another size", f"a width of {self.embeddings.shape[1]}") from None
        ids = target.vocab_size if self.vocabulary is None else len(self.vocabulary)
        if not self.heads.fit(self.embeddings.shape[1], ids):
            raise self._other_model("its heads are of another size", f"a width of {self.embeddings.shape[1]}")

    def states_of(self, row: int, at: Sequence[int]) -> Tensor:
        """Return (n, C) the normed hidden states of the last forward at `at`, in a row of the cache."""
        return self.kept[row][list(at)]

    def _best(self, hidden: Tensor, previous: Tensor, count: int) -> Tensor:
        """See `PseudoTokens`; a confidence head gives the chance of the best token, and shares the rest out."""
        said = self.heads.logits(hidden, previous, self.head)
        best = best_tokens(said, min(count, said.shape[-1]))
        if self.heads.confidence is not None:
            sure = self.heads.confidence(hidden, previous).sigmoid().double()[:, None]
            others = best[1][:, 1:]
            best[1][:, 1:] = others * (1 - sure) / others.sum(-1, keepdim=True).clamp(min=1e-9)
            best[1][:, :1] = sure
        return best

    def _path(self, adapter: Adapter, full: dict[str, Any]) -> Path:
        size = self.embeddings.shape[1]
        feed = None
        if (weight := adapter.tensors.get("feed.weight")) is not None:
            bias = adapter.tensors.get("feed.bias")
            if weight.shape != (size, size) or bias is None or bias.shape != (size,):
                raise self._other_model("its feed is of another size", f"a width of {size}")
            feed = nn.Linear(size, size, device=self.target.device, dtype=self.target.dtype).requires_grad_(False)
            feed.weight.copy_(weight)
            feed.bias.copy_(bias)
        self.feeds = feed is not None
        return FusedPath(
            **full,
            masks=self.embeddings,
            feed=feed,
            enter=min(int(adapter.settings.get("first", 0)), len(full["layers"])),
            nothing=self.target.pad_id,
            gate=self.gate,
            kept=self.kept,
            stock=tuple(self.target.full.layers),
        )

    def _sampler(self, tensors: object, size: int) -> None:
        """Return nothing: `heads` has it."""


def gated_places(trees: Sequence[TokenTree], width: int) -> Places:
    """Return, for each probe of B trees in rows of `width`: its flat row, that of the node it follows, its number."""
    rows: list[int] = []
    followed: list[int] = []
    numbers: list[int] = []
    for b, tree in enumerate(trees):
        first = b * width
        places: dict[int, tuple[int, int]] = {}  # of each probe: the row it follows, and its number
        for node, (parent, may) in enumerate(zip(tree.parent_list, tree.is_candidate.tolist(), strict=True)):
            if may:
                continue
            above = places.get(parent)
            places[node] = (first + 1 + parent, 0) if above is None else (above[0], above[1] + 1)
            rows.append(first + 1 + node)
            followed.append(places[node][0])
            numbers.append(places[node][1])
    return rows, followed, numbers


@singledispatch
def fused_rows(target: TargetProtocol, adapter: str | None, count: int, noise: float) -> FusedRows:
    """Return the gated rows of an adapter's folder, or `count` untrained ones (see `untrained_rows`)."""
    driver = layered(target)
    if adapter is not None:
        return FusedRows(driver, Adapter.read(adapter), adapter)
    return FusedRows(driver, untrained_rows(driver, count, noise))


def untrained_rows(target: Driver, count: int, noise: float = 0.0) -> Adapter:
    """Return a substitute for a trained adapter: rows that go on from the state of the node they follow.

    Args:
        noise: size of random masks, of a random feed and of a random LoRA from the middle layer on.
    """
    random, enter = torch.Generator().manual_seed(0), len(target.full.layers) // 2
    size = target.anatomy.embed(torch.zeros(1, dtype=torch.long, device=target.device)).shape[-1]
    tensors = {
        "mask": noise * torch.randn(count, size, generator=random),
        "feed.weight": noise * torch.randn(size, size, generator=random) / size**0.5,
        "feed.bias": torch.zeros(size),
    }
    tensors |= random_lora(target, noise, random, enter) if noise else {}
    return Adapter("untrained", {"scale": 1.0, "first": enter}, tensors)
