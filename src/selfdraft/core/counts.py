"""Counts of one decoding. They are summed over prompts and processes first, and only then divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Tokens and forwards of a decoding, and acceptance by depth.

    Attributes:
        new_tokens: emitted tokens, including the end-of-sequence token and nothing after it.
        target_forwards: full target forwards after prefill, including those without a draft and those that a drafter
            asked for.
        offered: ``offered[d - 1]`` steps had a candidate at depth d.
        accepted: in ``accepted[d - 1]`` steps the emitted drafted tokens reached depth d.
    """

    new_tokens: int = 0
    target_forwards: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def record_draft(self, offered: Sequence[bool], accepted: int) -> None:
        """Add one step: which depths were offered, and how many drafted tokens were emitted."""
        missing = len(offered) - len(self.offered)
        if missing > 0:
            self.offered += [0] * missing
            self.accepted += [0] * missing
        for depth, present in enumerate(offered):
            self.offered[depth] += int(present)
            self.accepted[depth] += int(depth < accepted)

    def add(self, other: Counts) -> None:
        """Add the counts of another decoding."""
        self.new_tokens += other.new_tokens
        self.target_forwards += other.target_forwards
        depths = range(max(len(self.offered), len(other.offered)))
        for name in ("offered", "accepted"):
            mine, more = getattr(self, name), getattr(other, name)
            setattr(self, name, [sum(part[d] for part in (mine, more) if d < len(part)) for d in depths])

    def acceptance_by_depth(self) -> list[dict[str, int]]:
        """Return ``[{offered, accepted}, …]``, from depth 1."""
        return [{"offered": o, "accepted": a} for o, a in zip(self.offered, self.accepted, strict=True)]
