"""Audit one answer of any engine: is it what the model writes greedily?

1. Cut the answer after its first end of sequence; padding that follows it is no fault, other tokens are.
2. One forward of the stock model in float32 (of a float32 copy, if its dtype is narrower) gives the token that the
   model would have written at each place, and whether it would have ended there. If all agree, the answer is exact.
3. Otherwise the effect of rounding is measured on this text (see `certify`). If every token that differs is within it,
   the first one is a tie. If not, the first one that is not within it is a mismatch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfdraft.core.certificate import Reason
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.stock_check import Gap

Respell = Callable[[Sequence[int], int], "list[int] | None"]
"""``respell(tokens, token)``: the answer in other tokens, which begin with these; None if its text does not."""


@dataclass(frozen=True)
class Finding:
    """The verdict on one answer.

    Attributes:
        verdict: `exact` if each token is the best one of the stock model in float32; `tie` if rounding explains each
            that is not; else `mismatch`.
        output: the tokens that were judged, without padding.
        reason: for a mismatch, one of `certificate.REASONS`; `length` if the answer ends where the model goes on, or
            goes on after an end of sequence.
        index: for a tie or a mismatch, index of the first token at fault; `len(output)` if the end is at fault.
        written: the token there; None if there is none.
        model: the token that float32 takes there; None if the model would have written nothing.
        margin: how many logits the written token (or the best end of sequence) is below that one, in float32.
        margin_in_dtype: the same by the model's own forward in its dtype, negative if that takes the written token;
            None if the dtype is float32.
        control: the largest margin that rounding explains on this text, in logits; not measured if exact.
        ties: number of tokens at fault that rounding explains, before a mismatch.
    """

    verdict: Literal["exact", "tie", "mismatch"]
    output: list[int]
    reason: Reason | None = None
    index: int | None = None
    written: int | None = None
    model: int | None = None
    margin: float | None = None
    margin_in_dtype: float | None = None
    control: float | None = None
    ties: int = 0


class Auditor:
    """Audits answers to prompts, given as token ids."""

    def __init__(self, certifier: Certifier, ends: Collection[int], padding: Collection[int] = ()) -> None:
        """Prepare to audit.

        Args:
            certifier: of the model, with a greedy rule.
            ends: the tokens that end an answer.
            padding: further tokens that may follow the end of an answer in a padded batch.
        """
        self.certifier = certifier
        self.ends = frozenset(end for end in ends if 0 <= end < certifier.target.vocab_size)
        self.padding = self.ends | frozenset(padding)

    def audit(
        self, prompt: Sequence[int], output: Sequence[int], *, limit: int | None, respell: Respell | None = None
    ) -> Finding:
        """Return the verdict on an answer.

        Args:
            prompt: at least one token.
            output: the answer, with its end of sequence or without.
            limit: number of tokens from which on an answer may end without an end of sequence; None if it never may.
            respell: for an answer that was given as text, whose tokens are a guess: where the model prefers a token
                with which the same text can be written, the guess is corrected.
        """
        answer, rest = self._cut(output)
        gaps = self._gaps(prompt, answer, limit)
        while respell is not None and (other := _respelled(answer, gaps, respell)) is not None:
            answer, rest = self._cut(other)
            gaps = self._gaps(prompt, answer, limit)
        found = self._judged(prompt, answer, gaps)
        if found.verdict == "mismatch":
            return found
        if rest:
            return self._at_end(found, rest[0])
        if not self.ends and self._must_end(answer, limit):
            return self._at_end(found, None)
        return found

    def _cut(self, output: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return an answer up to its first end of sequence, and what follows it, unless that is padding."""
        first = next((i for i, token in enumerate(output) if token in self.ends), len(output))
        rest = list(output[first + 1 :])
        return list(output[: first + 1]), [] if self.padding.issuperset(rest) else rest

    def _must_end(self, answer: Sequence[int], limit: int | None) -> bool:
        """Return whether an end of sequence must follow an answer."""
        has_ended = bool(answer) and answer[-1] in self.ends
        return not has_ended and (limit is None or len(answer) < limit)

    def _gaps(self, prompt: Sequence[int], answer: Sequence[int], limit: int | None) -> list[Gap]:
        return self.certifier.gaps(prompt, answer, self.ends if self._must_end(answer, limit) else frozenset())

    def _judged(self, prompt: Sequence[int], answer: list[int], gaps: Sequence[Gap]) -> Finding:
        """Return the verdict on the tokens that the model would not have written, which may include the end."""
        if not gaps:
            return Finding("exact", answer)
        whole = [*answer, gaps[-1].written] if gaps[-1].index == len(answer) else answer
        certificate = self.certifier.by_stock_with_ties(prompt, whole)
        wrong, reason = None, certificate.reason
        if certificate.verdict == "mismatch":
            at = certificate.first_divergence
            wrong = next((gap for gap in gaps if gap.index == at), gaps[0])
        gap = wrong or gaps[0]
        is_end = gap.index == len(answer)
        return Finding(
            verdict="tie" if wrong is None else "mismatch",
            output=answer,
            reason=None if wrong is None else "length" if is_end and reason == "stock" else reason,
            index=gap.index,
            written=None if is_end else gap.written,
            model=gap.best,
            margin=gap.margin,
            margin_in_dtype=self.certifier.margin_in_dtype(prompt, whole, gap),
            control=certificate.control,
            ties=sum(wrong is None or each.index < wrong.index for each in gaps),
        )

    @staticmethod
    def _at_end(found: Finding, written: int | None) -> Finding:
        """Return the mismatch of an answer that is right as far as it goes, and ends wrongly."""
        return replace(
            found,
            verdict="mismatch",
            reason="length",
            index=len(found.output),
            written=written,
            model=None,
            margin=None,
            margin_in_dtype=None,
        )


def _respelled(answer: Sequence[int], gaps: Sequence[Gap], respell: Respell) -> list[int] | None:
    """Return the answer's text in other tokens, of which one more is the model's; None if there are none."""
    found = (respell(answer[: gap.index], gap.best) for gap in gaps if gap.index < len(answer))
    return next((other for other in found if other is not None), None)
