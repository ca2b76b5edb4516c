"""Record texts once, and predict on them how fast drafters would be: only the best then have to decode.

Which drafters are predicted, and how well, was tested against real decoding: see experiments/advise/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.predictions import best_tokens
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.replayed import Rates, Recorder, Recording, Replayer
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.lookahead import LookaheadConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from selfdraft.drafters.recycling import RecyclingConfig
from selfdraft.drafters.specs import Spec
from selfdraft.drafters.suffix import SuffixConfig
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.modules.first_turns import Asked
from selfdraft.modules.path_forecast import PathForecaster, is_traceable

BEST = 8  # best tokens kept at each position of a recorded text; as many as any drafter wants by default
SIZES = (1, 8, 32, 64)  # positions at which finding the best tokens is timed


@dataclass(frozen=True)
class Forecast:
    """What is predicted of a drafter.

    Attributes:
        name: the drafter in one line; of a path, with the size, draft length and threshold that are best.
        speedup: over plain decoding. tokens_per_forward: emitted tokens by forwards of the target.
        exact: whether its drafts are those of real decoding: nothing that it reads had to be guessed.
    """

    name: str
    speedup: float
    tokens_per_forward: float
    exact: bool = False


def is_replayable(spec: Spec) -> bool:
    """Return whether a drafter can be replayed: it runs no part of the model, and all that it reads can be guessed."""
    config = spec.config
    if isinstance(config, JacobiConfig):
        return not config.literal
    if isinstance(config, PoolConfig):
        return config.path.name == "full"
    return isinstance(config, PromptLookupConfig | SuffixConfig | RecyclingConfig | LookaheadConfig)


def is_exact(spec: Spec) -> bool:
    """Return whether a replayable drafter reads only the text, of which all is known."""
    config = spec.config
    if isinstance(config, PoolConfig):
        return config.sources == ["suffix"]
    return isinstance(config, PromptLookupConfig | SuffixConfig)


class Forecaster:
    """Records the answers of plain decoding, and predicts drafters on them.

    Attributes:
        recordings: the answers. answers: the same with their times.
        step_s: seconds of a step of plain decoding, as recorded.
    """

    def __init__(
        self,
        plain: Decoder,
        asked: Sequence[Asked],
        *,
        best: int = BEST,
        tell: Callable[[int], object] = lambda done: None,
    ) -> None:
        """Decode the prompts with `plain`, which must be greedy; `tell` is called with the number of finished ones."""
        self.plain, self.recordings, self.answers = plain, list[Recording](), list[Generation]()
        recorder = Recorder(plain.drafter, best)
        decoder = Decoder(plain.target, recorder, plain.stopping, rule=plain.rule, memory=None)
        for number, prompt in enumerate(asked, start=1):
            answer = decoder.decode(prompt.ids, key=prompt.id)
            room = plain.stopping.within(plain.target.max_positions - len(prompt.ids)).max_new_tokens - 1
            self.recordings.append(recorder.recorded(answer, room))
            self.answers.append(answer)
            tell(number)
        steps = sum(len(answer.step_s) for answer in self.answers)
        self.step_s = sum(answer.decode_s for answer in self.answers) / max(steps, 1)
        self.costs = plain.drafter.costs
        rest_s = sum(a.clock.seconds[phase] for a in self.answers for phase in ("commit", "other")) / max(steps, 1)
        full = self.costs.full()
        self.with_rest = CostCurve.measured(full.sizes, [seconds + rest_s for seconds in full.seconds])
        self._paths: PathForecaster | None = None

    def of(self, name: str, spec: Spec) -> Forecast | None:
        """Return what is predicted of a drafter; None if it must be tried. The target's cache may be overwritten.

        Raises:
            UserError: the drafter does not fit the model.
        """
        if is_traceable(spec):
            self._paths = self._paths or PathForecaster(self.plain.target, self.recordings, self.costs, self.plain.rule)
            path = self._paths.best(name, spec)
            return Forecast(path.name, path.speedup, path.tokens_per_forward)
        if not is_replayable(spec):
            return None
        drafter = spec.drafter(self.plain.target, self.costs)
        replayer = Replayer(self.plain.target, self.recordings)
        done = replayer.replay(drafter)
        rates = Rates(self.with_rest, best=_best_s(self.plain.target, drafter.best))
        return Forecast(name, rates.speedup(done), done.tokens_per_forward, is_exact(spec))


def _best_s(target: TargetProtocol, count: int) -> CostCurve | None:
    """Return the seconds of finding the `count` best tokens at so many positions; None if none are wanted."""
    if not count:
        return None
    seconds = []
    for size in SIZES:
        logits, fastest = torch.randn(size, target.vocab_size, device=target.device), float("inf")
        for _ in range(4):
            begun = time.perf_counter()
            best_tokens(logits, count).cpu()  # waits for the device
            fastest = min(fastest, time.perf_counter() - begun)
        seconds.append(fastest)
    return CostCurve.measured(SIZES, seconds)
