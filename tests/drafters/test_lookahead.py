"""Lookahead: what its pool learns from the window, what it guesses, and what stays for later requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made import made
from selfdraft.core.errors import UserError
from selfdraft.core.lookahead import NgramPool
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Context
from selfdraft.drafters.lookahead import Lookahead, LookaheadConfig
from stub_target import StubTarget, cycle, script, successor


def start(config: LookaheadConfig, prompt: list[int], room: int = 100) -> tuple[Lookahead, Context]:
    target = StubTarget(successor)
    target.allocate(1, 1000)
    drafter, context = made(target, config), Context(0, prompt, len(prompt), room, np.random.default_rng(0))
    drafter.start(context)
    return drafter, context


def decode(target: StubTarget, drafter: Lookahead, prompt: list[int], length: int):
    return Decoder(target, drafter, Stopping(frozenset(), length)).decode(prompt)


@pytest.mark.parametrize(("window", "ngram"), [(1, 2), (5, 2), (1, 4), (4, 3), (7, 5)])
def test_every_ngram_of_the_window_is_the_target_s_own_text(
    window: int, ngram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text depends only on positions: an n-gram that is not in it was predicted at a wrong position."""
    text = np.random.default_rng(1).permutation(np.arange(2, 200)).tolist()
    target = StubTarget(script(text), vocab_size=256)
    config = LookaheadConfig(window=window, ngram=ngram, guesses=1000, seed_from_prompt=False)
    drafter = made(target, config)
    found: list[list[int]] = []
    # Instead of keeping them, so that nothing is ever accepted.
    monkeypatch.setattr(NgramPool, "add", lambda _, each: found.append(each))
    assert decode(target, drafter, text[:1], 60).output == text[1:61]
    parts = {tuple(text[i : i + ngram]) for i in range(len(text))}
    # Row 0 began as the prompt's only token, and leaves with the first full window, all but its column 0.
    strange = [each for each in found if tuple(each) not in parts]
    assert len(strange) == window - 1 and all(each[0] == text[0] for each in strange)
    assert len(found) > 30 * window


BACKWARDS = list(range(12, 0, -1))  # a prompt that holds every token of the cycle, and none of its n-grams
WIDE = LookaheadConfig(window=80, ngram=4, seed_from_prompt=False)  # wide enough for row 0 to begin with them all


def test_a_found_ngram_is_accepted_whole_plus_the_bonus() -> None:
    target = StubTarget(cycle(12))
    generation = decode(target, made(target, WIDE), BACKWARDS, 60)
    assert generation.output == [(1 + i) % 12 + 1 for i in range(60)]
    # Two steps fill the window, one completes an n-gram for each token; from then on four tokens a step.
    assert [len(path) + 1 for _, _, path, *_ in generation.steps] == [1] * 3 + [4] * 14 + [1]


def test_candidates_come_before_the_window_latest_first_with_shared_prefixes() -> None:
    drafter, context = start(LookaheadConfig(window=3, ngram=3, guesses=2), [1, 5, 6, 1, 5, 7, 1, 8, 9, 1])
    tree = drafter.propose(context).tree
    assert tree.tokens[:4].tolist() == [8, 9, 5, 7]  # the oldest, 5 6, had to leave
    assert tree.is_candidate.tolist() == [True] * 4 + [False] * 3  # W + N - 3 columns in row 0
    drafter.config.guesses = 5
    drafter.start(context)
    assert drafter.propose(context).tree.tokens[:5].tolist() == [8, 9, 5, 7, 6]


def test_candidates_are_cut_to_the_remaining_tokens() -> None:
    drafter, context = start(LookaheadConfig(window=3, ngram=4), [1, 5, 6, 7, 1], room=2)
    tree = drafter.propose(context).tree
    assert tree.tokens[tree.is_candidate].tolist() == [5, 6]
    assert int(tree.depths.max()) == 2


def test_ngrams_of_the_prompt_are_used_only_if_asked_for() -> None:
    drafter, context = start(LookaheadConfig(seed_from_prompt=False), [1, 2, 3, 4, 5, 6, 1])
    assert not bool(drafter.propose(context).tree.is_candidate.any())


@pytest.mark.parametrize("warm", [False, True])
def test_a_warm_pool_serves_the_next_request(warm: bool) -> None:
    target = StubTarget(cycle(12))
    decoder = Decoder(target, made(target, replace(WIDE, warm=warm)), Stopping(frozenset(), 40))
    done = [g for _, g in decoder.run([Request(BACKWARDS), Request(BACKWARDS)]) if g.ended]
    assert [len(g.steps) for g in done] == ([13, 10] if warm else [13, 13])


def test_if_only_chains_are_allowed_the_latest_candidate_is_drafted() -> None:
    target = StubTarget(cycle(4))
    target.chains_only = True
    generation = decode(target, made(target, LookaheadConfig()), [1, 2, 3, 4, 1, 2, 3, 4, 1], 12)
    assert generation.output == [2, 3, 4, 1] * 3
    assert len(generation.steps) == 3
    assert all(parents is None for _, parents, *_ in generation.steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"^drafter\.window=0: must be at least 1$"),
        ({"ngram": 1}, r"^drafter\.ngram=1: must be at least 2$"),
        ({"guesses": 0}, r"^drafter\.guesses=0: must be at least 1$"),
    ],
)
def test_invalid_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LookaheadConfig(**options)
