"""Every YAML under conf/ composes and becomes typed objects, and none drifts away from its schema."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from command_line import CONF, composed
from selfdraft.app.build import measured_config, to_config
from selfdraft.app.schemas import SCHEMAS
from selfdraft.core.errors import UserError
from selfdraft.drafters.presets import PRESETS, configured

MANDATORY = {  # what a choice leaves to the user
    "model/hf": ["model.path=somewhere"],
    "model/random": ["model.path=somewhere"],
    "dataset/jsonl": ["dataset.path=prompts.jsonl"],
    "dataset/hub": ["dataset.name=owner/name"],
}


def choices_under(conf: Path) -> list[str]:
    """Every YAML but the root one, as `group/choice`, however deep it lies."""
    paths = [path for path in conf.rglob("*.yaml") if path.parent != conf]
    return sorted(path.relative_to(conf).with_suffix("").as_posix() for path in paths)


CHOICES = choices_under(CONF)
DATASET_OPTIONS = {"limit", "per_category", "categories", "seed"}


def split(choice: str) -> tuple[str, str]:
    """Group and name: a file in a subfolder is chosen by its path, as in experiment=paper/table1."""
    group, _, name = choice.partition("/")
    return group, name


def options_of(choice: str) -> dict:
    """What the YAML itself says."""
    return {k: v for k, v in yaml.safe_load((CONF / f"{choice}.yaml").read_text()).items() if k != "defaults"}


@pytest.fixture
def many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 64)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_composes_as_its_groups_choice_and_becomes_objects(choice: str, many_gpus: None) -> None:
    group, name = split(choice)
    overrides = [f"{group}={name}", *MANDATORY.get(choice, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", overrides, return_hydra_config=True)
    assert whole.hydra.runtime.choices[group] == name
    config = to_config(composed(*overrides))
    if group in SCHEMAS:
        part = getattr(config, group)
        assert type(part) in SCHEMAS[group]
        if choice != "dataset/hub":  # whose name is the user's to give
            assert part.name == name
        for option, value in options_of(choice).items():
            if value != "???":
                assert getattr(part, option) == value, option


def test_the_root_config_alone_becomes_objects() -> None:
    config = to_config(composed())
    assert (config.task.name, config.drafter.name, config.logger.mode) == ("evaluate", "jacobi", None)


@pytest.mark.parametrize("choice", sorted(MANDATORY))
def test_what_a_choice_leaves_to_the_user_is_asked_for(choice: str) -> None:
    group, name = split(choice)
    key = MANDATORY[choice][0].partition("=")[0]
    with pytest.raises(Exception, match=re.escape(key)):
        to_config(composed(f"{group}={name}"))


def test_a_yaml_at_any_depth_is_seen_by_these_tests(tmp_path: Path) -> None:
    for name in ("config.yaml", "drafter/new.yaml", "experiment/paper/table1.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert choices_under(tmp_path) == ["drafter/new", "experiment/paper/table1"]


def test_everything_under_conf_is_a_choice_that_these_tests_compose() -> None:
    files = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_file()}
    # Hydra ignores a file that is not called .yaml, and so would the tests above.
    assert files == {"config.yaml", *(f"{choice}.yaml" for choice in CHOICES)}
    assert {split(choice)[0] for choice in CHOICES} == {*SCHEMAS, "experiment"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_drafters_yaml_lists_every_option_with_its_default(name: str) -> None:
    defaults = asdict(configured(name))
    assert defaults.pop("name") == name
    assert options_of(f"drafter/{name}") == defaults


def test_there_is_a_yaml_for_each_drafter_and_no_other() -> None:
    assert {split(choice)[1] for choice in CHOICES if split(choice)[0] == "drafter"} == set(PRESETS)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("dataset/")])
def test_every_dataset_shows_the_options_of_choosing(choice: str) -> None:
    assert set(options_of(choice)) >= DATASET_OPTIONS


def test_the_choices_named_in_config_yaml_are_those_there_are() -> None:
    listed = re.findall(r"^  - (\w+): \S+ +# (\w+(?: \| \w+)+)$", (CONF / "config.yaml").read_text(), re.MULTILINE)
    assert len(listed) >= 6
    for group, names in listed:
        assert sorted(names.split(" | ")) == [split(c)[1] for c in CHOICES if split(c)[0] == group], group


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("hardware/gpu")])
def test_without_a_gpu_the_gpu_choices_are_refused_by_name(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    name = split(choice)[1]
    with pytest.raises(UserError, match=rf"hardware={name} asks for \d GPU.*torch sees 0: use hardware=cpu"):
        to_config(composed(f"hardware={name}"))


def test_an_experiment_may_be_overridden_on_the_command_line() -> None:
    config = to_config(composed("experiment=smoke", "model.family=qwen3", "decoding.max_new_tokens=5", "logger=csv"))
    assert (config.model.label, config.decoding.max_new_tokens, config.logger.name) == ("tiny qwen3", 5, "csv")


def test_where_a_run_is_logged_is_no_part_of_what_it_measures() -> None:
    one, other = (measured_config(composed(*o)) for o in (["logger=none"], ["logger=wandb", "logger.project=x"]))
    assert one == other
    assert one != measured_config(composed("logger=none", "drafter.window=9"))


def test_an_option_changed_after_composing_is_checked_as_well() -> None:
    config = composed()
    OmegaConf.update(config, "drafter.window", 0)
    with pytest.raises(UserError, match=r"drafter\.window=0: must be at least 1"):
        to_config(config)
