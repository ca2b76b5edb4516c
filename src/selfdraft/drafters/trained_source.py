"""A trained sparse path as one more source of guesses: what it says comes next, asked where that is expected to pay.

Its leading layers are the target's own and need not be run again, so that asking costs the trained layers and a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import Growth
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context
from selfdraft.models.adapter import Adapter
from selfdraft.models.sparse import Reuse
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()
PRIOR = 0.4  # how often the path knows the next token where the other sources have no idea, before anything is learned


@dataclass(frozen=True)
class Answer:
    """What the path said.

    Attributes:
        guesses: tokens with their chances, the likeliest first. reuse: what the verification is spared.
        doubt: of the other sources when it was asked, see `TrainedSource.expected_gain`.
        rival: the other sources' best guess.
    """

    guesses: list[tuple[int, float]]
    reuse: Reuse | None
    doubt: int
    rival: int | None


class TrainedSource:
    """The path of an adapter, asked for the token behind the root.

    Attributes:
        seconds: that asking costs; 0 where costs do not count.
    """

    def __init__(self, target: Target, folder: str, count: int, costs: CostCurve | None) -> None:
        """Put the adapter in place, and measure what asking costs.

        Args:
            count: guesses wanted. costs: of full forwards; None where costs do not count.

        Raises:
            UserError: the folder holds no adapter of this model.
        """
        self.target, self.count, self.costs = target, count, costs
        self.path = target.adapted_path(Adapter.read(folder))
        self.seconds = 0.0
        if costs is not None:
            late = target.costs_of(target.full.part(self.path.leading, len(target.full.layers)))
            spared = costs(1) - late(1) if self.path.leading else 0.0
            self.seconds = max(target.costs_of(self.path)(1) - spared, 0.0)

    def expected_gain(self, learned: Estimates, best: float) -> float:
        """How many tokens more a step is expected to emit if the path is asked.

        Args:
            best: the chance of the other sources' best guess.
        """
        return learned.chance(("asked", doubt(best)), PRIOR * (1 - best))

    def pays(self, learned: Estimates, growth: Growth, size: int, rows: int = 1) -> bool:
        """Whether asking is expected to raise the tokens per second of a step.

        Args:
            growth: the tree that the other sources make, of which `size` nodes would be drafted. rows: of the step.
        """
        if self.costs is None:
            return True
        costs = self.costs.shared_by(rows)
        expected, seconds = 1 + sum(growth.probabilities[:size]), costs(1 + size)
        extra = self.seconds + costs(2 + size) - seconds
        return self.expected_gain(learned, best_guess(growth)[1]) * seconds > expected * extra

    @torch.inference_mode()
    def ask(self, context: Context, rival: int | None, best: float) -> Answer:
        """One forward of the path. Its guesses are no random draws, and are verified as they stand."""
        states: list[torch.Tensor] = []
        keep = [states] if self.path.leading else None
        root = context.tokens[-1:]
        logits = self.target.draft_forward(self.path, [context.row], 0, root, [_EMPTY], keep=keep)[0]
        scores = context.rule.scores(logits, context.tokens, context.prompt_length, _EMPTY)
        chances, tokens = scores[0].float().softmax(-1).topk(self.count)
        reuse = Reuse(self.path.leading, states[0]) if states else None
        guesses = [(token, chance) for token, chance in zip(tokens.tolist(), chances.tolist(), strict=True) if chance]
        return Answer(guesses, reuse, doubt(best), rival)

    @staticmethod
    def learn(learned: Estimates, answer: Answer, token: int) -> None:
        """Whether the path knew the token that came, and the other sources' best guess was another."""
        known = bool(answer.guesses) and answer.guesses[0][0] == token
        learned.observe(("asked", answer.doubt), known and answer.rival != token)


def best_guess(growth: Growth) -> tuple[int | None, float]:
    """A tree's likeliest token behind the root, and its chance; None and 0 where there is none."""
    return (growth.tokens[0], growth.probabilities[0]) if growth.tokens else (None, 0.0)


def doubt(best: float) -> int:
    """How unsure the other sources are, in eighths."""
    return int(8 * (1 - best))
