"""The target: a stock transformers model with a cache for several requests, which verifies drafts and runs draft paths.

A forward takes token trees of many requests at once. `driver.Driver` calls the layers; `Target` decides which tokens
are run, where their keys are kept, and which of them are committed. A new target first runs a few tokens by our code
and by the model's own forward, and refuses the model if the logits differ.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree (N = n + 1 with the root), V vocabulary, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.families.anatomy import (
    Anatomy,
    dissect_layers,
    dissect_whole,
    position_limit,
    refuse,
    refusing,
    text_config,
)
from selfdraft.models.families.dispatch import is_placed
from selfdraft.models.families.peculiar import peculiarity
from selfdraft.models.families.rotary import UNLIMITED
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.path import Path, Reuse, ready_tokens
from selfdraft.models.forward.trial import distance_of_trees
from selfdraft.models.kernels.packing import PackedLinear, unpacked
from selfdraft.models.kernels.threads import single_threaded

TRIED = 12  # tokens on which our run through the layers is compared with the model's own forward
PREFILL_CHUNK = 512  # tokens per prefill forward: bounds the (N, K) mask of long prompts


class Target(Driver):
    """The usual implementation of `TargetProtocol`: a stock causal language model whose parts can be run by themselves.

    `Driver` calls the layers; this class decides which tokens are run, in which rows and slots, and what is kept.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool = True, attention: str = "sdpa") -> None:
        """Take a loaded model in eval mode.

        Args:
            attention: one of `attention.IMPLEMENTATIONS`: ours around torch's sdpa, the family's eager one, or flex.
            packed: on a CPU, join operations where possible, and keep a copy of every matrix in oneDNN's layout: small
                forwards are faster, and need twice the memory.

        Raises:
            UserError: the family cannot be driven; the message names it.
        """
        refusal: UserError | None = None
        packed = packed and not is_placed(model)  # packed copies would need all weights in one place
        for way in self._ways(model, packed, attention):
            try:
                way()
            except UserError as reason:
                refusal = reason
            else:
                return
        assert refusal is not None
        raise refusal

    def _ways(self, model: PreTrainedModel, packed: bool, attention: str) -> Iterator[Callable[[], None]]:
        """Yield ways to drive a model, the fastest first; each raises `UserError` if the model is of another kind.

        A model that its user has changed is tried in the first way only: the others would ignore the change.
        """
        yield lambda: self._drive(model, packed, attention, dissect_layers(model))  # which may refuse it
        if peculiarity(model) is None:
            whole = dissect_whole(model)
            for name in dict.fromkeys([attention, "eager", "stock"]):
                yield partial(self._drive, model, packed, name, whole)
            if packed:
                yield partial(self._drive, model, False, "stock", whole)

    def _drive(self, model: PreTrainedModel, packed: bool, attention: str, anatomy: Anatomy) -> None:
        super().__init__(model, packed=packed, attention=attention, anatomy=anatomy)
        self.max_positions = position_limit(text_config(model))
        # With shape-invariant decoding, forwards are padded to multiples of these blocks, and drafts stay within these
        # limits (see `invariance`). Without it they have no effect.
        self.key_block, self.row_block = 1, 1
        self.widest_draft, self.chains_only = UNLIMITED, False
        self.forwards = 0  # full forwards after prefill: tests compare the counts in records with it
        self._last: tuple[Sequence[int], Tensor] | None = None  # last forward: rows, (B, N, C) final hidden states
        self.parameters = sum(p.numel() for p in model.parameters())
        self.cache = KVCache(len(self.full.layers), rows=1, slots=0)
        self.compare_with_stock_forward()
        if self.whole is not None:
            with refusing(model), unpacked():
                error = distance_of_trees(self, model)
            self.cache, self.forwards = KVCache(len(self.full.layers), rows=1, slots=0), 0
            self._refuse_beyond_rounding(error)

    def compare_with_stock_forward(self) -> None:
        """Run a few tokens through our layers and through the model's own forward.

        Raises:
            UserError: the logits differ.
        """
        if torch.is_autocast_enabled(self.device.type) and any(isinstance(m, PackedLinear) for m in self.linears()):
            raise refuse(self.model, "packed matrices do not follow it")
        # No matrix is packed for this: the target may be compiled next, and would not need it. The first forward of a
        # text packs them.
        with refusing(self.model), unpacked():
            # Rotary positions may use other tables past a limit, so forwards there are compared as well.
            starts = [0, *(limit - TRIED // 2 for limit in self.rotary.limits)]
            errors = [self._distance_from_stock_forward(max(start, 0)) for start in starts]
        self._refuse_beyond_rounding(max(errors, key=lambda error: (error != error, error)))

    def _refuse_beyond_rounding(self, error: float) -> None:
        if not error < (1e-3 if self.dtype == torch.float32 else 0.1):  # written so that NaN counts as large
            said = f"its layers, run for a draft, give other logits than its own forward (by {error:.2g} of a sigma)"
            raise refuse(self.model, said)

    def allocate(self, rows: int, slots: int) -> None:
        """Empty the cache, with room for `rows` requests of at least `slots` tokens each.

        A larger cache is kept: otherwise a certificate of one text between two batches would shrink it, and the next
        batch would allocate it again.
        """
        if self.cache.rows >= rows:
            self.cache.reserve(slots)
        else:
            self.cache = KVCache(len(self.full.layers), rows, slots)
        for row in range(self.cache.rows):
            self.cache.clear(row)

    @torch.inference_mode()
    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """See `TargetProtocol.prefill`."""
        self.fill(self.full, tokens, self.cache, row)

    def copy_prefix(self, source: int, row: int, length: int) -> int:
        """See `TargetProtocol.copy_prefix`. Some keys depend on the length of the text, or of the blocks before."""
        if not length or self.rotary.rules or self.key_block > 1:
            self.cache.clear(row)
            return 0
        self.cache.copy_prefix(source, row, length)
        return length

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """See `TargetProtocol.refresh`."""
        limit = self.rotary.recomputed_past
        if limit is not None and self.cache.prefilled_at[row] <= limit < len(tokens):
            self.cache.clear(row)
            self.prefill(row, tokens[:-1])

    @torch.inference_mode()
    def fill(self, path: Path, tokens: Sequence[int], cache: KVCache, row: int = 0) -> None:
        """Commit `tokens` to a row of any cache, through `path`, without logits. An empty row takes them as prompt."""
        if not cache.lengths[row]:
            cache.prefilled_at[row] = len(tokens) + 1  # the first root is a token of the prompt, too
        for first in range(0, len(tokens), PREFILL_CHUNK):
            chunk = torch.tensor([tokens[first : first + PREFILL_CHUNK]])
            start = [cache.lengths[row]]
            depths = torch.arange(chunk.shape[1])[None]
            hidden = path.run(self, Block([row], start, chunk, depths, None, cache, start, key_block=self.key_block))
            cache.extend(row, chunk.shape[1])
            cache.finals[row] = hidden[0, -1] if path is self.full else None

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        reuse: Sequence[Reuse | None] | None = None,
        keep: Sequence[list[Tensor]] | None = None,
        through: Path | None = None,
    ) -> list[Tensor]:
        """See `TargetProtocol.forward`."""
        self.forwards += 1
        starts = [self.cache.lengths[row] for row in rows]
        block = self._block(rows, starts, roots, trees)
        states: list[Tensor] | None = None if keep is None else []
        ready = 0 if keep is not None or through is not None else ready_tokens(reuse or [None])
        ready = min(ready, block.tokens.shape[1]) // self.row_block * self.row_block
        hidden = self._rest(block, reuse, ready) if ready else (through or self.full).run(self, block, trees, states)
        self._last = rows, hidden
        for b, row_keep in enumerate(keep or ()):
            row_keep.append(torch.stack([state[b, : 1 + len(trees[b])].to(self.device) for state in states or ()]))
        return self.logits(self.full, hidden, trees)

    @torch.inference_mode()
    def draft_forward(
        self,
        path: Path,
        rows: Sequence[int],
        offset: int,
        tokens: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        keep: Sequence[list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """See `TargetProtocol.draft_forward`."""
        if path is self.full:
            self.forwards += 1
        with single_threaded(self.graph(path.layers, path.types)):
            starts = [self.cache.lengths[row] + offset for row in rows]
            # A draft is padded only if the verification reuses its states, which must have the verification's bits.
            block = self._block(rows, starts, tokens, trees, padded=keep is not None)
            if offset == 0:
                block = replace(block, finals=[self.cache.finals[row] for row in rows])
            if keep is None:
                return self.logits(path, path.run(self, block, trees), trees)
            kept, hidden = path.run_and_keep(self, block, trees)
            for b, row_keep in enumerate(keep):
                row_keep.append(kept[b, : 1 + len(trees[b])])
            return self.logits(path, hidden, trees)

    @torch.inference_mode()
    def replay(self, path: Path, row: int, position: int, tokens: Sequence[int], block: int | None = None) -> Tensor:
        """See `TargetProtocol.replay`."""
        size = block or len(tokens)
        firsts = range(0, len(tokens), size)
        stride = -(-size // self.row_block) * self.row_block  # a padded block must not write into the next one's slots
        starts = [self.cache.lengths[row] + i * stride for i in range(len(firsts))]
        chains = [TokenTree.chain(tokens[i + 1 : i + size]) for i in firsts]
        whole = self._block([row] * len(firsts), starts, [tokens[i] for i in firsts], chains)
        whole = replace(whole, first_positions=[position + i for i in firsts])
        return torch.cat(self.logits(path, path.run(self, whole, chains), chains))

    def longest_draft(self, row: int) -> int:
        """See `TargetProtocol.longest_draft`. Padding must stay within one block of keys."""
        slots = self.cache.lengths[row] + self.row_block
        longest = min(self.widest_draft, self.rotary.alike_after(self.cache.lengths[row]))
        return min(longest, -slots % self.key_block) if self.key_block > 1 else longest

    def commit(self, row: int, nodes: Sequence[int]) -> None:
        """See `TargetProtocol.commit` and `KVCache.commit`."""
        assert self._last is not None, "nothing was forwarded yet"
        rows, hidden = self._last
        self.cache.commit(row, nodes)
        self.cache.finals[row] = hidden[rows.index(row), 1 + nodes[-1] if nodes else 0]

    def _block(
        self,
        rows: Sequence[int],
        starts: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        padded: bool = True,
    ) -> Block:
        row_block, key_block = (self.row_block, self.key_block) if padded else (1, 1)
        return Block.of_trees(rows, starts, roots, trees, self.cache, row_block, key_block)

    def _rest(self, block: Block, reuse: Sequence[Reuse | None] | None, ready: int) -> Tensor:
        """Return the full model's (B, N, C) final states, where drafting has run the first layers on `ready` tokens."""
        known = [r for r in reuse or () if r is not None]  # every row has one, see `ready_tokens`
        layers = known[0].layers
        hidden = torch.stack([r.states[:ready] for r in known])
        if ready < block.tokens.shape[1]:
            missing = self.full.part(0, layers).drive(self, block, since=ready, normed=False)
            hidden = torch.cat([hidden, missing], dim=1)
        return self.full.part(layers, len(self.full.layers)).drive(self, block, hidden)

    @torch.inference_mode()
    def _distance_from_stock_forward(self, first: int) -> float:
        """Return how far our logits of a few tokens at positions from `first` on differ from stock ones, in sigmas."""
        tokens = torch.randint(self.vocab_size, (TRIED,), generator=torch.Generator().manual_seed(0))
        positions = torch.arange(first, first + TRIED, device=self.device)[None]
        given = {"position_ids": positions} if first else {}
        stock = self.model(input_ids=tokens[None].to(self.device), use_cache=False, **given).logits[0].float()
        tree = TokenTree.chain(tokens[1:])
        self.cache.clear(0)
        self.cache.prefilled_at[0] = first + TRIED  # the stock forward uses one length for all of them
        block = replace(self._block([0], [0], [int(tokens[0])], [tree]), first_positions=[first])
        (ours,) = self.logits(self.full, self.full.run(self, block), [tree])
        self.cache.clear(0)
        return float((stock - ours.float()).abs().mean() / stock.std(dim=-1).mean())
