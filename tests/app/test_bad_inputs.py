"""A wrong value from a user gives one line that says what would be right, exit status 2 and no traceback."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from command_line import CONF, SMOKE, ErrorLine, composed, run, write_prompts
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.terminal.help import groups_under
from selfdraft.core.errors import UserError
from selfdraft.drafters import PATHS


def test_repeats_of_a_warm_drafter_are_refused(error_line: ErrorLine) -> None:
    """It would draft from the answer that it has just seen."""
    said = error_line("drafter=pool", "drafter.warm=true", "task.repeats=2")
    assert said.startswith("task.repeats=2 with drafter.warm=true: ") and said.endswith("leave one of them out")


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["drafter.windw=4"], "drafter.windw: no such option (did you mean window?)"),  # while Hydra composes
        (["drafter.window=4,8"], "'drafter.window=4,8' has several values: add -m for a sweep; otherwise write key="),
        (["--typo"], "unknown: --typo; write options as group.option=value"),
        (
            ["drafter=layer_skip", "drafter.path.skip_mlp=[99]"],
            "drafter.path.skip_mlp=[99]: this model's layers are 0 to 3",
        ),
    ],
)
def test_a_user_error_gives_one_line_and_exit_status_2(overrides: list[str], expected: str, tmp_path: Path) -> None:
    done = run(*SMOKE, *overrides, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_hydra_full_error_shows_the_traceback(tmp_path: Path) -> None:
    done = run(*SMOKE, "drafter.window=0", f"hydra.run.dir={tmp_path}/run", HYDRA_FULL_ERROR="1")
    assert done.returncode not in (0, 2)
    assert "Traceback (most recent call last)" in done.stderr
    assert "drafter.window=0: must be at least 1" in done.stderr


# --- the command line -------------------------------------------------------------------------------------------------


def test_an_unknown_option_names_the_nearest_and_all_options(error_line: ErrorLine) -> None:
    said = error_line("drafter.windw=3")
    assert said == (
        "drafter.windw: no such option (did you mean window?); there are path, window, refine_steps, init, mode, "
        "candidates, costs, order, sub_blocks"
    )


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("window=4", "window: no such option (did you mean drafter.window?); there are "),
        ("+window=4", "window: no such option (did you mean drafter.window?); there are "),
        ("decoding.temperature=0.5", "decoding.temperature: no such option here; decoding=sample has it; there are "),
        ("drafter.guesses=5", "drafter.guesses: no such option here; drafter=lookahead has it; there are "),
        ("drafter.draft_length=3", "drafter.draft_length: no such option here; drafter="),  # not "did you mean …"
        ("model.family=llama", "model.family: no such option here; model=tiny has it; there are "),
    ],
)
def test_an_option_of_another_group_or_choice_is_named_with_it(error_line: ErrorLine, option: str, hint: str) -> None:
    assert error_line("model=smollm2_135m", option).startswith(hint)


def test_an_option_that_nothing_has_gets_no_suggestion(error_line: ErrorLine) -> None:
    assert error_line("decoding.zzz=1").startswith("decoding.zzz: no such option; there are ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("drafter.window=four", "drafter.window=four: must be a whole number"),
        ("drafter.window=1.5", "drafter.window=1.5: must be a whole number"),
        ("decoding.guard=maybe", "decoding.guard=maybe: must be true or false"),
    ],
)
def test_a_value_of_a_wrong_type_says_which_is_right(error_line: ErrorLine, override: str, expected: str) -> None:
    assert error_line(override) == expected


def test_an_unknown_choice_lists_all_choices(error_line: ErrorLine) -> None:
    for group in groups_under(CONF):
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        said = error_line(f"{group}=nothing_like_it")
        assert said == f"{group}=nothing_like_it: no such choice; choose one of {choices}"


def test_a_misspelt_choice_gets_a_suggestion(error_line: ErrorLine) -> None:
    assert "(did you mean layer_skip?)" in error_line("drafter=layerskip")


@pytest.mark.parametrize(
    ("drafter", "option", "expected"),
    [
        ("layer_skip", "sparsity", "drafter.path.sparsity"),
        ("cascade", "skip_attention", "drafter.path.skip_attention"),
        ("jacobi", "exit_layer", "drafter.path.exit_layer"),  # which never had it
        ("swift", "context_window", "drafter.path.context_window"),
        ("layer_skip", "adapter", "drafter/path=trained drafter.path.adapter"),
        ("pool", "adapter", "drafter/path=trained drafter.path.adapter"),
    ],
)
def test_an_option_that_moved_to_the_path_names_its_new_spelling(
    error_line: ErrorLine, drafter: str, option: str, expected: str
) -> None:
    said = error_line(f"drafter={drafter}", f"drafter.{option}=3")
    assert said.startswith(f"drafter.{option}: a path has this option: write {expected}=<value>")
    owners = [name for name, path in PATHS.items() if option in asdict(path.Config())]
    assert "trained" in owners or f"{', '.join(owners)} can have it" in said


def test_a_drafter_without_a_path_refuses_one(error_line: ErrorLine) -> None:
    said = error_line("drafter=suffix", "drafter/path=swift")
    assert said == "drafter/path: the chosen drafter runs no part of the model, so it takes no path"


def test_a_path_with_fused_jacobi_is_refused(error_line: ErrorLine) -> None:
    said = error_line("drafter=jacobi", "drafter/path=swift", "drafter.mode=fused")
    assert said.startswith("drafter/path=swift cannot verify, and ") and said.endswith("use drafter.mode=literal")


def test_an_unknown_group_is_refused(error_line: ErrorLine) -> None:
    assert "optimizer" in error_line("optimizer=adam")


def test_an_unknown_key_added_with_a_plus_is_refused(error_line: ErrorLine) -> None:
    said = error_line("+drafter.windw=4")
    assert said.startswith("drafter.windw: no such option")
    assert "window" in said
    assert error_line("+temperature=0.7").startswith("temperature: no such option")


def test_an_unparsable_override_gives_an_example(error_line: ErrorLine) -> None:
    for override in ("prompt=What's up?", "prompt=Well, why?", "drafter.window"):
        said = error_line("task=generate", override)
        assert override in said
        assert "quote" in said or "write key=value" in said


def test_a_wrong_type_names_key_and_value(error_line: ErrorLine) -> None:
    for override, key, value in (
        ("drafter.window=wide", "drafter.window", "wide"),
        ("drafter.window=2.5", "drafter.window", "2.5"),
        ("model.packed=perhaps", "model.packed", "perhaps"),
        ("dataset.categories=qa", "dataset.categories", "list"),
        ("drafter.window=null", "drafter.window: null is no value for it", "leave it out"),
        ("task.name=null", "task.name: null is no value for it", "leave it out"),
    ):
        said = error_line(override)
        assert key in said
        assert value in said


OUT_OF_RANGE = {
    "jacobi": [
        ("drafter.window", 0, "drafter.window=0: must be at least 1"),
        ("drafter.refine_steps", -1, "drafter.refine_steps=-1: must be at least 1"),
        ("drafter.init", "zeros", "drafter.init=zeros: choose one of prompt_random, repeat_last, pad"),
        ("drafter.mode", "both", "drafter.mode=both: choose one of auto, fused, literal"),
        ("drafter.order", "gauss_seidel", "drafter.order=gauss_seidel refines a block in several forwards"),
        ("decoding.max_new_tokens", 0, "decoding.max_new_tokens=0: must be at least 1"),
        ("task.repeats", 0, "task.repeats=0: must be at least 1"),
        ("task.references", ["vllm"], "task.references=vllm: choose one of transformers_greedy"),
        ("model.dtype", "float8", "model.dtype=float8: choose one of auto, float32, bfloat16, float16"),
        ("model.family", "bert", "model.family=bert: choose one of llama"),
        ("dataset.limit", 0, "dataset.limit=0: must be at least 1"),
        ("dataset.per_category", 0, "dataset.per_category=0: must be at least 1"),
        ("hardware.devices", 2, "hardware.devices=2 needs several processes: use hardware=cpu_ddp"),
        ("hardware.tree_parallel", True, "hardware.devices=1 is one: use hardware=cpu_ddp"),
        ("hardware.threads", 0, "hardware.threads=0: must be at least 1"),
        ("logger.mode", "sometimes", "logger.mode=sometimes: choose one of offline, online, disabled"),
        ("seed", -1, "seed=-1: must be at least 0"),
    ],
    "layer_skip": [
        ("drafter.path.sparsity", 1.2, "drafter.path.sparsity=1.2: must be below 1"),
        ("drafter.path.sparsity", -0.1, "drafter.path.sparsity=-0.1: must be at least 0"),
        ("drafter.min_confidence", 1.5, "drafter.min_confidence=1.5: must be at most 1"),
        ("drafter.draft_length", 0, "drafter.draft_length=0: must be at least 1"),
        ("drafter.path.skip_mlp", [-1], "drafter.path.skip_mlp=-1: must be at least 0"),
    ],
    "pool": [("drafter.sources", [], "drafter.sources=[]: name at least one of")],
    "recycling": [("drafter.template", [0], "drafter.template=[0]: the root needs a child at least")],
    "lookahead": [("drafter.ngram", 1, "drafter.ngram=1: must be at least 2")],
    "prompt_lookup": [
        ("drafter.ngram_min", 4, "drafter.ngram_min=4: must be at most drafter.ngram_max=3"),
        ("drafter.ngram_max", 0, "drafter.ngram_max=0: must be at least 1"),
    ],
}


@pytest.mark.parametrize("drafter", OUT_OF_RANGE)
def test_a_value_out_of_range_names_the_range(drafter: str) -> None:
    """Composed once, and then changed: a run would compose it anew for every value."""
    whole = composed(*SMOKE, f"drafter={drafter}")
    to_config(whole)
    for key, value, expected in OUT_OF_RANGE[drafter]:
        config = copy.deepcopy(whole)
        OmegaConf.update(config, key, value)
        with pytest.raises(UserError) as refused:
            to_config(config)
        assert expected in str(refused.value)


def test_values_that_only_the_model_or_the_data_refuses_name_the_range_too(error_line: ErrorLine) -> None:
    for overrides, expected in (
        (["drafter.window=0"], "drafter.window=0: must be at least 1"),
        (["drafter=layer_skip", "drafter.path.skip_attention=[4]"], "skip_attention=[4]: this model's layers are 0"),
        (["dataset.categories=[poetry]"], "poetry"),
    ):
        assert expected in error_line(*overrides)


def test_the_name_of_a_choice_cannot_be_overridden(error_line: ErrorLine) -> None:
    """It says which code runs, with options that belong to another."""
    for override in ("drafter.name=layer_skip", "drafter.path.name=swift", "task.name=generate"):
        assert override.partition("=")[0] in error_line(override)


def test_a_missing_required_option_is_named(error_line: ErrorLine) -> None:
    for choice, key in (("dataset=hub", "dataset.name"), ("drafter/path=trained", "drafter.path.adapter")):
        said = error_line(choice)
        assert re.fullmatch(rf"{re.escape(key)} is needed: give it as {re.escape(key)}=<value>, \S.+", said)


def test_sharing_trees_needs_processes_and_branches(error_line: ErrorLine) -> None:
    together = ("hardware=cpu_ddp", "hardware.tree_parallel=true", "prompt=hello")
    assert error_line("task=generate", *together) == (
        "hardware.tree_parallel needs its processes, and only task=evaluate starts them"
    )
    said = error_line("task=generate", *together, "decoding.shape_invariant=true", "model.packed=true")
    assert said.startswith("hardware.tree_parallel shares out branches, and decoding.shape_invariant allows but one")


def test_generating_needs_a_prompt(error_line: ErrorLine) -> None:
    assert "task=generate needs a prompt: prompt='Why is the sky blue?'" in error_line("task=generate")


# --- prompts ----------------------------------------------------------------------------------------------------------


def jsonl(path: Path) -> list[str]:
    return ["dataset=jsonl", f"dataset.path='{path}'", "dataset.per_category=null"]


def test_a_missing_prompt_file_is_named(error_line: ErrorLine, tmp_path: Path) -> None:
    assert f"There is no file {tmp_path}/nowhere.jsonl" in error_line(*jsonl(tmp_path / "nowhere.jsonl"))


def test_a_folder_as_prompt_file_is_refused(error_line: ErrorLine, tmp_path: Path) -> None:
    assert f"{tmp_path} cannot be read" in error_line(*jsonl(tmp_path))


def test_a_malformed_line_names_file_and_line_number(error_line: ErrorLine, tmp_path: Path) -> None:
    for line, expected in (
        ('{"prompt": "half of', "malformed JSON"),
        ('{"id": "first", "prompt": "the same id"}', "already that of line 1"),
    ):
        path = write_prompts(tmp_path / "prompts.jsonl", {"id": "first", "prompt": "fine"}, line)
        said = error_line(*jsonl(path))
        assert f"{path}:2: " in said
        assert expected in said


def test_an_empty_dataset_is_refused(error_line: ErrorLine, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    assert f"{path} holds no prompt" in error_line(*jsonl(path))


def test_a_prompt_longer_than_the_models_positions_is_refused_before_any_is_decoded(
    error_line: ErrorLine, tmp_path: Path
) -> None:
    path = write_prompts(tmp_path / "p.jsonl", {"id": "short", "prompt": "x"}, {"id": "long", "prompt": "x" * 4096})
    said = error_line(*jsonl(path))
    assert "prompt long has 41" in said
    assert "this model has 4096 positions" in said
    assert not (tmp_path / "run" / "prompts.jsonl").exists()


def test_a_long_prompt_for_generate_is_refused_as_well(error_line: ErrorLine) -> None:
    said = error_line("task=generate", f"prompt={'x' * 4096}")
    assert "this model has 4096 positions" in said
