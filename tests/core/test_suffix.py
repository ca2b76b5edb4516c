"""The suffix automaton against its definition: substrings counted one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from naming import naming
from selfdraft.core.suffix import EMPTY, SuffixAutomaton, SuffixText


def grown(texts: Sequence[Sequence[int]], order: Sequence[int] | None = None) -> tuple[SuffixAutomaton, list[int]]:
    """An automaton over the texts, one after the other or, with `order`, token by token in turns; and their states."""
    automaton, states, at = SuffixAutomaton(), [EMPTY] * len(texts), [0] * len(texts)
    for which in order or [i for i, text in enumerate(texts) for _ in text]:
        states[which] = automaton.append(states[which], texts[which][at[which]])
        at[which] += 1
    return automaton, states


def occurrences(texts: Sequence[Sequence[int]]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(t[i:j]) for t in texts for i in range(len(t)) for j in range(i + 1, len(t) + 1))


def state_of(automaton: SuffixAutomaton, substring: Sequence[int]) -> int | None:
    state: int | None = EMPTY
    for token in substring:
        state = automaton.continuations(state).get(token) if state is not None else None
    return state


def test_every_substring_is_counted_however_the_texts_grow() -> None:
    for seed in range(40):
        with naming(f"seed {seed}"):
            rng = random.Random(seed)
            texts = [[rng.randrange(1 + seed % 3) for _ in range(rng.randrange(1, 14))] for _ in range(1 + seed % 4)]
            order = [i for i, text in enumerate(texts) for _ in text]
            if seed % 2:
                rng.shuffle(order)
            automaton, states = grown(texts, order)
            counts = occurrences(texts)
            for substring, count in counts.items():
                state = state_of(automaton, substring)
                assert state is not None and automaton.count[state] == count
                following = {token: automaton.count[to] for token, to in automaton.continuations(state).items()}
                assert following == {
                    token: counts[(*substring, token)] for token in range(3) if counts[(*substring, token)]
                }
            assert state_of(automaton, [0, 9]) is None
            for text, state in zip(texts, states, strict=True):
                longest = max((n for n in range(1, len(text) + 1) if counts[tuple(text[-n:])] > 1), default=0)
                match = automaton.match(state)
                assert automaton.length[match] == longest
                assert match == (state_of(automaton, text[-longest:]) if longest else EMPTY)


def test_the_automaton_has_linear_size() -> None:
    rng = random.Random(0)
    automaton, _ = grown([[rng.randrange(3) for _ in range(3000)]])
    assert len(automaton) < 2 * 3000


def test_advance_keeps_the_longest_matching_suffix() -> None:
    rng = random.Random(1)
    text = [rng.randrange(4) for _ in range(60)]
    automaton, _ = grown([text])
    known = occurrences([text])
    state, length = EMPTY, 0
    other = [rng.randrange(5) for _ in range(200)]  # 4 is a new token
    for end, token in enumerate(other, start=1):
        state, length = automaton.advance(state, length, token)
        assert length == max((n for n in range(1, end + 1) if tuple(other[end - n : end]) in known), default=0)
        assert state == (state_of(automaton, other[end - length : end]) if length else EMPTY)


def test_suffixes_grow_shorter_and_more_frequent() -> None:
    automaton, (state,) = grown([[1, 2, 3, 9, 2, 3, 8, 3, 7, 1, 2, 3]])
    found = [(automaton.length[s], automaton.count[s]) for s in automaton.suffixes(automaton.match(state))]
    assert found == [(3, 2), (2, 3), (1, 4)]
    assert len(list(automaton.suffixes(automaton.match(state), least=2))) == 2
    assert list(automaton.suffixes(EMPTY)) == []


def test_probabilities_equal_those_computed_by_hand() -> None:
    automaton, (state,) = grown([[1, 2, 7, 1, 2, 8, 1, 2, 8, 5, 2, 9, 1, 2]])
    match = automaton.match(state)
    # 1 2 was followed by 8 twice and by 7 once: e = 2 √2 / 2. A single 2 also by 9, once: of d = 1 way, e = 2 √1 / 1.
    share = 1 / (3 + 2**0.5)
    assert automaton.chances(match, 2, 4) == [
        (8, pytest.approx(2 * share)),
        (7, pytest.approx(share)),
        (9, pytest.approx(2**0.5 * share / 3)),
    ]
    assert [token for token, _ in automaton.chances(match, 2, 1)] == [8]
    assert automaton.chances(EMPTY, 0, 4) == []


def test_equally_frequent_continuations_are_ordered_latest_first() -> None:
    automaton, (state,) = grown([[1, 2, 1, 3, 1]])
    assert [token for token, _ in automaton.chances(automaton.match(state), 1, 4)] == [3, 2]


def test_a_longer_match_has_a_higher_probability() -> None:
    chances = []
    for shared in (1, 2, 5, 20):
        same = list(range(10, 10 + shared))
        automaton, (state,) = grown([[*same, 1, *same]])
        match = automaton.match(state)
        ((token, chance),) = automaton.chances(match, automaton.length[match], 4)
        assert token == 1
        chances.append(chance)
    assert chances == sorted(chances) and chances[0] < 0.4 < 0.9 < chances[-1] < 1
    # What was matched counts, not how long the substrings of the state are: those before a text that occurred once.
    assert automaton.chances(match, 1, 4)[0][1] == pytest.approx(chances[0])


def test_a_text_adds_only_its_new_tokens() -> None:
    shared = SuffixAutomaton()
    first, second = SuffixText(shared), SuffixText(shared)
    first.read_on([1, 2, 3])
    second.read_on([7, 2])
    first.read_on([1, 2, 3])
    second.read_on([7, 2, 3])
    state, length = second.match()
    assert length == 2 and shared.count[state] == 2
    assert first.match()[1] == 2
    assert SuffixText(SuffixAutomaton()).match() == (EMPTY, 0)
