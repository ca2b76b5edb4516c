"""task=advise on the random tiny model: candidates are predicted or tried, and the best are confirmed and advised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import SMOKE, ErrorLine, read_result, run_here, said_by, tamper
from naming import naming
from selfdraft.data.prompts import Prompt
from selfdraft.drafters.jacobi import Jacobi
from selfdraft.drafters.specs import as_overrides, spec_of
from selfdraft.modules.advisor import spread
from selfdraft.tracking.files import cost_cache
from selfdraft.tracking.numbers.equivalents import equivalents, without

PREDICTED = ("suffix costs=flat", "prompt_lookup costs=flat", "jacobi costs=flat")
TRIED = ("guarded early_exit exit_layer=1", "swift")
WRONG = "early_exit exit_layer=99"
QUOTED = ", ".join(f"'{name}'" for name in (*PREDICTED, *TRIED, "layer_skip", WRONG))
ADVISE = (*SMOKE, "task=advise", f"task.candidates=[{QUOTED}]", "task.tried=2", "task.prompts=3", "task.confirmed=2")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SELFDRAFT_CACHE", str(folder))
        patch.setattr(cost_cache, "crowded", lambda *_: False)  # tests run beside others
        yield folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("advise") / "run"
    said = said_by(folder, *ADVISE, "decoding.max_new_tokens=8")
    return said, read_result(folder)


def test_candidates_are_predicted_or_tried_and_the_best_confirmed(done: tuple[str, dict[str, Any]]) -> None:
    said, result = done
    assert set(result["tried"]) == set(TRIED)
    (skipping,) = set(result["predicted"]) - set(PREDICTED)
    assert skipping.startswith("layer_skip sparsity=") and set(PREDICTED) < set(result["predicted"])
    assert result["left_out"] == {
        WRONG: "drafter.path.exit_layer=99: this model has 4 layers; leave before the last, at 1 to 3"
    }
    assert len(result["contenders"]) == 3 and "none" in result["contenders"]
    assert all(found["turns"] == 3 for found in result["contenders"].values())
    speeds = {name: found["speedup"] for name, found in result["predicted"].items()}
    speeds |= {name: found["speedup_total"] for name, found in result["tried"].items()}
    best = sorted(speeds, key=lambda name: -speeds[name])[:2]
    assert set(result["contenders"]) == {"none", *best}
    for line in ("recorded on 3 of 3 prompts", "predicted 7 of 7 candidates", "tried on 2 of 2 prompts"):
        assert line in said
    assert "confirmed on 3 of 3 prompts" in said


def test_predictions_are_compared_with_what_was_confirmed(done: tuple[str, dict[str, Any]]) -> None:
    said, result = done
    known = set(result["contenders"]) & set(result["predicted"])
    assert set(result["prediction_errors"]) == known
    for name, error in result["prediction_errors"].items():
        confirmed = result["contenders"][name]["speedup_total"]
        assert error == pytest.approx(result["predicted"][name]["speedup"] / confirmed - 1)
    assert ("predictions were off by" in said) == bool(known)


def test_the_advice_is_the_fastest_confirmed_one_with_its_command(done: tuple[str, dict[str, Any]]) -> None:
    said, result = done
    chosen = next(name for name in result["ranking"] if name != "none")
    assert result["objective"] == result["contenders"][chosen]["speedup_total"]
    pays = result["contenders"][chosen]["speedup_total_interval"]["low"] > 1
    assert result["advice"]["drafter"] == (chosen if pays else "none")
    assert ("advice: yes, draft with" in said) == pays and ("advice: no clear gain" in said) != pays
    command = result["advice"]["command"]
    assert command.startswith("python run.py model=tiny drafter=") and command in " ".join(said.split())


def test_what_is_found_is_kept_for_auto(done: tuple[str, dict[str, Any]], cache: Path) -> None:
    said, result = done
    (file,) = (cache / "advice").iterdir()
    kept = json.loads(file.read_text())["advice"]
    assert kept["drafter"] == result["advice"]["drafter"] and kept["by"] == "task=advise" and kept["prompts"] == 3
    assert "kept for drafter=auto: " in said


def test_what_was_found_on_a_busy_machine_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost_cache, "crowded", lambda *_: True)
    few = ("task.candidates=[suffix]", "task.prompts=1", "decoding.max_new_tokens=4")
    said = said_by(tmp_path / "run", *SMOKE, "task=advise", *few)
    assert "warning: other programs kept this machine busy" in said and "kept for drafter=auto: " not in said
    assert read_result(tmp_path / "run")["crowded"] and not (tmp_path / "cache" / "advice").exists()


def test_sampled_answers_are_not_replayed(tmp_path: Path) -> None:
    few = ("task.candidates=[suffix]", "task.tried=1", "task.prompts=1", "decoding=sample", "decoding.max_new_tokens=4")
    said = said_by(tmp_path / "run", *SMOKE, "task=advise", *few)
    result = read_result(tmp_path / "run")
    assert result["predicted"] == {} and set(result["tried"]) == {"suffix"}
    assert "recorded" not in said and "kept for drafter=auto" not in said


def test_a_drafter_in_one_line_has_overrides_that_choose_the_same() -> None:
    for text, overrides in {
        "pool sources=[suffix] edges=2": ["drafter=pool", "drafter.sources=[suffix]", "drafter.edges=2"],
        "guarded early_exit exit_layer=3": ["drafter=early_exit", "drafter.path.exit_layer=3", "decoding.guard=true"],
        "jacobi path=swift enough=0.5": ["drafter=jacobi", "drafter/path=swift", "drafter.path.enough=0.5"],
    }.items():
        assert as_overrides(text) == overrides


def test_the_same_method_is_named_in_other_engines_where_they_have_it() -> None:
    lookup = equivalents(spec_of("prompt_lookup draft_length=5 ngram_max=4").config)
    assert '"num_speculative_tokens": 5, "prompt_lookup_max": 4' in lookup["vLLM"]
    assert lookup["llama.cpp"].endswith("--draft-max 5") and "prompt_lookup_num_tokens=5" in lookup["transformers"]
    assert without(spec_of("prompt_lookup").config) == ""
    assert (
        equivalents(spec_of("early_exit exit_layer=3").config)["transformers"] == "generate(…, assistant_early_exit=3)"
    )
    assert without(spec_of("pool").config) == "vLLM and llama.cpp and transformers: no setting does the same"
    assert without(spec_of("suffix").config) == "llama.cpp and transformers: no setting does the same"


def test_prompts_of_all_families_come_first() -> None:
    prompts = [Prompt(f"{family}{i}", family, family, ["x"]) for family in "abc" for i in range(3)]
    assert [prompt.id for prompt in spread(prompts, 5)] == ["a0", "b0", "c0", "a1", "b1"]
    assert len(spread(prompts, 99)) == 9 and spread([], 3) == []


def test_a_wrong_text_fails_the_task_and_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Jacobi, "observe", tamper)
    few = ("task.candidates=[jacobi]", "task.tried=1", "task.prompts=1")
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path / "run", *SMOKE, "task=advise", *few)
    assert ended.value.code == 1
    assert not (tmp_path / "cache" / "advice").exists()


def test_wrong_options_give_one_clear_line(error_line: ErrorLine) -> None:
    for options, said in [
        (["task.candidates=[transformers_greedy]"], "task.candidates: transformers_greedy is no drafter of ours"),
        (["task.candidates=[polo]"], "task.candidates, 'polo' (did you mean pool?): there is no drafter 'polo'"),
        (["task.candidates=[]"], "task.candidates: give at least one besides plain decoding"),
        (["task.candidates=[low_bit]", "task.prompts=1"], "no candidate can be used here: low_bit: drafts with fewer"),
        (["decoding.batch_size=2"], "task=advise answers prompt by prompt in one process"),
    ]:
        with naming(options):
            assert error_line("task=advise", *options).startswith(said)
