"""Targets without weights: logits known by hand, with the interface that drafters and the decoder use.

Where the real cache holds keys and values, these hold the text itself. So they also notice what a real model would only
show as a wrong logit: a draft that continues a text which was never written, or a commit that is no path of the tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from random_trees import branch
from selfdraft.core.costs import CostCurve
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.engines.low_bit import low_bit_path
from selfdraft.models.paths.dynamic import exit_tokens, most_similar_skips
from selfdraft.models.paths.mlps import neurons_of
from selfdraft.models.paths.neurons import most_used_mlps
from selfdraft.models.paths.selection import scoring, selecting, selection
from selfdraft.models.paths.sparse import sparse_path, with_vocabulary
from selfdraft.models.trained.fused import fused_rows
from selfdraft.models.trained.pseudo import pseudo_tokens

Rule = Callable[[Sequence[int]], int]  # a text to the token that greedy decoding puts after it


def successor(text: Sequence[int]) -> int:
    """Counting up: every token is new, so earlier text does not help to predict it."""
    return text[-1] + 1


def repeats(text: Sequence[int]) -> int:
    """The last token again and again."""
    return text[-1]


def cycle(period: int) -> Rule:
    """1, 2, …, `period`, 1, 2, …"""
    return lambda text: text[-1] % period + 1


def script(text: Sequence[int]) -> Rule:
    """A text that depends only on positions: predictions are right whatever guesses come before them."""
    return lambda prefix: text[len(prefix)] if len(prefix) < len(text) else 0


@dataclass(frozen=True)
class StubPath:
    """Its layers are only counted."""

    rule: Rule
    skip: SkipSet = SkipSet()
    layers: tuple[None, ...] = (None,) * 4
    leading: int = 0
    head: None = None
    vocabulary: None = None
    choose: Callable[[StubScores, int], None] | None = None

    @property
    def shape(self) -> object:
        return self.skip, self.leading, len(self.layers)

    def part(self, first: int, end: int) -> StubPath:
        return replace(self, layers=self.layers[first:end])


class StubCache:
    """Committed texts, row by row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.reserved = 0

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.texts]

    def clear(self, row: int) -> None:
        self.texts[row] = []

    def reserve(self, slots: int) -> None:
        self.reserved = max(self.reserved, slots)

    def move(self, source: int, destination: int) -> None:
        self.texts[destination] = self.texts[source].copy()


@dataclass
class StubSelection:
    """A selection without effect: these targets have the text itself, and no keys."""

    cache: StubCache

    def choose(self, row: int, source: StubCache, positions: Tensor, drafted: int = 0) -> None:
        assert positions.tolist() == sorted(set(positions.tolist())) and int(positions[-1]) < source.lengths[row]


@dataclass(frozen=True)
class StubPseudoTokens:
    """Probes that are taken for the tokens that they hold."""

    count: int
    path: StubPath
    sampler: None = None


class StubFusedRows(StubPseudoTokens):
    """Gated rows that predict as probes do, and are fed back tokens only if `feeds`."""

    feeds = True

    def __init__(self, target: StubTarget, count: int) -> None:
        super().__init__(count, target.full)
        object.__setattr__(self, "target", target)

    def states_of(self, row: int, at: Sequence[int]) -> Tensor:
        """The tokens predicted by the last forward, as states."""
        return self.target.said[row].argmax(-1)[list(at), None]

    def resampled(self, states: Tensor, previous: int, count: int, branches: int = 1) -> list[dict]:
        """Every row's token, whatever the branch."""
        tokens = states[:, 0].tolist()
        return [{tuple(tokens[:at]): [(token, 0.9)]} for at, token in enumerate(tokens)]


class StubScores:
    """Attention scores that are highest for the first keys."""

    def best(self, count: int, first: int, end: int) -> Tensor:
        return torch.arange(first, min(first + count, end))


class StubTarget:
    """Predicts the token of `rule`; its sparse paths predict that of `sparse`.

    Attributes:
        seen: of every full forward that verified, the rows and their trees.
        drafted: of every draft forward, the path, rows and offset.
    """

    def __init__(
        self,
        rule: Rule,
        sparse: Rule | None = None,
        *,
        unsure: Callable[[Sequence[int]], bool] = lambda text: False,
        vocab_size: int = 64,
        max_positions: int = 512,
        pad_id: int = 0,
    ) -> None:
        self.full = StubPath(rule)
        self._sparse, self._unsure = sparse or rule, unsure
        self.vocab_size, self.max_positions, self.pad_id = vocab_size, max_positions, pad_id
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.forwards = 0
        self.compiled = {}
        self.costs = CostCurve((1, 64), (1.0, 2.0))  # seconds: any curve will do
        self.chains_only = False
        self.cache = StubCache(1)
        self.seen: list[tuple[list[int], list[TokenTree]]] = []
        self.said: dict[int, Tensor] = {}  # by row, the logits of the last verification
        self.drafted: list[tuple[StubPath, list[int], int]] = []
        self._scratch: dict[int, list[int]] = {}
        self._last: dict[int, tuple[int, TokenTree]] = {}

    def allocate(self, rows: int, slots: int) -> None:
        self.cache = StubCache(rows)

    def longest_draft(self, row: int) -> int:
        return 10_000

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        assert self.cache.texts[row] == list(tokens[:-1])

    def costs_of(self, path: StubPath) -> CostCurve:
        return CostCurve((1, 64), (0.5, 1.0))

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        self.cache.texts[row] += tokens

    def copy_prefix(self, source: int, row: int, length: int) -> int:
        assert length <= self.cache.lengths[source]
        self.cache.texts[row] = self.cache.texts[source][:length]
        return length

    def forward(
        self,
        rows: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        reuse=None,
        keep=None,
        through=None,
    ) -> list[Tensor]:
        assert len(set(rows)) == len(rows) == len(roots) == len(trees)
        for root, tree, known in zip(roots, trees, reuse or [None] * len(rows), strict=True):
            if known is not None:  # the states, here tokens, of the first tokens of the block
                tokens = known.states[:, 0].tolist()
                assert tokens == [root, *tree.tokens.tolist()][: len(tokens)]
        assert self.cache.reserved >= max(self.cache.lengths[row] + 1 for row in rows)
        self.forwards += 1
        self.seen.append((list(rows), list(trees)))
        self._last = {row: (root, tree) for row, root, tree in zip(rows, roots, trees, strict=True)}
        self._scratch = {}
        for b, states in enumerate(keep or ()):  # after every layer: the token that a sparse path would predict
            said = self._logits(self._sparse, [*self.cache.texts[rows[b]], roots[b]], trees[b]).argmax(-1)
            states.append(said[None, :, None].expand(len(self.full.layers) + 1, -1, 1))
        self.said = {
            row: self._logits(self.full.rule, [*self.cache.texts[row], root], tree)
            for row, root, tree in zip(rows, roots, trees, strict=True)
        }
        return list(self.said.values())

    def draft_forward(
        self,
        path: StubPath,
        rows: Sequence[int],
        offset: int,
        tokens: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        keep: Sequence[list[Tensor]] | None = None,
    ) -> list[Tensor]:
        if path is self.full:
            self.forwards += 1
        self.drafted.append((path, list(rows), offset))
        out = []
        for row, token, tree in zip(rows, tokens, trees, strict=True):
            scratch = self._scratch.get(row, [])
            assert len(scratch) >= offset, "a draft goes on where nothing was drafted"
            scratch = [*scratch[:offset], token]
            self._scratch[row] = [*scratch, *tree.tokens.tolist()] if tree.is_chain else scratch
            if keep is not None:
                keep[len(out)].append(torch.tensor([[token, *tree.tokens.tolist()]]).T)
            out.append(self._logits(path.rule, self.cache.texts[row] + scratch, tree))
        if path.choose is not None and offset == 0:
            path.choose(StubScores(), 1)
        return out

    def replay(
        self, path: StubPath, row: int, position: int, tokens: Sequence[int], block: int | None = None
    ) -> Tensor:
        before = self.cache.texts[row]
        assert before[position : position + len(tokens)] == list(tokens), "a replay of what is not committed"
        return self._logits(path.rule, [*before[:position], tokens[0]], TokenTree.chain(tokens[1:]))

    def commit(self, row: int, nodes: Sequence[int]) -> None:
        root, tree = self._last[row]
        assert [int(tree.parents[i]) for i in nodes] == [ROOT, *nodes[:-1]][: len(nodes)], "not a branch from the root"
        self.cache.texts[row] += [root, *(int(tree.tokens[i]) for i in nodes)]

    def _logits(self, rule: Rule, prefix: list[int], tree: TokenTree) -> Tensor:
        """(n + 1, V), one token far above the rest, or barely above it where the text is an unsure one."""
        assert len(prefix) + tree.height <= self.max_positions
        logits = torch.zeros(len(tree) + 1, self.vocab_size)
        for i, text in enumerate([prefix, *(prefix + branch(tree, node) for node in range(len(tree)))]):
            logits[i, rule(text)] = 1.0 if self._unsure(text) else 30.0
        return logits


@sparse_path.register
def _(target: StubTarget, skip: SkipSet, **_: object) -> StubPath:
    return StubPath(target._sparse, skip, leading=min([*skip.attention, *skip.mlp], default=4))


@with_vocabulary.register
def _(path: StubPath, target: StubTarget, vocabulary: Sequence[int]) -> StubPath:
    return replace(path)


@neurons_of.register
def _(target: StubTarget) -> list:
    return []


@most_used_mlps.register
def _(target: StubTarget, neurons: list, tokens: Sequence[int], ratio: float, skip: SkipSet) -> dict:
    return {}


@low_bit_path.register
def _(target: StubTarget, bits: int) -> StubPath:
    return StubPath(target._sparse)


@exit_tokens.register
def _(target: StubTarget, states: Tensor) -> Tensor:
    return states[:, 0]


@most_similar_skips.register
def _(
    target: StubTarget, row: int, position: int, token: int, states: Tensor, count: int, layers: Sequence[int]
) -> SkipSet:
    assert target.cache.texts[row][position] == token and position == len(target.cache.texts[row]) - 1
    assert states.shape == (len(target.full.layers) + 1, 1)
    return SkipSet(frozenset(layers[:count]), frozenset(layers[:count]))


@pseudo_tokens.register
def _(target: StubTarget, adapter: str | None, count: int, noise: float) -> StubPseudoTokens:
    return StubPseudoTokens(count, target.full)


@fused_rows.register
def _(target: StubTarget, adapter: str | None, count: int, noise: float) -> StubFusedRows:
    return StubFusedRows(target, count)


@selection.register
def _(target: StubTarget) -> StubSelection:
    return StubSelection(target.cache)


@scoring.register
def _(target: StubTarget, path: StubPath) -> tuple[StubPath, StubScores]:
    return path, StubScores()


@selecting.register
def _(path: StubPath, target: StubTarget, keys: StubSelection, choose: Callable | None = None) -> StubPath:
    return replace(path, leading=0, choose=choose)


class ObligingTarget(StubTarget):
    """Accepts the draft's first candidate at each depth up to `agree`, and rejects every draft below.

    So any drafter is accepted never (0), always (infinity) or sometimes, without knowing anything about it.
    """

    def __init__(self, agree: float, **sizes: int) -> None:
        super().__init__(successor_within_64, **sizes)
        self.agree = agree

    def forward(
        self, rows: Sequence[int], roots: Sequence[int], trees: Sequence[TokenTree], **kwargs: object
    ) -> list[Tensor]:
        super().forward(rows, roots, trees, **kwargs)
        return [self._oblige(tree) for tree in trees]

    def _oblige(self, tree: TokenTree) -> Tensor:
        logits = torch.zeros(len(tree) + 1, self.vocab_size)
        tokens, may, depths = tree.tokens.tolist(), tree.is_candidate.tolist(), [0, *tree.depths.tolist()]
        children: list[list[int]] = [[] for _ in depths]
        for node, parent in enumerate(tree.parent_list):
            children[parent + 1].append(node)
        for place, below in enumerate(children):
            candidates, taken = [tokens[i] for i in below if may[i]], {tokens[i] for i in below}
            contrary = next(token for token in range(1, self.vocab_size) if token not in taken)
            logits[place, candidates[0] if candidates and depths[place] < self.agree else contrary] = 30.0
        return logits


def successor_within_64(text: Sequence[int]) -> int:
    """Counting up, and round."""
    return (text[-1] + 1) % 64


ALWAYS = math.inf
