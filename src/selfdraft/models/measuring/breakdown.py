"""Measure which parts of a decoding step take how long: layers, head, acceptance, commit, and Python between them.

It is for one row and a draft of a given size (`task=profile` shows it):

1. The block, the mask and the rotary positions are timed with an empty path, whose layers do nothing.
2. The time of the full path minus that of the empty path is the time of the layers. If they run one by one, torch's
   profiler divides it further, by operator.
3. The head, the acceptance and the commit are timed by themselves.
4. `host` is the rest of the step: Python between the operators, and what waits for it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from selfdraft.core.acceptance import follow, match
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.threads import single_threaded
from selfdraft.models.measuring.profiling import fastest_of, prepare

STEP_SIZES = (1, 8, 32)  # tokens of a forward, the root included
PRODUCTS, ATTENTION, SMALL, LAYERS, HOST = "products", "attention", "small", "layers", "host"
MATRIX_PRODUCTS = {"mm", "addmm", "mv", "addmv", "_grouped_mm", "_linear_pointwise", "mkldnn_linear", "linear"}
ATTENTIONS = ("attention", "softmax", "bmm")  # with attention=eager, its products are batched ones


@dataclass(frozen=True)
class StepParts:
    """The seconds of one decoding step of one row.

    Attributes:
        tokens: number of tokens of the forward, the root included.
        forward_s, step_s: seconds of the target's forward, and of the whole step with it.
        parts_s: seconds of the parts, which sum to `step_s`; `host` is the rest.
    """

    tokens: int
    forward_s: float
    step_s: float
    parts_s: dict[str, float]

    def with_drafter(self, seconds: float) -> StepParts:
        """Return the step with the seconds that a drafter takes to propose and to observe."""
        parts = {**self.parts_s, "drafter": seconds}
        parts[HOST] = parts.pop(HOST)  # stays last
        return replace(self, step_s=self.step_s + seconds, parts_s=parts)


def step_parts(tokens: int, forward_s: float, step_s: float, measured: Mapping[str, float]) -> StepParts:
    """Return a step with its measured parts; if noise makes them longer than the step, the step is set to their sum."""
    measured = {name: max(seconds, 0.0) for name, seconds in measured.items()}
    known = sum(measured.values())
    whole = max(step_s, known)
    return StepParts(tokens, forward_s, whole, {**measured, HOST: whole - known})


def measure_steps(
    target: Target, *, sizes: Sequence[int] = STEP_SIZES, context: int = 256, rounds: int = 5
) -> Iterator[StepParts]:
    """Time steps without a drafter after `context` tokens, one size at a time; the fastest of `rounds` counts.

    The draft is a chain. One node of it is committed whose keys have to be moved, as those of a branch have to be. The
    cache is overwritten.
    """
    sizes = [size for size in sizes if size < target.max_positions] or [1]
    start = prepare(target, 1, context, max(sizes))
    for size in sizes:
        yield _measure(target, size, start, rounds)


@torch.inference_mode()
def _measure(target: Target, size: int, start: int, rounds: int) -> StepParts:
    tokens = torch.randint(target.vocab_size, (size,), generator=torch.Generator().manual_seed(size)).tolist()
    root, tree = tokens[0], TokenTree.chain(tokens[1:])
    nodes, full, bare = [size - 2] if size > 1 else [], target.full, _without_layers(target)

    def block() -> Block:
        return Block.of_trees([0], [start], [root], [tree], target.cache, target.row_block, target.key_block)

    def accept(logits: Tensor) -> object:
        with single_threaded(target.compiled):  # as in decoding
            after = logits.max(-1).indices.cpu()
        return follow(tree, match(tree, after), after)

    def commit() -> None:
        target.commit(0, nodes)
        target.cache.rewind(0, start)

    def step() -> None:
        accept(target.forward([0], [root], [tree])[0])
        commit()

    made = block()
    hidden = full.run(target, made)
    logits = target.logits(full, hidden, [tree])[0]
    jobs: dict[str, Callable[[], object]] = {
        "step": step,
        "forward": lambda: target.forward([0], [root], [tree]),
        "block": block,
        "bare": lambda: bare.drive(target, made, normed=False),
        "run": lambda: full.run(target, made),
        "head": lambda: target.logits(full, hidden, [tree]),
        "accept": lambda: accept(logits),
        "commit": commit,
    }
    seconds = fastest_of(target, {name: _waiting(job, target.device) for name, job in jobs.items()}, rounds)
    layers = max(seconds["run"] - seconds["bare"], 0.0)
    if target.compiled:
        measured = {LAYERS: layers}
    else:
        inside, outside = (by_kind(jobs[name], target.device, rounds) for name in ("run", "bare"))
        measured = within(layers, {kind: inside[kind] - outside[kind] for kind in (PRODUCTS, ATTENTION, SMALL)})
    measured |= {"head": seconds["head"], "masks": seconds["block"] + seconds["bare"]}
    measured |= {"accept": seconds["accept"], "commit": seconds["commit"]}
    return step_parts(size, seconds["forward"], seconds["step"], measured)


def within(whole: float, parts: Mapping[str, float]) -> dict[str, float]:
    """Return parts that are not negative and not longer than the whole: operators take longer while profiled."""
    parts = {name: max(seconds, 0.0) for name, seconds in parts.items()}
    known = sum(parts.values())
    return {name: seconds * min(1.0, whole / known) if known else 0.0 for name, seconds in parts.items()}


def by_kind(job: Callable[[], object], device: torch.device, rounds: int) -> Counter[str]:
    """Return the seconds of a job's operators by kind: matrix products, attention, and all others.

    The fastest of `rounds` runs counts, for each kind. On a GPU these are the seconds of the operators' kernels.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler's library writes to stderr at every start
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    fastest: Counter[str] = Counter()
    for turn in range(rounds):
        with profile(activities=activities, record_shapes=False) as profiled:
            _waiting(job, device)()
        found: Counter[str] = Counter()
        for event in profiled.key_averages():
            if event.device_type == DeviceType.CPU:  # a kernel's own event would count it twice
                found[kind_of(event.key)] += 1e-6 * (event.self_device_time_total if gpu else event.self_cpu_time_total)
        fastest = Counter({k: min(s, fastest[k]) if turn else s for k, s in found.items()})
    return fastest


def kind_of(operator: str) -> str:
    """Return the kind of an operator, such as `aten::addmm`."""
    name = operator.rpartition("::")[2]
    if name in MATRIX_PRODUCTS:
        return PRODUCTS
    return ATTENTION if any(part in name for part in ATTENTIONS) else SMALL


class _Nothing(nn.Module):
    def forward(self, hidden: Tensor, **_: object) -> Tensor:
        return hidden


def _without_layers(target: Target) -> Path:
    """Return a path whose layers do nothing: its time is that of everything before the first layer."""
    kinds = tuple(dict.fromkeys(target.full.types))
    return Path(tuple(_Nothing() for _ in kinds), kinds, SkipSet())


def _waiting(job: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the job, ended when the device is done with it."""
    if device.type != "cuda":
        return job

    def waiting() -> None:
        job()
        torch.cuda.synchronize(device)

    return waiting
