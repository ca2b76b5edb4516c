from collections import Counter

import pytest

from selfdraft.core.errors import UserError
from selfdraft.data.prompts import MT_BENCH_CATEGORIES, Prompt, select

MT = [Prompt(f"mt{i}", category, ("Hi.", "And?")) for i, category in enumerate(sorted(MT_BENCH_CATEGORIES))]
QA = [Prompt(f"qa{i}", "qa", ("Why?",)) for i in range(6)]
RAG = [Prompt(f"rag{i}", "rag", ("Where?",)) for i in range(3)]
PROMPTS = [*MT, *QA, *RAG]


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_family_groups_the_eight_mt_bench_categories():
    assert len(MT_BENCH_CATEGORIES) == 8
    assert {prompt.family for prompt in MT} == {"mt_bench"}
    assert QA[0].family == "qa"


def test_all_prompts_are_used_by_default():
    assert select(PROMPTS) == PROMPTS


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (["qa"], QA),
        (["mt_bench"], MT),
        (["rag", "qa"], QA + RAG),
        (["coding"], [MT[0]]),
        (["coding", "rag"], MT[:1] + RAG),
    ],
)
def test_categories_are_families_or_categories_and_keep_file_order(categories, expected):
    assert select(PROMPTS, categories=categories) == expected


def test_an_unknown_category_lists_those_present():
    with pytest.raises(UserError, match=r"^No prompt has the category poems; present are .*mt_bench, qa, rag.*\.$"):
        select(PROMPTS, categories=["qa", "poems"])


def test_per_category_takes_the_first_of_each_family():
    assert ids(select(PROMPTS, per_category=2)) == ["mt0", "mt1", "qa0", "qa1", "rag0", "rag1"]


def test_per_category_takes_fewer_if_there_are_fewer():
    assert Counter(p.family for p in select(PROMPTS, per_category=5)) == {"mt_bench": 5, "qa": 5, "rag": 3}


def test_skip_per_category_leaves_out_the_first_of_each_family():
    kept = select(PROMPTS, skip_per_category=2)
    assert kept == [*MT[2:], *QA[2:], *RAG[2:]]


def test_skipped_and_taken_prompts_are_disjoint():
    evaluated = select(PROMPTS, per_category=2)
    trained = select(PROMPTS, skip_per_category=2)
    assert not set(ids(evaluated)) & set(ids(trained))
    assert sorted(ids([*evaluated, *trained])) == sorted(ids(PROMPTS))


def test_per_category_counts_after_skipping():
    assert ids(select(PROMPTS, skip_per_category=1, per_category=2)) == ["mt1", "mt2", "qa1", "qa2", "rag1", "rag2"]
    assert ids(select(PROMPTS, categories=["rag", "qa"], skip_per_category=2, per_category=2)) == ["qa2", "qa3", "rag2"]


def test_a_seed_never_chooses_skipped_prompts():
    for seed in range(20):
        chosen = ids(select(PROMPTS, skip_per_category=2, per_category=1, seed=seed, shuffle=seed))
        assert not {"mt0", "mt1", "qa0", "qa1", "rag0", "rag1"} & set(chosen)


def test_a_fully_skipped_family_is_absent_and_skipping_all_is_refused():
    assert {p.family for p in select(PROMPTS, skip_per_category=3)} == {"mt_bench", "qa"}
    with pytest.raises(UserError, match=r"^skip_per_category is 8; no family has more prompts than that\.$"):
        select(PROMPTS, skip_per_category=8)


def test_a_seed_chooses_reproducibly_and_keeps_file_order():
    choices = [ids(select(PROMPTS, per_category=3, seed=seed)) for seed in range(10)]
    assert choices == [ids(select(PROMPTS, per_category=3, seed=seed)) for seed in range(10)]
    assert len({tuple(choice) for choice in choices}) > 1
    for choice in choices:
        assert choice == [prompt.id for prompt in PROMPTS if prompt.id in choice]
        assert choice[-3:] == ids(RAG)


def test_a_seeded_choice_in_one_family_does_not_depend_on_the_others():
    assert select(PROMPTS, categories=["qa"], per_category=3, seed=7) == [
        prompt for prompt in select(PROMPTS, per_category=3, seed=7) if prompt.family == "qa"
    ]


def test_limit_is_applied_last():
    assert ids(select(PROMPTS, per_category=2, limit=3)) == ["mt0", "mt1", "qa0"]
    assert select(PROMPTS, limit=1000) == PROMPTS


def test_shuffling_has_its_own_seed():
    chosen = select(PROMPTS, per_category=3, limit=8)
    mixed = [select(PROMPTS, per_category=3, limit=8, shuffle=seed) for seed in (0, 0, 1)]
    assert mixed[0] == mixed[1] != mixed[2]
    assert mixed[0] != chosen
    assert sorted(ids(mixed[0])) == sorted(ids(chosen))


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"per_category": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(UserError, match=r"it must be at least 1"):
        select(PROMPTS, **options)


def test_an_empty_choice_is_refused():
    with pytest.raises(UserError, match=r"no prompt to choose from"):
        select([])


def test_the_beginning_of_a_conversation_has_the_history_before_the_first_turn() -> None:
    history = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."))
    assert Prompt("1", "qa", ("Why?", "How?"), history).beginning == [*history, ("user", "Why?")]


def test_names_of_mt_bench_s_categories_may_be_families_of_another_dataset() -> None:
    assert [Prompt("1", "math", ("a",), is_mt_bench=known).family for known in (True, False)] == ["mt_bench", "math"]
