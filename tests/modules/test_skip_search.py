"""The search for skip sets: the candidates of each method, resuming, and sharing by processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.modules.search import JOURNAL, METHODS, Search

LAYERS = 8  # of which six may be skipped in: twelve sublayers
HARM = {("attention", 3): 0.0, ("mlp", 2): 0.01, ("attention", 5): 0.02}  # of all others: 0.1


def value(skip: SkipSet) -> float:
    """The number of skipped sublayers minus their harm."""
    sublayers = [("attention", i) for i in skip.attention] + [("mlp", i) for i in skip.mlp]
    return sum(0.05 - HARM.get(s, 0.1) for s in sublayers)


def first_layers(count: int) -> SkipSet:
    """Replaces the dynamic programme."""
    return SkipSet(frozenset(range(1, 1 + count)), frozenset(range(1, 1 + count)))


def search(folder: Path, method: str, sizes: tuple[int, int] = (1, 6), trials: int = 40, rank: int = 0) -> Search:
    return Search(folder, method, LAYERS, sizes, trials, seed=0, rank=rank, most_similar=first_layers)


def go(study: Search, indices: list[int]) -> None:
    for index in indices:
        candidate = study.candidate(index)
        study.tell(candidate, value(candidate.skip), {"fact": index})


def test_an_incomplete_line_is_removed_before_the_study_resumes(tmp_path: Path) -> None:
    study = search(tmp_path, "random", trials=6)
    go(study, study.remaining()[:3])
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":6,"worker_i')
    again = search(tmp_path, "random", trials=6)
    assert len(again.remaining()) == 3
    go(again, again.remaining())
    assert [line["index"] for line in search(tmp_path, "random", trials=6).history()] == list(range(6))


SAMPLED = ["random", "bayes", "evolution"]


@pytest.mark.parametrize("method", ["importance", *SAMPLED])
def test_every_candidate_has_a_requested_size_and_keeps_first_and_last_layer(method: str, tmp_path: Path) -> None:
    study = search(tmp_path, method, sizes=(2, 4), trials=14)
    go(study, study.remaining())
    lines = study.history()
    assert [line["index"] for line in lines] == list(range(14))
    for line in lines:
        skipped = len(line["skip_attention"]) + len(line["skip_mlp"])
        assert skipped in ((1,) if method == "importance" and line["index"] < 12 else (2, 3, 4))
        assert {*line["skip_attention"], *line["skip_mlp"]} <= set(range(1, LAYERS - 1))
        assert line["fact"] == line["index"]


def test_importance_combines_the_least_harmful_sublayers(tmp_path: Path) -> None:
    study = search(tmp_path, "importance")
    assert study.total == 12 + 6
    go(study, study.remaining())
    together = study.history()[12:]
    assert [(line["skip_attention"], line["skip_mlp"]) for line in together[:3]] == [
        ([3], []),
        ([3], [2]),
        ([3, 5], [2]),
    ]
    best = max(study.history(), key=lambda line: line["value"])
    assert best["value"] == pytest.approx(0.12)


@pytest.mark.slow
def test_a_learning_sampler_beats_random_search(tmp_path: Path) -> None:
    found = {}
    for method in ("random", "bayes", "evolution"):
        (tmp_path / method).mkdir()
        study = search(tmp_path / method, method, trials=120)
        go(study, study.remaining())
        late = study.history()[80:]
        found[method] = sum(line["value"] for line in late) / len(late)
    for method in ("bayes", "evolution"):
        assert found[method] > found["random"] + 0.03, method


@pytest.mark.parametrize("method", ["importance", *SAMPLED])
def test_a_killed_search_resumes_with_the_scored_candidates(method: str, tmp_path: Path) -> None:
    first = search(tmp_path, method, trials=16)
    go(first, [0, 1, 2, 3, 4])
    first.candidate(5)  # and then it was killed
    scored = first.history()
    again = search(tmp_path, method, trials=16)
    assert again.remaining() == list(range(5, again.total))
    go(again, again.remaining())
    assert again.history()[:5] == scored
    assert len(again.history()) == again.total
    if method != "importance":
        tried = [(line["skip_attention"], line["skip_mlp"]) for line in again.history()]
        assert tried[5:10] != tried[:5]  # the sampler does not begin with the same draws again


def test_the_dynamic_programme_skips_one_more_layer_each_time(tmp_path: Path) -> None:
    study = search(tmp_path, "dp", sizes=(1, 6))
    go(study, study.remaining())
    assert [line["skip_mlp"] for line in study.history()] == [[1], [1, 2], [1, 2, 3]]
    assert {*SAMPLED, "importance", "dp"} == set(METHODS)


def test_the_dynamic_programme_needs_sizes_of_a_whole_layer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skips whole layers"):
        search(tmp_path, "dp", sizes=(1, 1))


def test_two_processes_share_one_study(tmp_path: Path) -> None:
    one, other = search(tmp_path, "random", trials=10), search(tmp_path, "random", trials=10, rank=1)
    left = one.remaining()
    go(one, left[::2])
    go(other, left[1::2])
    assert one.history() == other.history()
    assert [line["index"] for line in one.history()] == list(range(10))


def test_too_few_trials_for_importance_give_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calibrate\.trials=12 must be at least 13"):
        search(tmp_path, "importance", trials=12)


def test_a_model_of_two_layers_has_nothing_to_skip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the first and the last are kept"):
        Search(tmp_path, "random", 2, (1, 0), 5, seed=0)
