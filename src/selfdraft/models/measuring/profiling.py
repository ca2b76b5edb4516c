"""Measure what forwards cost on this machine: in seconds, by number of tokens, for the full model and its parts.

Every decision whether a draft is worth its time uses these numbers. So forwards are timed as they are run in decoding,
and enough times that a busy moment of the machine does not decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from selfdraft.core.costmodel import CostModel
from selfdraft.core.costs import CostCurve, Costs, Shaped
from selfdraft.core.pathcosts import DraftCosts, PathCosts
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.families.parts import attribute
from selfdraft.models.forward.path import Path, Reuse
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.paths.sparse import sparse_path

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PART_SIZES = (1, 2, 4, 8, 16)
CONTEXTS = (64, 128, 512, 1024, 2048)
BATCHES = (2, 4, 8)
# Most drafts are small, and whether they pay depends on small differences. So forwards of up to SMALL tokens are timed
# in further rounds: at most MORE for each of the first rounds, and for about MORE_S seconds.
SMALL, MORE, MORE_S = 8, 5, 2.0


@torch.inference_mode()
def measure_costs(
    target: Target,
    *,
    path: Path | None = None,
    sizes: Sequence[int] = SIZES,
    context: int = 256,
    rounds: int = 3,
    by_clock: bool = True,
) -> CostCurve:
    """Time forwards of chains of every size after `context` tokens, through the full path or another.

    Sizes are timed in turn. For one token the fastest forward counts, because other processes on the machine can only
    add time. How many times as long a larger forward takes is a ratio of medians, because a machine's speed drifts and
    the fastest runs may be from different moments.

    Each forward is timed after a full forward of one token, as in decoding. Otherwise a path that fits into the
    processor's caches would look cheaper than it is, and a forward of one token, which takes longer after one of many,
    would make drafts look cheaper beside it.

    The cache is overwritten, so call this between requests. The forwards are not counted as decoding.

    Args:
        rounds: forwards of each size; small ones are timed more often (see `SMALL`).
        by_clock: run those further rounds, whose number depends on this process's clock. Processes that compute each
            forward together would wait for one another for ever if one of them ran more.
    """
    sizes = _fitting(target, context, sizes)
    context = prepare(target, rows=1, context=context, longest=max(sizes))
    jobs = {size: _forward(target, path or target.full, rows=1, size=size) for size in sizes}
    before = _forward(target, target.full, rows=1, size=1)
    runs = runs_of(target, jobs, rounds, before)
    small = {size: jobs[size] for size in sizes if size <= SMALL}
    round_s = sum(min(runs[size]) + min(runs[sizes[0]]) for size in small)
    if by_clock and small and (more := min(int(MORE_S / round_s), MORE * rounds)):
        for size, again in runs_of(target, small, more, before).items():
            runs[size] = [*runs[size], *again]
    least = min(runs[sizes[0]]) / median(runs[sizes[0]])
    return CostCurve.measured(sizes, [least * median(runs[size]) for size in sizes])


def costs_on(target: Target, full: CostCurve | None = None, *, by_clock: bool = True) -> Costs:
    """Return the costs of forwards of `target`, each measured when it is first asked for.

    Args:
        full: the cost of full forwards, if that was measured already. by_clock: see `measure_costs`.
    """

    def measure(path: Shaped | None) -> CostCurve:
        if path is None:
            return full or measure_costs(target, by_clock=by_clock)
        assert isinstance(path, Path)
        return measure_costs(target, path=path, sizes=PART_SIZES, by_clock=by_clock)

    def alike(path: Shaped) -> Hashable:
        assert isinstance(path, Path)
        return path.shape, *(None if graph is None else graph.alike for graph in path.graphs(target))

    return Costs(measure, alike)


@torch.inference_mode()
def measure_parts(target: Target, *, context: int = 256, rounds: int = 5, **labels: str) -> CostModel:
    """Time the parts of the model: the full path, paths without attentions, MLPs or layers, and the head.

    Args:
        labels: device, model and source, for the cost model.
    """
    layers, none = frozenset(range(len(target.full.layers))), frozenset[int]()
    without = {"attention": SkipSet(layers, none), "mlp": SkipSet(none, layers), "all": SkipSet(layers, layers)}
    paths = {"full": target.full, **{name: sparse_path(target, skip) for name, skip in without.items()}}
    sizes = _fitting(target, context, SIZES)
    context = prepare(target, rows=1, context=context, longest=max(sizes))
    jobs: dict[Any, Callable[[], object]] = {
        (name, size): _forward(target, path, rows=1, size=size)
        for name, path in paths.items()
        for size in (sizes if name == "full" else PART_SIZES)
        if size in sizes
    }
    hidden = torch.randn(max(PART_SIZES), attribute(target.anatomy.head, "weight", Tensor).shape[1]).to(
        target.device, target.dtype
    )
    head = target.linears()[-1]
    jobs |= {("head", n): partial(_product, head, hidden[:n]) for n in PART_SIZES}
    logits = torch.randn(1, target.vocab_size).to(target.device, target.dtype)
    jobs["argmax"] = lambda: int(logits.argmax())
    jobs["confidence"] = lambda: (int(logits.argmax()), float(logits.float().softmax(-1)[0, 0]))
    fastest = fastest_of(target, jobs, rounds)

    def curve(name: str) -> CostCurve:
        points = {key[1]: seconds for key, seconds in fastest.items() if key[0] == name}
        return CostCurve.measured(list(points), list(points.values()))

    return CostModel.from_parts(
        curve("full"),
        {name: curve(name) for name in without},
        len(layers),
        curve("head"),
        dtype=str(target.dtype).removeprefix("torch."),
        confidence_s=max(fastest["confidence"] - fastest["argmax"], 0.0),
        **labels,
    )


def measure_grid(target: Target, rounds: int = 3) -> Iterator[tuple[str, dict]]:
    """Time full forwards after shorter and longer prefixes, then of several rows, one line of the grid at a time.

    Yields:
        ``by_context`` or ``by_batch``, and a dict with `context` or `rows`, `sizes` and `seconds`.
    """
    sizes = (1, 4, 8, 16)
    lines = [("by_context", "context", 1, c) for c in CONTEXTS if c + max(sizes) <= target.max_positions]
    lines += [("by_batch", "rows", rows, 256) for rows in BATCHES]
    for part, name, rows, context in lines:
        context = prepare(target, rows, context, longest=max(sizes))
        jobs = {size: _forward(target, target.full, rows, size) for size in _fitting(target, context, sizes)}
        seconds = fastest_of(target, jobs, rounds)
        yield (
            part,
            {name: rows if name == "rows" else context, "sizes": list(seconds), "seconds": list(seconds.values())},
        )


@torch.inference_mode()
def measure_path(target: Target, path: Path, longest: int, *, context: int = 256, rounds: int = 5) -> PathCosts:
    """Time drafting with a path, and the verification of such drafts, interleaved.

    Args:
        longest: number of tokens of the longer draft whose verification is timed; the other has one token.
    """
    forward = measure_costs(target, path=path, sizes=PART_SIZES, context=context, rounds=rounds)
    longest = max(min(longest, target.max_positions - 2), 1)
    prepare(target, rows=1, context=context, longest=longest + 1)
    counts = sorted({1, max(min(longest, target.longest_draft(0)), 1)})
    jobs: dict = {"plain": _forward(target, target.full, 1, 1), "draft": _forward(target, path, 1, 1)}
    for count in counts:
        reuse = _drafted(target, path, count) if path.leading else None
        jobs[count, "verify"] = _forward(target, target.full, rows=1, size=count + 1)
        if reuse is not None:
            jobs[count, "reuse"] = _verification(target, count, reuse)
            jobs[count, "reuse_without_bonus"] = _verification(target, count - 1, reuse)
    fastest = fastest_of(target, jobs, rounds)
    steps = [
        DraftCosts(count, **{key[1]: seconds for key, seconds in fastest.items() if key[0] == count})
        for count in counts
    ]
    return PathCosts(fastest["plain"], fastest["draft"], forward, steps)


def prepare(target: Target, rows: int, context: int, longest: int) -> int:
    """Prefill random prefixes of `context` tokens, or as many as the model has positions for; return that number."""
    context = max(min(context, target.max_positions - longest), 1)
    generator = torch.Generator().manual_seed(0)
    target.allocate(rows, context + longest)
    for row in range(rows):
        target.prefill(row, torch.randint(target.vocab_size, (context,), generator=generator).tolist())
    return context


def _fitting(target: Target, context: int, sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if context + size <= target.max_positions] or [1, 2]


def _forward(target: Target, path: Path, rows: int, size: int) -> Callable[[], object]:
    tokens = torch.randint(target.vocab_size, (size,), generator=torch.Generator().manual_seed(size)).tolist()
    trees = [TokenTree.chain(tokens[1:])] * rows

    def job() -> object:  # ends with the best tokens on the host, as in decoding
        logits = target.draft_forward(path, range(rows), 0, tokens[:1] * rows, trees)
        with single_threaded(target.compiled):
            return torch.cat([row.max(-1).indices for row in logits]).cpu()

    return job


def _drafted(target: Target, path: Path, count: int) -> Reuse:
    """Draft `count` tokens, and return what their verification can reuse."""
    states: list[Tensor] = []
    for offset in range(count):
        target.draft_forward(path, [0], offset, [offset], [TokenTree.empty()], keep=[states])
    return Reuse(path.leading, torch.cat(states))


def _verification(target: Target, count: int, reuse: Reuse) -> Callable[[], object]:
    """Return a full forward of a root and a chain of `count` tokens that reuses the draft's work."""
    tree = TokenTree.chain(list(range(1, count + 1)))
    return lambda: target.forward([0], [0], [tree], reuse=[reuse])[0].argmax(-1).cpu()


def _product(matrix: nn.Module, hidden: Tensor) -> object:
    return matrix(hidden)[0, 0].item()  # waits for the device


def fastest_of(target: Target, jobs: dict, rounds: int, before: Callable[[], object] | None = None) -> dict:
    """Return the seconds of the fastest run of every job. See `runs_of`."""
    return {key: min(seconds) for key, seconds in runs_of(target, jobs, rounds, before).items()}


@torch.inference_mode()
def runs_of(target: Target, jobs: dict, rounds: int, before: Callable[[], object] | None = None) -> dict:
    """Return the seconds of every run of each job, a list for each: `rounds` interleaved ones, after one to warm up.

    Args:
        before: called before every run, and not timed.
    """
    forwards: int = target.forwards
    runs: dict[Any, list[float]] = {key: [] for key in jobs}
    for turn in range(rounds + 1):
        for key, job in jobs.items():
            if before is not None:
                before()
            begin = time.perf_counter()
            job()
            if turn:
                runs[key].append(time.perf_counter() - begin)
    target.forwards = forwards
    return runs
