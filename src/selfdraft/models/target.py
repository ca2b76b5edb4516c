"""The target: runs a stock model, or sparse paths of it, over the token trees of many requests.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree (N = n + 1 with the root), V vocabulary, C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.core.costs import CostCurve
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.adapted import adapted_path
from selfdraft.models.adapter import Adapter
from selfdraft.models.anatomy import refuse, refusing
from selfdraft.models.block import Block
from selfdraft.models.cache import KVCache
from selfdraft.models.driver import Driver
from selfdraft.models.dynamic import most_similar_skips
from selfdraft.models.neurons import most_used_mlps
from selfdraft.models.profiling import measure_costs
from selfdraft.models.pseudo import PseudoTokens, untrained
from selfdraft.models.selection import Scores, Selection, scoring
from selfdraft.models.sparse import Path, Reuse, ready_tokens, sliced_head, sparse_path

LONGEST_DRAFT = 10_000  # in effect, no limit
TRIED = 12  # tokens on which our run through the layers is compared with the model's own forward
PREFILL_CHUNK = 512  # tokens per prefill forward: bounds the (N, K) mask of long prompts


class Target(Driver):
    """A stock causal LM with the interface that decoding and drafters need, and a cache for several requests.

    `Driver` runs the layers; this class decides what is run, in which rows and slots, and what is kept.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool = True, attention: str = "sdpa") -> None:
        """Take a loaded model in eval mode.

        Args:
            attention: one of `attention.IMPLEMENTATIONS`: ours around torch's sdpa, the family's eager one, or flex.
            packed: on a CPU, fuse what can be fused, and hold an oneDNN-packed copy of every matrix (twice the memory,
                faster small forwards).

        Raises:
            UserError: the family cannot be driven; the message names it.
        """
        super().__init__(model, packed=packed, attention=attention)
        self.max_positions = int(model.config.max_position_embeddings)
        self.pad_id = _first(model.config.pad_token_id, model.config.eos_token_id, 0)
        # Shapes of forwards are rounded up to multiples of these, and drafts keep to these limits (see invariance.py).
        self.key_block, self.row_block = 1, 1
        self.widest_draft, self.chains_only = LONGEST_DRAFT, False
        self.forwards = 0  # full forwards after prefill: tests compare the counts in records with it
        self._last: tuple[Sequence[int], Tensor] | None = None  # last forward: rows, (B, N, C) final hidden states
        self.parameters = sum(p.numel() for p in model.parameters())
        self.cache = KVCache(len(self.full.layers), rows=1, slots=0)
        self._costs_of: dict[object, CostCurve] = {}
        with refusing(model):
            # Past its limits a rope uses other tables, so forwards there are compared as well.
            starts = [0, *(limit - TRIED // 2 for limit in self.rotary.limits)]
            errors = [self._distance_from_stock_forward(max(start, 0)) for start in starts]
        allowed = 1e-3 if self.dtype == torch.float32 else 0.1
        if large := [error for error in errors if not error < allowed]:  # written so that NaN counts as large
            raise refuse(model, f"its forward differs from a drive through its layers (by {large[0]:.2g} of a sigma)")

    def allocate(self, rows: int, slots: int) -> None:
        """Empty the cache, with room for `rows` requests of at least `slots` tokens each.

        A larger cache is kept, so that certifying one text between two batches does not make the next one reallocate.
        """
        if self.cache.rows >= rows:
            self.cache.reserve(slots)
        else:
            self.cache = KVCache(len(self.full.layers), rows, slots)
        for row in range(self.cache.rows):
            self.cache.clear(row)

    def teacher_forced(self, text: Sequence[int], prefix: int, block: int) -> Tensor:
        """Return our logits of a given text, for controls and checks.

        The cache is overwritten, and the forwards are not counted as decoding.

        Args:
            prefix: number of tokens to prefill. block: number of the other tokens in one forward.

        Returns:
            (len(text) - prefix, V) logits after each token that follows the prefix.
        """
        (logits,) = self.teacher_forced_in(text, prefix, [block])
        return logits

    @torch.inference_mode()
    def teacher_forced_in(self, text: Sequence[int], prefix: int, blocks: Sequence[int]) -> list[Tensor]:
        """Return the logits of `teacher_forced` for each block size, sharing one prefill unless keys are recomputed."""
        forwards, every = self.forwards, []
        self.allocate(1, len(text) + max(blocks))
        for block in blocks:
            if self.cache.prefilled_at[0] == prefix + 1:
                self.cache.rewind(0, prefix)
            else:  # the row is empty, or its keys were recomputed past the limit of a rope
                self.cache.clear(0)
                self.prefill(0, text[:prefix])
            parts, first = [], prefix
            while first < len(text):
                self.refresh(0, text[: first + 1])
                root, *rest = text[first : first + min(block, 1 + self._before_recomputing(first))]
                parts.append(self.forward([0], [root], [TokenTree.chain(rest)])[0])
                self.commit(0, range(len(rest)))
                first += 1 + len(rest)
            every.append(torch.cat(parts))
        self.forwards = forwards
        return every

    @cached_property
    def costs(self) -> CostCurve:
        """The cost of a forward by its number of tokens, measured here at first use (about a second).

        Overwrites the cache: drafters read it when they are made, never in the middle of a request.
        """
        return measure_costs(self)

    def costs_of(self, path: Path) -> CostCurve:
        """Return the costs of small blocks on a path, measured once for paths of one shape. Overwrites the cache."""
        words = None if path.vocabulary is None else len(path.vocabulary)
        kind = path.skip, path.leading, len(path.layers), words, path.feature is not None
        if kind not in self._costs_of:
            self._costs_of[kind] = measure_costs(self, path=path, sizes=(1, 2, 4, 8, 16))
        return self._costs_of[kind]

    @torch.inference_mode()
    def sparse_path(
        self, skip: SkipSet, *, mlps: Mapping[int, nn.Module] | None = None, vocabulary: Sequence[int] | None = None
    ) -> Path:
        """Return the path that bypasses the sublayers of `skip`. It takes microseconds; any number may coexist.

        Args:
            mlps: by layer, the module that replaces its MLP.
            vocabulary: the only ids that the path may draft; their rows of the head are copied.
        """
        head = None if vocabulary is None else sliced_head(self.head, vocabulary, packed=self.packed)
        return sparse_path(self.full, self.anatomy, skip, mlps or {}, head)

    @torch.no_grad()
    def adapted_path(self, adapter: Adapter) -> Path:
        """Return the draft path that an adapter was trained for, with its weights in place (see `adapted`)."""
        return adapted_path(self, adapter)

    def most_used_mlps(self, tokens: Sequence[int], ratio: float, skip: SkipSet) -> dict[int, nn.Module]:
        """Return MLPs with only the fraction `ratio` of neurons that `tokens` use most, by layer (see `neurons`)."""
        return most_used_mlps(self, tokens, ratio, skip)

    def pseudo_tokens(self, adapter: str | None, count: int, noise: float) -> PseudoTokens:
        """Return the pseudo tokens of an adapter's folder, or `count` untrained ones (see `pseudo`)."""
        if adapter is not None:
            return PseudoTokens(self, Adapter.read(adapter), adapter)
        return PseudoTokens(self, untrained(self, count, noise))

    def selection(self) -> Selection:
        """Return an empty selection of keys for every cache row."""
        return Selection(len(self.full.layers), self.cache.rows)

    def scoring(self, path: Path) -> tuple[Path, Scores]:
        """Return `path` with attention that records its scores (see `selection`)."""
        return scoring(self, path)

    def most_similar_skips(
        self, row: int, position: int, token: int, states: Tensor, count: int, layers: Sequence[int]
    ) -> SkipSet:
        """Choose `count` of `layers` to skip so that a token's last state stays most similar (see `dynamic`)."""
        return most_similar_skips(self, row, position, token, states, count, layers)

    @torch.inference_mode()
    def exit_tokens(self, states: Tensor) -> Tensor:
        """Return the (m,) most likely ids for (m, C) hidden states of any layer: final norm, head and argmax."""
        return self.head(self.norm(states)).argmax(-1)

    @torch.inference_mode()
    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """Append `tokens` to the committed tokens of a cache row, without computing logits."""
        self.fill(self.full, tokens, self.cache, row)

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """Recompute a row's keys when its text grows past the limit of its rope, in families that do so.

        Args:
            tokens: the row's committed tokens and the next root.
        """
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
            hidden = self.run(path, Block([row], start, chunk, depths, None, cache, start, key_block=self.key_block))
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
        pseudo: PseudoTokens | None = None,
    ) -> list[Tensor]:
        """Run one full forward of every row's root and tree.

        Args:
            rows: B cache rows. roots: their last committed tokens, not yet in the cache. trees: their drafts.
            reuse: per row, what drafting has computed already, so that only the rest is computed. Ignored with `keep`
                or `pseudo`, and unless all rows have it for the same number of layers.
            keep: per row, a list that gets the (L + 1, n + 1, C) hidden states before the first layer and after each.
            pseudo: pseudo tokens that take the place of the trees' probes.

        Returns:
            Per row (n + 1, V) logits: after the root, then after each node.
        """
        self.forwards += 1
        starts = [self.cache.lengths[row] for row in rows]
        block = self._block(rows, starts, roots, trees)
        states: list[Tensor] | None = None if keep is None else []
        ready = 0 if keep is not None or pseudo is not None else ready_tokens(reuse or [None])
        ready = min(ready, block.tokens.shape[1]) // self.row_block * self.row_block
        if pseudo is not None:
            hidden = pseudo.run(block, trees, states)
        else:
            hidden = self._rest(block, reuse, ready) if ready else self.run(self.full, block, states=states)
        self._last = rows, hidden
        for b, row_keep in enumerate(keep or ()):
            row_keep.append(torch.stack([state[b, : 1 + len(trees[b])] for state in states or ()]))
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
        keys: Selection | None = None,
    ) -> list[Tensor]:
        """Run a forward through `path` in the scratch slots after the committed tokens: nothing has to be undone.

        Args:
            offset: how many scratch tokens of the same draft come before (a drafted chain is written as it grows).
            tokens: per row the token at that offset. trees: per row the nodes under it.
            keep: per row, a list that gets the (n + 1, C) hidden states after the path's leading layers, for `Reuse`.
            keys: attend only to this selection of the committed keys.

        Returns:
            Per row (n + 1, V) logits.
        """
        if path is self.full:
            self.forwards += 1
        behind = [self.cache.lengths[row] + offset for row in rows]
        padded = keep is not None  # only states that verification reuses must have the bits of verification
        if keys is None:
            block = self._block(rows, behind, tokens, trees, padded=padded)
        else:
            starts = [keys.cache.lengths[row] + offset for row in rows]
            held = [keys.positions(row, offset) for row in rows]
            block = self._block(rows, starts, tokens, trees, padded=padded)
            block = replace(block, cache=keys.cache, behind=behind, held=held)
        told = path.feature is not None and offset == 0
        if keep is None and not told:
            return self.logits(path, self.run(path, block), trees)
        hidden = self.run(path.part(0, path.leading), block, normed=False)
        for b, row_keep in enumerate(keep or ()):
            row_keep.append(hidden[b, : 1 + len(trees[b])])
        if told:
            hidden = torch.cat([hidden[:, :1] + self._featured(path, rows), hidden[:, 1:]], dim=1)
        return self.logits(path, self.run(path.part(path.leading, len(path.layers)), block, hidden), trees)

    @torch.inference_mode()
    def replay(self, path: Path, row: int, position: int, tokens: Sequence[int], block: int | None = None) -> Tensor:
        """Return (n, V) logits of `path` after each of n committed tokens from `position` on, as if drafted there.

        They see the full model's keys before `position`, and their own, which are written to scratch slots.

        Args:
            block: cut the tokens into blocks of this size, each of which sees the full model's keys before it: one
                forward then imitates many drafts of up to that length.
        """
        size = block or len(tokens)
        firsts = range(0, len(tokens), size)
        stride = -(-size // self.row_block) * self.row_block  # a padded block must not write into the next one's slots
        starts = [self.cache.lengths[row] + i * stride for i in range(len(firsts))]
        chains = [TokenTree.chain(tokens[i + 1 : i + size]) for i in firsts]
        whole = self._block([row] * len(firsts), starts, [tokens[i] for i in firsts], chains)
        whole = replace(whole, behind=[position + i for i in firsts])
        return torch.cat(self.logits(path, self.run(path, whole), chains))

    def longest_draft(self, row: int) -> int:
        """Return the greatest depth that a row's next forward may verify; its padding must stay in one key block."""
        slots = self.cache.lengths[row] + self.row_block
        longest = min(self.widest_draft, self._before_recomputing(self.cache.lengths[row]))
        return min(longest, -slots % self.key_block) if self.key_block > 1 else longest

    def _before_recomputing(self, root: int) -> int:
        """Return how many tokens after the one at position `root` still share its rotary table (see `rotary`)."""
        limit = self.rotary.recomputed_past
        return LONGEST_DRAFT if limit is None or root >= limit else limit - root - 1

    def commit(self, row: int, path: Sequence[int]) -> None:
        """Keep the root and the accepted nodes of the last full forward (see `KVCache.commit`)."""
        assert self._last is not None, "nothing was forwarded yet"
        rows, hidden = self._last
        self.cache.commit(row, path)
        self.cache.finals[row] = hidden[rows.index(row), 1 + path[-1] if path else 0]

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

    def _featured(self, path: Path, rows: Sequence[int]) -> Tensor:
        """Return the path's (B, 1, C) features of the rows' last final hidden states; zeros where one is not known."""
        finals = [self.cache.finals[row] for row in rows]
        unknown = torch.zeros(path.feature.weight.shape[1], dtype=self.dtype, device=self.device)
        return path.feature(torch.stack([unknown if final is None else final for final in finals])[:, None])

    def _rest(self, block: Block, reuse: Sequence[Reuse], ready: int) -> Tensor:
        """Return the full model's (B, N, C) final hidden states; leading layers have run on `ready` first tokens."""
        layers = reuse[0].layers
        hidden = torch.stack([r.states[:ready] for r in reuse])
        if ready < block.tokens.shape[1]:
            missing = self.run(self.full.part(0, layers), block, since=ready, normed=False)
            hidden = torch.cat([hidden, missing], dim=1)
        return self.run(self.full.part(layers, len(self.full.layers)), block, hidden)

    @torch.inference_mode()
    def _distance_from_stock_forward(self, first: int) -> float:
        """Return how far our logits of a few tokens at positions from `first` on differ from stock ones, in sigmas."""
        tokens = torch.randint(self.vocab_size, (TRIED,), generator=torch.Generator().manual_seed(0))
        positions = torch.arange(first, first + TRIED, device=self.device)[None]
        told = {"position_ids": positions} if first else {}
        stock = self.model(input_ids=tokens[None].to(self.device), use_cache=False, **told).logits[0].float()
        tree = TokenTree.chain(tokens[1:])
        self.cache.clear(0)
        self.cache.prefilled_at[0] = first + TRIED  # the stock forward uses one length for all of them
        block = replace(self._block([0], [0], [int(tokens[0])], [tree]), behind=[first])
        (ours,) = self.logits(self.full, self.run(self.full, block), [tree])
        self.cache.clear(0)
        return float((stock - ours.float()).abs().mean() / stock.std(dim=-1).mean())


def _first(*ids: int | Sequence[int] | None) -> int:
    """Return the first token id that is given, among several fallbacks."""
    given = next(i for i in ids if i is not None and i != [])
    return int(given if isinstance(given, int) else given[0])
