"""When a request ends: at the first end of sequence, or at its length."""

from __future__ import annotations

import numpy as np
import pytest

from selfdraft.decoding.stopping import POSITIONS, Stopping

EOS = frozenset({8, 9})


@pytest.mark.parametrize(
    ("emitted", "tokens", "kept", "why"),
    [
        (0, [1, 2], [1, 2], ""),
        (0, [1, 8], [1, 8], "eos"),  # the end is emitted
        (0, [1, 9, 2, 8], [1, 9], "eos"),  # and nothing after it
        (0, [8], [8], "eos"),
        (3, [1, 2], [1, 2], "length"),  # that makes five
        (3, [1, 2, 3], [1, 2], "length"),
        (3, [1, 8, 3], [1, 8], "eos"),
        (3, [1, 2, 8], [1, 2], "length"),  # the end would have come too late
        (4, [1], [1], "length"),
    ],
)
def test_emitted_tokens_and_reason_to_stop(emitted: int, tokens: list[int], kept: list[int], why: str) -> None:
    assert Stopping(EOS, 5).cut([0] * emitted, tokens) == (kept, why)


def test_stopping_step_by_step_equals_stopping_the_whole_text() -> None:
    """However a drafter's luck groups the tokens, the answer is the same."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        text = rng.integers(1, 30, size=20).tolist()
        stopping = Stopping(EOS, int(rng.integers(1, 20)))
        whole, _ = stopping.cut([], text)
        output, done, rest = [], "", text
        while not done:
            run = int(rng.integers(1, 5))
            kept, done = stopping.cut(output, rest[:run])
            output, rest = output + kept, rest[run:]
        assert output == whole
        ends = [i + 1 for i, token in enumerate(text) if token in EOS]
        assert len(whole) == min([stopping.max_new_tokens, *ends])


def test_positions_shorten_an_answer_but_never_lengthen_it() -> None:
    stopping = Stopping(EOS, 10)
    assert stopping.within(4).cut([1, 2, 3], [4]) == ([4], POSITIONS)
    assert stopping.within(4).cut([1, 2, 3], [8]) == ([8], "eos")
    assert stopping.within(40) == stopping.within(10) == stopping


def test_an_answer_may_continue_past_the_positions_if_asked() -> None:
    stopping = Stopping(EOS, 10, past_positions=True)
    assert stopping.within(4) == stopping.within(-4) == stopping
