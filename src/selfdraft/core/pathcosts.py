"""The cost of drafting with a part of the model, and how many drafted tokens must be accepted to pay for it.

Costs are in seconds. "Plain" is a full forward of one token, as plain decoding runs it for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfdraft.core.costs import CostCurve


@dataclass(frozen=True)
class DraftCosts:
    """One step that drafts a chain of `drafted` tokens, a forward each, and verifies it.

    Attributes:
        drafted: number of drafted tokens.
        verify: seconds of a full forward of the root and the drafted tokens.
        reuse: the same, continued from what drafting computed in the leading layers; None if there are none.
        reuse_without_bonus: the same without the last drafted token, which then can only be compared.
    """

    drafted: int
    verify: float
    reuse: float | None = None
    reuse_without_bonus: float | None = None


@dataclass(frozen=True)
class PathCosts:
    """The costs of drafting with one path.

    Attributes:
        plain: seconds of a full forward of one token.
        draft: seconds of a drafting forward of one token, timed after a plain one.
        forward: the cost of a forward through the path, by its number of tokens.
        steps: by number of drafted tokens.
    """

    plain: float
    draft: float
    forward: CostCurve
    steps: Sequence[DraftCosts]

    def break_even(self, step: DraftCosts) -> float:
        """Return how many of a step's drafted tokens must be accepted on average, so that drafting pays.

        For a single drafted token this is the acceptance rate that it needs. The verification reuses the draft's work
        if it can.
        """
        verify = step.verify if step.reuse is None else step.reuse
        return (step.drafted * self.draft + verify) / self.plain - 1

    def to_dict(self) -> Mapping[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)
