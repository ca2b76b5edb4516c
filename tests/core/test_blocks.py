"""How Jacobi blocks are initialised, and the other candidates."""

from __future__ import annotations

import numpy as np

from selfdraft.core.blocks import INITS, BlockInit

PROMPT = [1, 2, 3, 4, 2, 3, 5, 3, 6, 1, 2, 3]  # 1 2 3 was followed by 4, 2 3 and 3 lately by other tokens


def init(kind: str, seed: int = 0) -> BlockInit:
    return BlockInit(kind, PROMPT, pad_id=0, rng=np.random.default_rng(seed))


def test_a_block_always_has_its_full_width() -> None:
    for kind in INITS:
        for carried in ([], [7], [7, 8, 9, 7, 8, 9]):
            block = init(kind).filled(PROMPT, carried, 4)
            assert len(block) == 4 and block[: len(carried)] == carried[:4]


def test_other_candidates_of_an_ngram_block_come_from_shorter_ngrams() -> None:
    begun = init("ngram")
    first = begun.filled(PROMPT, [], 2)
    assert first == [4, 2]  # after 1 2 3
    others = begun.others(PROMPT, first, 4)
    assert others[:2] == [[5, 3], [6, 1]]  # the latest after 2 3, and after 3
    assert len(others) == 4 and {*others[2], *others[3]} <= set(PROMPT)  # more there is not: random tokens
    assert begun.others(PROMPT, [7, 7], 1) == [[4, 2]]  # with carried guesses, the longest match is a candidate


def test_other_candidates_of_other_blocks_are_random_prompt_tokens_by_seed() -> None:
    def others(seed: int) -> list[list[int]]:
        return init("pad", seed).others(PROMPT, [0] * 8, 3)

    assert others(1) == others(1) != others(2)
    assert [len(block) for block in others(1)] == [8] * 3
    assert init("pad").others(PROMPT, [0] * 8, 0) == []


def test_beginnings_are_distinct_continuations_and_then_the_carried_guesses_never_filled_up() -> None:
    begun = init("ngram")
    assert begun.beginnings(PROMPT, [8, 9], 1, 3, 2) == {
        ("ngram", 3, 0): [4, 2, 3],  # after 1 2 3
        ("ngram", 2, 1): [5, 3, 6],  # after 2 3
        ("carried", 1, 0): [8, 9],
    }
    assert begun.beginnings([*PROMPT, 77], [8, 9], 2, 1, 2) == {("carried", 2, 0): [8]}
    assert begun.beginnings([*PROMPT, 77], [], 0, 3, 2) == {}
    assert begun.beginnings([*PROMPT, 77], [8], 1, 0, 2) == {}


def test_with_another_init_beginnings_are_whole_blocks() -> None:
    found = init("pad").beginnings(PROMPT, [8], 1, 3, 2)
    assert list(found) == [("filled", 1, 0), ("other", 0, 0)]
    assert found["filled", 1, 0] == [8, 0, 0] and set(found["other", 0, 0]) <= set(PROMPT)
