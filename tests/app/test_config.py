"""Every YAML under conf/ composes, builds its typed objects and agrees with its schema."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from command_line import CONF, composed, composed_with_hydra
from selfdraft.app.options.schema_drafter import AutoConfig
from selfdraft.app.options.schemas import SCHEMAS
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import measured_config, settled
from selfdraft.app.terminal.option_index import FILE
from selfdraft.core.errors import UserError
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.models.loading import loading
from selfdraft.modules.recipes import RECIPES

MANDATORY = {  # what a choice leaves to the user
    "model/hf": ["model.path=somewhere"],
    "model/random": ["model.path=somewhere"],
    "dataset/jsonl": ["dataset.path=prompts.jsonl"],
    "dataset/hub": ["dataset.name=owner/name"],
    "dataset/spec_bench": ["dataset.path=question.jsonl"],
    "drafter/trained": ["drafter.path.adapter=somewhere"],
    "drafter/path/trained": ["drafter.path.adapter=somewhere"],
}
AUTO = "auto"  # stands for a drafter until a run begins
WITH_A_PATH = [name for name, preset in PRESETS.items() if preset.path is not None]


def choices_under(conf: Path) -> list[str]:
    """Every YAML but the root one, as `group/choice`, at any depth."""
    paths = [path for path in conf.rglob("*.yaml") if path.parent != conf]
    return sorted(path.relative_to(conf).with_suffix("").as_posix() for path in paths)


CHOICES = choices_under(CONF)
DATASET_OPTIONS = {"limit", "per_category", "categories", "seed"}


def split(choice: str) -> tuple[str, str]:
    """Group and name, also of a group in a group. In other subfolders a file's path is its name: paper/table1."""
    group = "drafter/path" if choice.startswith("drafter/path/") else choice.partition("/")[0]
    return group, choice.removeprefix(f"{group}/")


def options_of(choice: str) -> dict:
    """The options in the YAML itself."""
    return {k: v for k, v in yaml.safe_load((CONF / f"{choice}.yaml").read_text()).items() if k != "defaults"}


def described(name: str, path: str | None = None) -> DrafterConfig:
    """A drafter's options by `configured`, with those that its YAML leaves to the user."""
    options = {"adapter": "somewhere"} if (path or PRESETS[name].path) == "trained" else {}
    return configured(name, path, **options)


@pytest.fixture
def many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 64)


def rounds() -> Iterator[tuple[str, ...]]:
    """Every choice once: one of each group together, as groups do not depend on each other; paths need a drafter."""
    groups: dict[str, list[str]] = {}
    for choice in CHOICES:
        groups.setdefault(split(choice)[0], []).append(choice)
    groups.pop("hparams")  # test_hparams.py composes these
    alone = [*groups.pop("drafter/path"), *groups.pop("experiment")]
    for together in itertools.zip_longest(*groups.values()):
        yield tuple(choice for choice in together if choice is not None)
    yield from ((choice,) for choice in alone)


@pytest.mark.parametrize("choices", rounds(), ids=" ".join)
def test_every_yaml_composes_and_builds_its_objects(choices: tuple[str, ...], many_gpus: None) -> None:
    overrides = [f"{split(choice)[0]}={split(choice)[1]}" for choice in choices]
    overrides += [option for choice in choices for option in MANDATORY.get(choice, [])]
    whole, task = composed_with_hydra(*overrides)
    config = to_config(task)
    for choice in choices:
        group, name = split(choice)
        assert whole.hydra.runtime.choices[group] == name
        if group not in SCHEMAS:
            continue
        part = attrgetter(group.replace("/", "."))(config)
        assert type(part) in SCHEMAS[group]
        if group == "drafter":
            assert part.name == (name if name == AUTO else PRESETS[name].proposal)
            assert part == (AutoConfig() if name == AUTO else described(name))
        elif choice != "dataset/hub":  # whose name is the user's to give
            assert part.name == name
        for option, value in options_of(choice).items():
            if value != "???":
                assert getattr(part, option) == value, option


def test_the_rounds_have_every_choice_once() -> None:
    elsewhere = [choice for choice in CHOICES if choice.startswith("hparams/")]
    assert sorted([*elsewhere, *(choice for choices in rounds() for choice in choices)]) == CHOICES


def test_the_root_config_builds_its_objects() -> None:
    config = to_config(composed())
    assert (config.task.name, config.drafter.name, config.logger.mode) == ("evaluate", "jacobi", None)


@pytest.mark.parametrize("choice", sorted(MANDATORY))
def test_a_choice_s_required_options_are_asked_for(choice: str) -> None:
    group, name = split(choice)
    key = MANDATORY[choice][0].partition("=")[0]
    with pytest.raises(Exception, match=re.escape(key)):
        to_config(composed(f"{group}={name}"))


def test_these_tests_see_yaml_files_at_any_depth(tmp_path: Path) -> None:
    for name in ("config.yaml", "drafter/new.yaml", "experiment/paper/table1.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert choices_under(tmp_path) == ["drafter/new", "experiment/paper/table1"]


def test_everything_under_conf_is_a_choice_that_these_tests_compose() -> None:
    files = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_file()}
    # Hydra ignores a file that is not called .yaml, and so would the tests above.
    assert files == {"config.yaml", FILE, *(f"{choice}.yaml" for choice in CHOICES)}
    assert {split(choice)[0] for choice in CHOICES} == {*SCHEMAS, "experiment", "hparams"}


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_yaml_of_a_drafter_lists_every_option_with_its_default(name: str) -> None:
    defaults = asdict(PROPOSALS[name].Config())
    assert defaults.pop("name") == name
    defaults.pop("path", None)  # a group of its own
    assert options_of(f"drafter/{name}") == defaults
    assert (PRESETS[name].proposal, PRESETS[name].options) == (name, {})


def test_the_yaml_of_auto_lists_every_option_with_its_default() -> None:
    assert options_of("drafter/auto") | {"name": AUTO} == asdict(AutoConfig())


@pytest.mark.parametrize("name", PATHS)
def test_the_yaml_of_a_path_lists_every_option_with_its_default(name: str) -> None:
    defaults = asdict(PATHS[name].Config())
    assert defaults.pop("name") == name
    assert options_of(f"drafter/path/{name}") == defaults


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in PROPOSALS])
def test_the_yaml_of_a_preset_lists_only_what_differs(name: str) -> None:
    options, defaults = options_of(f"drafter/{name}"), asdict(PROPOSALS[PRESETS[name].proposal].Config())
    assert options == PRESETS[name].options
    assert [option for option, value in options.items() if defaults[option] == value] == []


@pytest.mark.parametrize("name", WITH_A_PATH)
def test_a_drafter_that_takes_a_path_composes_with_other_paths(name: str) -> None:
    """With two, by turns. Only the group: the whole configuration would take longer, and it is composed above."""
    paths, at = list(PATHS), WITH_A_PATH.index(name)
    assert len(WITH_A_PATH) >= len(paths)  # so that every path has its turn
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in (paths[at % len(paths)], paths[(at + 1) % len(paths)]):
            overrides = [f"drafter/path={path}", *MANDATORY.get(f"drafter/path/{path}", [])]
            config = OmegaConf.to_object(compose(f"drafter/{name}", overrides).drafter)
            assert config == described(name, path)
            assert type(config.path) is PATHS[path].Config


def test_there_is_a_yaml_for_each_drafter_and_path_and_no_other() -> None:
    for group, names in (("drafter", {*PRESETS, AUTO}), ("drafter/path", PATHS)):
        assert {split(choice)[1] for choice in CHOICES if split(choice)[0] == group} == set(names)


@pytest.mark.parametrize("name", RECIPES)
def test_the_yaml_of_a_recipe_lists_every_option_with_its_default(name: str) -> None:
    assert options_of(f"finetune/{name}") == {k: v for k, v in asdict(RECIPES[name].Config()).items() if k != "name"}


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("dataset/")])
def test_every_dataset_shows_the_options_of_choosing(choice: str) -> None:
    assert set(options_of(choice)) >= DATASET_OPTIONS


def test_config_yaml_names_all_choices() -> None:
    row = re.compile(r"^  - (\w+): \S+ +# (\w+(?: \| \w+)+)(?:[:;] .*)?$", re.MULTILINE)
    listed = row.findall((CONF / "config.yaml").read_text())
    assert {group for group, _ in listed} >= {"task", "model", "drafter", "decoding", "dataset", "hardware", "logger"}
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


def test_the_logger_is_not_part_of_the_compared_configuration() -> None:
    one, other = (measured_config(composed(*o)) for o in (["logger=none"], ["logger=wandb", "logger.project=x"]))
    assert one == other
    assert one != measured_config(composed("logger=none", "drafter.window=9"))


def test_options_changed_after_composing_are_checked() -> None:
    config = composed()
    OmegaConf.update(config, "drafter.window", 0)
    with pytest.raises(UserError, match=r"drafter\.window=0: must be at least 1"):
        to_config(config)


def test_the_dtype_that_serves_this_machine_is_decided_before_a_run_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels, compiler, dtype in ((True, False, "bfloat16"), (True, True, "float32"), (False, False, "float32")):
        monkeypatch.setattr(loading, "packable", lambda _, kernels=kernels: kernels)
        monkeypatch.setattr(loading, "has_compiler", lambda compiler=compiler: compiler)  # the native engine needs one
        given = composed()
        assert given.model.dtype == "auto"
        assert to_config(settled(given)).model.dtype == dtype
        assert given.model.dtype == "auto"  # the caller's own is not changed
    given = composed("model.dtype=float16")
    assert settled(given) is given
    assert loading.fitting_dtype(torch.device("cuda")) == "bfloat16"
