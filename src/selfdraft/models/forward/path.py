"""A path: the part of the model that a forward runs through. Drafts run through a cheap path, verification through all.

A path lists the layers that are run; it shares their weights with the model. It may also have a smaller head or another
final norm. `Path.run` takes a block of tokens through the layers: in one call of an engine's graph where there is one,
otherwise layer by layer.

Shapes: B rows of one forward, N tokens a row, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.attention import additive, visible_slots
from selfdraft.models.cache.block import Block
from selfdraft.models.cache.cache import CacheWindow
from selfdraft.models.families.anatomy import SLIDING, Anatomy
from selfdraft.models.families.rotary import Rotary, Rotation
from selfdraft.models.forward.whole import WholeForward
from selfdraft.models.kernels.threads import single_threaded

Trees = Sequence[TokenTree]
States = list[Tensor] | None


class Graph(Protocol):
    """Several layers that run in one call: `compiled.CompiledLayers` or `native.layers.NativeLayers`."""

    @property
    def alike(self) -> Hashable:
        """Equal for layers that cost the same."""
        ...

    def __call__(
        self,
        hidden: Tensor,
        rotations: Mapping[str, Rotation],
        visible: Mapping[str, Tensor | None],
        view: CacheWindow,
        /,
    ) -> Tensor:
        """Return the (B, N, C) states after the layers, and write the new keys and values to the cache."""
        ...


class Runner(Protocol):
    """What a path needs around its layers; `Driver` has it.

    Attributes:
        anatomy: the model's parts. norm: its final norm. rotary: its rotary positions. whole, share: see `Driver`.
    """

    anatomy: Anatomy
    rotary: Rotary
    whole: WholeForward | None
    norm: nn.Module
    device: torch.device
    dtype: torch.dtype
    share: int

    def graph(self, layers: Sequence[nn.Module], types: Sequence[str], /) -> Graph | None:
        """See `Driver.graph`."""
        ...


@dataclass(frozen=True)
class Path:
    """The part of the model that a forward runs through: all of it, or a sparse selection.

    Paths differ only in `run`. If a path needs more than its layers in a row, such as another input, it is a subclass
    with its own `run`, in a file of its own (`jump`, `feature`, `pseudo`, `fused`, `selection`).

    Attributes:
        layers: the layers that are run, in order.
        types: `full_attention` or `sliding_attention`, for each of them.
        skip: the sublayers left out.
        leading: number of first layers that are the full model's own, so verification need not compute them again.
        head: computes the logits of `vocabulary`; None for the model's head.
        vocabulary: (v,) token ids that this path may draft; None for all.
        norm: replaces the final norm; None for the model's own.
    """

    layers: tuple[nn.Module, ...]
    types: tuple[str, ...]
    skip: SkipSet
    leading: int = 0
    head: Callable[[Tensor], Tensor] | None = None
    vocabulary: Tensor | None = None
    norm: nn.Module | None = None

    @property
    def shape(self) -> Hashable:
        """Paths with equal shapes cost the same if they run through the same graphs, or through none."""
        ids = None if self.vocabulary is None else len(self.vocabulary)
        return type(self), self.skip, self.leading, len(self.layers), ids

    def part(self, first: int, end: int) -> Path:
        """Return the plain path of the layers from `first` up to `end`, with this path's head and norm."""
        layers, types = self.layers[first:end], self.types[first:end]
        return Path(layers, types, self.skip, self.leading, self.head, self.vocabulary, self.norm)

    def graphs(self, runner: Runner) -> tuple[Graph | None, Graph | None, Graph | None]:
        """Return the graphs of all its layers, of the leading ones, and of those after them, where there are any."""
        parts = slice(None), slice(self.leading), slice(self.leading, None)
        whole, leading, later = (runner.graph(self.layers[part], self.types[part]) for part in parts)
        return whole, leading, later

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """Return the (B, N, C) hidden states of a block's tokens after this path and the final norm.

        Args:
            trees: the trees that the block was made of, for paths that treat some nodes differently.
            states: a list that gets the hidden states before the first layer and after every layer.
        """
        if states is None and self.runs_in_two(runner):
            return self.run_and_keep(runner, block, trees)[1]
        return self.drive(runner, block, states=states)

    def runs_in_two(self, runner: Runner) -> bool:
        """Return whether the leading layers or those after them have a graph, and all layers together have none."""
        if runner.graph(self.layers, self.types) is not None:
            return False
        _, leading, later = self.graphs(runner)
        return not (leading is None and later is None)

    def run_and_keep(self, runner: Runner, block: Block, trees: Trees = ()) -> tuple[Tensor, Tensor]:
        """Return the (B, N, C) states after the leading layers, which can be reused, and those that `run` returns."""
        if type(self) is not Path:  # it may do more than run its layers in a row
            states: list[Tensor] = []
            hidden = self.run(runner, block, trees, states)
            return states[self.leading], hidden
        kept = self.part(0, self.leading).drive(runner, block, normed=False)
        return kept, self.part(self.leading, len(self.layers)).drive(runner, block, kept)

    def drive(
        self,
        runner: Runner,
        block: Block,
        hidden: Tensor | None = None,
        *,
        embedded: Tensor | None = None,
        states: States = None,
        since: int = 0,
        normed: bool = True,
    ) -> Tensor:
        """Run the layers one after the other; return their (B, N - since, C) hidden states.

        Args:
            hidden: (B, N, C) input of the first layer; None for the tokens' embeddings.
            embedded: (B, N, C), in place of what the embedding returns for the block's tokens.
            states: see `run`.
            since: compute only the tokens from this one on, because the keys of those before are in the cache.
            normed: whether the final norm is applied.
        """
        if runner.whole is not None:
            return runner.whole.run(
                self.layers, block, runner.device, runner.dtype, runner.rotary,
                hidden=hidden, embedded=embedded, states=states, since=since, normed=normed,
            )  # fmt: skip
        hidden = embedded if hidden is None else hidden
        compiled = None if states is not None else runner.graph(self.layers, self.types)
        with single_threaded(compiled):
            anatomy, (_, width) = runner.anatomy, block.tokens.shape
            starts = [start + since for start in block.starts]
            view = block.cache.window(block.rows, starts, width - since, key_block=block.key_block)
            positions = torch.tensor(block.first_positions)[:, None] + block.depths[:, since:]
            lengths = None
            if runner.rotary.rules:
                prefilled_at = torch.tensor([block.cache.prefilled_at[row] for row in block.rows])
                lengths = torch.maximum(positions + 1, prefilled_at[:, None])
            positions = positions.to(runner.device)
            if hidden is None:
                hidden = anatomy.embed(block.tokens[:, since:].to(runner.device))
            visible, rotations = {}, {}
            for kind in set(self.types):
                window = anatomy.window if kind == SLIDING else None
                seen = visible_slots(
                    block.starts,
                    block.depths,
                    block.sees,
                    view.span,
                    window,
                    runner.device,
                    first_positions=block.first_positions,
                    held=block.held,
                )
                visible[kind] = None if seen is None else seen[:, since:]
                rotations[kind] = runner.rotary(hidden.to(runner.device), positions, kind, lengths)
            if compiled is not None:
                hidden = compiled(hidden, rotations, visible, view)
            else:
                hidden = self._one_by_one(runner, hidden, positions, rotations, visible, view, states)
            return (self.norm or runner.norm)(hidden) if normed else hidden

    def _one_by_one(
        self,
        runner: Runner,
        hidden: Tensor,
        positions: Tensor,
        rotations: Mapping[str, Rotation],
        visible: Mapping[str, Tensor | None],
        view: CacheWindow,
        states: States,
    ) -> Tensor:
        """Call every layer, by itself or in a graph of its own; return the (B, N, C) states after the last one."""
        masks = {kind: additive(each, runner.dtype, runner.share) for kind, each in visible.items()}
        if states is not None:
            states.append(hidden)
        for layer, kind in zip(self.layers, self.types, strict=True):
            if (alone := runner.graph([layer], [kind])) is not None:
                hidden = alone(hidden, rotations, visible, view)
            else:
                hidden = layer(
                    hidden,
                    attention_mask=masks[kind],
                    position_ids=positions,
                    position_embeddings=rotations[kind],
                    **{runner.anatomy.cache_argument: view},
                )
            if states is not None:
                states.append(hidden)
        return hidden


@dataclass(frozen=True)
class Reuse:
    """Results of the full model that drafting has computed already for the first tokens of a row's next block.

    Attributes:
        layers: number of leading layers that were run. Their keys and values are in the row's scratch slots.
        states: (m, C) hidden states after them, for the root and the first m - 1 nodes, which form a chain.
    """

    layers: int
    states: Tensor


def ready_tokens(reuse: Sequence[Reuse | None]) -> int:
    """Return how many first tokens of every row a forward need not run through the leading layers again.

    Rows run together, so this is 0 if one has nothing to reuse, or if they stopped at different layers.
    """
    known = [r for r in reuse if r is not None]
    if len(known) < len(reuse) or len({r.layers for r in known}) > 1:
        return 0
    return min(len(r.states) for r in known)
