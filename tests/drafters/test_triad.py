"""The stub triad: every drafter never, always and sometimes accepted, with the counts known beforehand.

First for every config in LOSSLESS against a target that agrees with any draft down to a given depth, then case by case
against targets whose texts make the draft right or wrong, with all numbers worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from lossless import EVERY_CONFIG, EVERY_NAME, LOSSLESS, TRIED, complaints
from made import made
from naming import naming
from selfdraft.core.blocks import INITS
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.presets import configured
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from stub_target import ALWAYS, ObligingTarget, Rule, StubTarget, cycle, repeats, script, successor


def decode(target: StubTarget, config: DrafterConfig, prompt: Sequence[int], length: int) -> Generation:
    drafter = made(target, config)
    return Decoder(target, drafter, Stopping(frozenset(), length)).decode(prompt, seed=3)


def test_every_drafter_is_in_the_list() -> None:
    assert complaints(LOSSLESS, TRIED) == []
    assert complaints(LOSSLESS, {*TRIED, "new"}) == ["'new' has no entry in LOSSLESS"]
    assert complaints({**LOSSLESS, "new": []}, {*TRIED, "new"}) == ["'new' has no entry in LOSSLESS"]
    assert len(complaints({**LOSSLESS, "gone": [DrafterConfig()]}, TRIED)) == 1
    assert len(complaints({**LOSSLESS, "none": [JacobiConfig()]}, TRIED)) == 1


def first_candidates(tree: TokenTree) -> list[int]:
    """The nodes that the obliging target agrees with, if it agrees with all: from each node its first candidate."""
    path, node = [], ROOT
    parents, candidates = tree.parents.tolist(), tree.is_candidate.tolist()
    while True:
        children = [i for i in range(len(tree)) if candidates[i] and parents[i] == node]
        if not children:
            return path
        node = children[0]
        path.append(node)


AGREE = {"never": 0, "always": ALWAYS, "sometimes, one token": 1, "sometimes, two tokens": 2}


@pytest.mark.parametrize("config", EVERY_CONFIG, ids=EVERY_NAME)
def test_exactly_the_tokens_that_the_target_predicts_are_accepted_and_counted(config: DrafterConfig) -> None:
    for name, agree in AGREE.items():
        with naming(name):
            check_accepted_and_counted(config, agree)


def check_accepted_and_counted(config: DrafterConfig, agree: float) -> None:
    target = ObligingTarget(agree)
    generation = decode(target, config, [1, 2, 3, 1, 2, 1], 28)
    counts, output = generation.counts, list(generation.output)
    offered, accepted = [0] * 64, [0] * 64
    for _, (tree,) in target.seen:
        path = first_candidates(tree)
        path = path[: min(len(path), int(min(agree, len(path))))]
        emitted, output = output[: len(path) + 1], output[len(path) + 1 :]
        assert emitted[:-1] == tree.tokens[path].tolist()
        depths = set(tree.depths[tree.is_candidate].tolist())
        for depth in range(64):
            offered[depth] += depth + 1 in depths
            accepted[depth] += depth < len(path)
    assert output == []  # the steps account for every token
    assert counts.new_tokens == len(generation.output) == 28
    levels = [{"offered": o, "accepted": a} for o, a in zip(offered, accepted, strict=True) if o]
    assert counts.acceptance_by_depth() == levels
    asked_for = sum(path is target.full for path, _, _ in target.drafted)  # by Jacobi's refinements
    assert counts.target_forwards == target.forwards == len(target.seen) + asked_for
    # The committed text is all but the last token, which is the root of a step that never came.
    assert target.cache.texts[0] == [1, 2, 3, 1, 2, 1, *generation.output][:-1]
    if config.name == "none":
        assert levels == []
    else:
        assert levels  # it drafts
        # The first branch of a tree need not be its deepest, so below depth 1 less may be agreed with than is offered.
        assert levels[0]["accepted"] == (levels[0]["offered"] if agree else 0)
        assert all(level["accepted"] == 0 for depth, level in enumerate(levels) if depth >= agree)


@dataclass(frozen=True)
class Case:
    """One decoding whose numbers were worked out by hand.

    Attributes:
        by_depth: (offered, accepted) from depth 1.
    """

    name: str
    config: DrafterConfig
    rule: Rule
    prompt: list[int]
    output: list[int]
    forwards: int
    by_depth: list[tuple[int, int]]
    sparse: Rule | None = None
    pad: int = 0


LOOKUP = PromptLookupConfig(ngram_max=1, ngram_min=1, draft_length=3, costs="flat")
SKIP = configured("layer_skip", draft_length=3)

CASES = [
    Case("none", DrafterConfig(), successor, [1], list(range(2, 10)), 8, []),
    # Each time the 1 returns, another token follows it than last time; the tokens between are new.
    # At the last 1 nothing may be drafted any more: one token is left, and the target writes it itself.
    Case(
        "lookup-never",
        LOOKUP,
        script([1, 2, 1, 3, 1, 4, 1, 5, 1, 6]),
        [1, 2, 1],
        [3, 1, 4, 1, 5, 1, 6],
        7,
        [(3, 0)] * 2,
    ),
    Case(
        "lookup-always",
        PromptLookupConfig(ngram_max=3, draft_length=4, costs="flat"),
        cycle(5),
        [1, 2, 3, 4, 5] * 2,
        [1, 2, 3, 4, 5] * 3,
        3,
        [(3, 3)] * 4,
    ),
    # Drafts 2 3|4 5 at the first 1, 2 3|9 1 at the second, 5|1 2 3 at the 4; where the text is new, none.
    Case(
        "lookup-sometimes",
        PromptLookupConfig(ngram_max=1, draft_length=4, costs="flat"),
        script([1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        [1, 2, 3, 4, 5, 1],
        [2, 3, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        7,
        [(3, 3), (3, 2), (3, 0), (3, 0)],
    ),
    # By costs: matches of three tokens promise enough for all that may be drafted. The last step has room for none.
    Case(
        "lookup-costs-always",
        PromptLookupConfig(draft_length=6),
        cycle(12),
        list(range(1, 13)) * 2,
        [*range(1, 13), 1, 2, 3],
        3,
        [(2, 2)] * 6,
    ),
    # Three drafted each step, but for the last three steps: two, one and none could still be emitted.
    Case(
        "skip-never", SKIP, successor, [1], list(range(2, 10)), 8, [(7, 0), (6, 0), (5, 0)], lambda text: text[-1] + 2
    ),
    Case("skip-always", SKIP, successor, [1], list(range(2, 14)), 3, [(3, 3)] * 3, successor),
    # The sparse model is wrong after multiples of three. The roots are 1, 4, 7, 10, so its third token is always wrong.
    Case(
        "skip-sometimes",
        SKIP,
        successor,
        [1],
        list(range(2, 14)),
        4,
        [(4, 4), (4, 4), (3, 0)],
        lambda text: text[-1] + 1 + (text[-1] % 3 == 0),
    ),
    # In both modes of Jacobi a block that the target's predictions do not depend on is right after one pass.
    Case(
        "jacobi-refined",
        JacobiConfig(window=3, refine_steps=3, init="pad", candidates=1, costs="flat"),
        script(list(range(1, 14))),
        [1],
        list(range(2, 14)),
        6,
        [(5, 2), (4, 2), (4, 2)],
    ),  # passes: fresh, carried and accepted whole, fresh, carried, then one guess at most, then none
    Case(
        "jacobi-literal-1",
        JacobiConfig(window=3, refine_steps=1, init="pad", mode="literal"),
        script(list(range(1, 14))),
        [1],
        list(range(2, 14)),
        6,
        [(3, 3)] * 3,
    ),
    # One refinement more finds that nothing changes, which costs its forward; the third is not made.
    Case(
        "jacobi-literal-3",
        JacobiConfig(window=3, refine_steps=3, init="pad", mode="literal"),
        script(list(range(1, 14))),
        [1],
        list(range(2, 14)),
        9,
        [(3, 3)] * 3,
    ),
    # Counting, a token depends on the one before: two refinements make two of the four right, whatever they began as.
    # Blocks of four but for the last, after 9 of 12 tokens, where two can still be emitted (and are right at once).
    Case(
        "jacobi-literal-sometimes",
        JacobiConfig(window=4, refine_steps=2, init="pad", mode="literal"),
        successor,
        [1],
        list(range(2, 14)),
        12,
        [(4, 4), (4, 4), (3, 0), (3, 0)],
    ),
]

# Prompt and filler hold nothing but 1. Counting up, every init guesses wrong, for each repeats what was said before.
CASES += [
    Case(
        f"jacobi-never-{init}",
        JacobiConfig(window=3, refine_steps=1, init=init, candidates=1, costs="flat"),
        successor,
        [1, 1],
        list(range(2, 10)),
        8,
        [(7, 0), (6, 0), (5, 0)],
        pad=1,
    )
    for init in INITS
]
CASES += [
    Case(
        f"jacobi-always-{init}",
        JacobiConfig(window=3, refine_steps=1, init=init, candidates=1, costs="flat"),
        repeats,
        [1, 1],
        [1] * 12,
        3,
        [(3, 3)] * 3,
        pad=1,
    )
    for init in INITS
]
# The target writes 1 1 2 four times. What each init guesses, a | after what is accepted:
SOMETIMES = {
    # 1 1|1 at every step: one a round. The last may draft but two.
    **dict.fromkeys(("pad", "prompt_random", "previous_tail"), (4, [(4, 4), (4, 4), (3, 0)])),
    # 1 1|1, then |2 2 2 after every 2 and 1|1 1 after its bonus 1: two a round. The last two draft two and one.
    "repeat_last": (7, [(7, 4), (6, 1), (5, 0)]),
    # 1 1|1 (the last 1 was followed by one 1, repeated to the width). |2 2 2 (no 2 before). |2 1 1 (the latest 1 was
    # followed by that). 2 1 1| (so was the latest 1 1). After 1 1 2 again, with three tokens left to write: 1 1|.
    "ngram": (5, [(5, 3), (5, 3), (4, 1)]),
}
CASES += [
    Case(
        f"jacobi-sometimes-{init}",
        JacobiConfig(window=3, refine_steps=1, init=init, candidates=1, costs="flat"),
        script([1, 1, *[1, 1, 2] * 4]),
        [1, 1],
        [1, 1, 2] * 4,
        forwards,
        by_depth,
        pad=1,
    )
    for init, (forwards, by_depth) in SOMETIMES.items()
]


def test_drafts_equal_those_worked_out_by_hand() -> None:
    for case in CASES:
        target = StubTarget(case.rule, case.sparse, pad_id=case.pad)
        generation = decode(target, case.config, case.prompt, len(case.output))
        counts = generation.counts
        assert generation.output == case.output, case.name
        assert counts.target_forwards == case.forwards, case.name
        assert [(d["offered"], d["accepted"]) for d in counts.acceptance_by_depth()] == case.by_depth, case.name


def test_every_drafter_has_three_cases_worked_out_by_hand() -> None:
    """Of those worked out by hand: a new drafter is covered by the obliging target above until it has its own."""
    for name in ("lookup", "skip", "jacobi"):
        for way in ("never", "always", "sometimes"):
            assert any(case.name.startswith(f"{name}-{way}") for case in CASES), f"{name} is not tried {way}"
    for init in INITS:
        assert sum(case.name.endswith(f"-{init}") for case in CASES) == 3, f"init={init} is not tried in three ways"
