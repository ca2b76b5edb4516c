"""The n-gram index gives the results of a search through the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from naming import naming
from selfdraft.core.ngrams import NgramIndex, random_prompt_tokens


def search(text: Sequence[int], smallest: int, largest: int, length: int) -> list[int]:
    """Longest n-gram first; of its earlier occurrences the latest."""
    for n in range(largest, smallest - 1, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if list(text[start : start + n]) == list(text[len(text) - n :]):
                return list(text[start + n : start + n + length])
    return []


def test_lookup_equals_a_naive_search() -> None:
    for alphabet, (smallest, largest) in product([1, 2, 5, 20], [(1, 1), (1, 3), (2, 3), (2, 5), (3, 3)]):
        with naming(alphabet, smallest, largest):
            for seed in range(12):
                rng = np.random.default_rng(seed)
                index, text = NgramIndex(smallest, largest), []
                assert index.continuation(4) == []
                for _ in range(25):
                    new = rng.integers(alphabet, size=rng.integers(1, 5)).tolist()  # committed in runs, as a step does
                    index.extend(new)
                    text += new
                    length = int(rng.integers(0, 6))
                    assert index.continuation(length) == search(text, smallest, largest, length)
                    assert len(index) == len(text)


def test_the_longest_match_wins_then_the_latest() -> None:
    index = NgramIndex(1, 2)
    index.extend([7, 1, 5, 8, 1, 6, 1])
    assert index.continuation(2) == [6, 1]  # (6, 1) is new; of the two earlier 1s the latest is followed by 6
    index.extend([9, 7, 1])
    assert index.continuation(2) == [5, 8]  # (7, 1) is at the very beginning, which beats any later 1


def test_the_last_ngram_does_not_match_itself() -> None:
    index = NgramIndex(1, 3)
    index.extend([1, 2, 3])
    assert index.continuation(5) == []


def test_random_tokens_are_drawn_from_the_prompt_by_the_generator() -> None:
    prompt = [11, 12, 13]
    drawn = random_prompt_tokens(prompt, 200, np.random.default_rng(0))
    assert len(drawn) == 200 and set(drawn) == set(prompt)
    assert drawn == random_prompt_tokens(prompt, 200, np.random.default_rng(0))
    assert drawn != random_prompt_tokens(prompt, 200, np.random.default_rng(1))
    assert all(type(token) is int for token in drawn)
