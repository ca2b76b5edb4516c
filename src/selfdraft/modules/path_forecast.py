"""Predict how fast chains of a sparse path would be: in which sizes, with what draft length, at what confidence.

One forward of a path along a text that the full model wrote says where it would have drafted the right token
(`decoding/traces.py`). A walk along that predicts decoding with any draft length and threshold (`core/replay.py`).
Nothing is compiled for it: where the drafter would compile the path's layers, its cost is estimated by the share of the
layers' weights that it reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.errors import UserError
from selfdraft.core.replay import CONFIDENCES, DRAFT_LENGTHS, Trace, best_choice, walk
from selfdraft.core.sampling import NextToken
from selfdraft.core.skipset import SkipSet
from selfdraft.decoding.replayed import Recording
from selfdraft.decoding.traces import Tracer
from selfdraft.drafters.base import Context
from selfdraft.drafters.chain import ChainConfig
from selfdraft.drafters.paths.early_exit import EarlyExitConfig
from selfdraft.drafters.paths.layer_skip import LayerSkipConfig
from selfdraft.drafters.paths.low_bit import LowBitConfig
from selfdraft.drafters.paths.width_skip import WidthSkipConfig
from selfdraft.drafters.presets import policy_for
from selfdraft.drafters.specs import Spec, spec_of
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.packing import unpacked
from selfdraft.models.paths.sparse import sparse_path, without

TRACED = 3  # texts along which paths are run
FEW = 2  # the same, of paths with weights of their own, which are made anew for each text or are slow
HOPELESS = 0.9  # speedup on the texts so far below which a size is not run along further ones
SPARSITIES = (0.1, 0.25, 0.5)
EXITS = (0.5, 0.8)  # shares of the layers after which an early exit leaves
RATIOS = (0.75, 0.5)
PathConfigs = LayerSkipConfig | EarlyExitConfig | WidthSkipConfig | LowBitConfig


@dataclass(frozen=True)
class PathForecast:
    """The best way to draft with a path.

    Attributes:
        name: the drafter in one line, with the size, draft length and threshold that are best.
        speedup: predicted, over plain decoding.
        tokens_per_forward: emitted tokens by forwards of the target.
    """

    name: str
    speedup: float
    tokens_per_forward: float


def is_traceable(spec: Spec) -> bool:
    """Return whether a drafter is a plain chain on a path that stays the same within a request."""
    config, plain = spec.config, ChainConfig()
    if not isinstance(config, ChainConfig) or spec.guarded or not isinstance(config.path, PathConfigs):
        return False
    return all(getattr(config, name) == getattr(plain, name) for name in ("length", "siblings", "draft_vocabulary"))


def sizes_of(name: str, spec: Spec, layers: int) -> list[str]:
    """Return the drafter in one line with each size of its path that is considered: its own, if it names one."""
    path, named = spec.config.path, _named(name)  # type: ignore[attr-defined]  # `is_traceable`
    sizes: list[str] = []
    if isinstance(path, LayerSkipConfig) and not named & {"sparsity", "skip_attention", "skip_mlp"}:
        sizes = [f"sparsity={sparsity}" for sparsity in SPARSITIES]
    elif isinstance(path, EarlyExitConfig) and "exit_layer" not in named:
        exits = sorted({min(max(round(share * layers), 1), layers - 1) for share in EXITS})
        sizes = [f"exit_layer={exit_layer}" for exit_layer in exits if exit_layer > 0]
    elif isinstance(path, WidthSkipConfig) and "ratio" not in named:
        sizes = [f"ratio={ratio}" for ratio in RATIOS]
    return [f"{name} {size}" for size in sizes] or [name]


class _Path:
    """A drafter's path for each text, not compiled for it unless it is worth nothing otherwise.

    Attributes:
        policy: makes the path; None where the path is a skip set.
        last: the path of the last text. making_s: seconds that making the paths of all texts took.
    """

    def __init__(self, target: TargetProtocol, config: ChainConfig, costs: Costs) -> None:
        """Make what all texts share.

        Raises:
            UserError: the path does not fit the model.
        """
        self.config, self.making_s, layers = config, 0.0, len(target.full.layers)
        path, self.policy = config.path, None
        if isinstance(path, LayerSkipConfig):
            skip = SkipSet.named_or_spread(layers, path.skip_attention, path.skip_mlp, path.sparsity)
            self.last = sparse_path(target, skip)
        elif isinstance(path, EarlyExitConfig) and 0 < (path.exit_layer or layers // 2) < layers:
            self.last = sparse_path(target, SkipSet.from_layer(layers, path.exit_layer or layers // 2))
        else:
            self.policy = policy_for(target, config, costs)
            self.last = self.policy.typical

    def along(self, recording: Recording) -> Path:
        """Return the path for a text; that of the text before is given up, as it may have weights of its own."""
        if self.policy is not None:
            prompt, begun = list(recording.prompt), time.perf_counter()
            context = Context(0, prompt, len(prompt), recording.room, np.random.default_rng(0))
            self.policy.start(context)
            self.last = self.policy.path(context)
            self.making_s += time.perf_counter() - begun
        return self.last


class PathForecaster:
    """Predicts chains on the first `TRACED` recorded texts."""

    def __init__(
        self,
        target: TargetProtocol,
        recordings: Sequence[Recording],
        costs: Costs,
        rule: NextToken,
    ) -> None:
        """Take the texts.

        Args:
            costs: of forwards of `target`; those of paths are asked for as well.
            rule: the greedy rule by which the texts were decoded.
        """
        self.target, self.costs, self.rule = target, costs, rule
        self.recordings = [recording for recording in recordings if len(recording.output) > 1][:TRACED]
        self.confidence_s = _confidence_s(target)

    def best(self, name: str, spec: Spec) -> PathForecast:
        """Return the fastest of a drafter's sizes, draft lengths and thresholds; those that `name` gives are kept.

        The target's cache is overwritten.

        Raises:
            UserError: the path does not fit the model, or there is no text to run it along.
        """
        if not self.recordings:
            raise UserError("no text is long enough to run a path along it")
        if isinstance(spec.config.path, LowBitConfig) and not self.target.compiled:  # type: ignore[attr-defined]
            raise UserError("drafts with fewer bits pay only where layers are compiled (model.engine=compiled)")
        graphs = set(self.target.compiled)
        try:
            return self._best(name, spec)
        finally:  # a drafter that is confirmed makes its own
            for made in set(self.target.compiled) - graphs:
                del self.target.compiled[made]

    def _best(self, name: str, spec: Spec) -> PathForecast:
        layers = len(layered(self.target).anatomy.layers)
        sizes = {size: _Path(self.target, _chain(size), self.costs) for size in sizes_of(name, spec, layers)}
        traces: dict[str, list[Trace]] = {size: [] for size in sizes}
        found: dict[str, PathForecast] = {}
        for recording in self.recordings[: FEW if any(path.policy for path in sizes.values()) else TRACED]:
            tracer = Tracer(self.target, [(recording.prompt, recording.output)], self.rule)
            with unpacked():  # beside graphs there are no packed copies, and these few forwards do not pay for them
                for size, path in sizes.items():
                    traces[size] += tracer.traces_of([path.along(recording)])
            found |= {size: self._forecast(size, path, traces[size]) for size, path in sizes.items()}
            sizes = {size: path for size, path in sizes.items() if found[size].speedup >= HOPELESS}
            if not sizes:
                break
        return max(found.values(), key=lambda forecast: forecast.speedup)

    def _forecast(self, name: str, path: _Path, traces: list[Trace]) -> PathForecast:
        """Return the best draft length and threshold for a path; the target's cache may be overwritten."""
        config, named = path.config, _named(name)
        full, draft_s = self.costs.full(), self._draft_s(path)
        reuses = config.reuse and path.last.leading
        verify = self._after(path.last) if reuses else full
        lengths = [config.draft_length] if "draft_length" in named else DRAFT_LENGTHS
        confidences = [config.min_confidence] if "min_confidence" in named else CONFIDENCES
        choice = best_choice(traces, verify, draft_s, self.confidence_s, lengths, confidences)
        walked = walk(traces, choice.draft_length, choice.min_confidence)
        seconds = walked.tokens * verify(1) / choice.speedup + path.making_s
        name += "" if "draft_length" in named else f" draft_length={choice.draft_length}"
        if "min_confidence" not in named and choice.min_confidence:
            name += f" min_confidence={choice.min_confidence}"
        return PathForecast(name, walked.tokens * full(1) / seconds, walked.tokens / sum(walked.verified))

    def _draft_s(self, path: _Path) -> float:
        """Return the seconds of a drafting forward of one token."""
        return self._part(self._share(path.last.skip), 1) if path.policy is None else self.costs.of(path.last)(1)

    def _after(self, path: Path) -> CostCurve:
        """Return the cost of a verification that goes on after the path's leading layers.

        The last drafted token has not been through these yet, so they run on one token more.
        """
        leading = path.leading / len(self.target.full.layers)
        sizes, one = self.costs.full().sizes, self._part(leading, 1) - self._part(0, 1)
        return CostCurve.measured(sizes, [one + self._part(1 - leading, size) for size in sizes])

    def _part(self, share: float, size: float) -> float:
        """Return the seconds of a forward through a share of the layers, by the weights that it and the head have."""
        rest = _weights([layered(self.target).anatomy.head])
        layers = _weights(layered(self.target).anatomy.layers)
        return self.costs.full()(size) * (rest + share * layers) / (rest + layers)

    def _share(self, skip: SkipSet) -> float:
        """Return the share of the layers' weights outside a skip set."""
        anatomy = layered(self.target).anatomy
        return _weights(without(anatomy.layers, anatomy, skip)) / _weights(anatomy.layers)


def _weights(modules: Iterable[nn.Module]) -> int:
    """Return the number of weights of several modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


def _chain(name: str) -> ChainConfig:
    """Return the options of a drafter in one line that `is_traceable`."""
    config = spec_of(name).config
    assert isinstance(config, ChainConfig)
    return config


def _named(name: str) -> set[str]:
    """Return the options that a drafter in one line gives."""
    return {word.partition("=")[0] for word in name.split()}


def _confidence_s(target: TargetProtocol) -> float:
    """Return the seconds of computing a drafted token's probability, besides finding the token."""
    logits, fastest = torch.randn(1, target.vocab_size, device=target.device), float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        float(logits.softmax(-1).max())
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest
