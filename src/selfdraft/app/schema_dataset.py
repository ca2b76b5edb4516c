"""Config schemas of the datasets: where each comes from, and which of its prompts are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option
from selfdraft.core.paths import expanded, expanded_name
from selfdraft.data.prompts import Prompt, select
from selfdraft.data.sources import load_bundled, load_hub, load_humaneval, load_jsonl


@dataclass
class DatasetConfig(Options):
    """Which prompts to use; `data.prompts.select` says in which order the options are applied."""

    group: ClassVar[str] = "dataset"
    name: str = choice_name(MISSING)
    limit: int | None = option(None, at_least=1, help="maximum number of prompts; null: all")
    per_category: int | None = option(
        None,
        at_least=1,
        help="maximum number of prompts of each family (MT-bench's eight categories are one); null: all",
    )
    skip_per_category: int = option(
        0, at_least=0, help="first prompts of each family to leave out, e.g. to train on others than are evaluated"
    )
    categories: list[str] = option([], help="only the prompts of these families or categories; empty: all")
    seed: int | None = option(
        None, help="with per_category, choose prompts at random with this seed; null: take the first ones"
    )
    shuffle: int | None = option(
        None,
        help="shuffle the prompts with this seed; their order matters to drafters that keep state (drafter.warm); "
        "null: file order",
    )

    def load(self) -> list[Prompt]:
        """Return the chosen prompts, in file order or shuffled."""
        return select(
            self.read(),
            categories=self.categories,
            per_category=self.per_category,
            skip_per_category=self.skip_per_category,
            limit=self.limit,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def read(self) -> list[Prompt]:
        """Return all prompts of the dataset."""
        raise UserError("dataset: choose one, e.g. dataset=bundled")


@dataclass
class BundledConfig(DatasetConfig):
    """The prompts that come with SelfDraft."""

    name: str = choice_name("bundled")

    def read(self) -> list[Prompt]:
        """Return all 48 prompts."""
        return load_bundled()


@dataclass
class JsonlConfig(DatasetConfig):
    """A JSONL file in Spec-Bench's schema, or with a prompt on each line."""

    name: str = choice_name("jsonl")
    path: str = option(MISSING, help="the file")
    prompt_field: str | None = option(None, help="key that holds the prompt; null: `turns`, otherwise `prompt`")

    def read(self) -> list[Prompt]:
        """Return one prompt per line."""
        return load_jsonl(expanded(self.path, "dataset.path"), self.prompt_field)


@dataclass
class HumanEvalConfig(DatasetConfig):
    """HumanEval's 164 problems."""

    name: str = choice_name("humaneval")

    def read(self) -> list[Prompt]:
        """Return all 164 prompts."""
        return load_humaneval()


@dataclass
class HubConfig(DatasetConfig):
    """A dataset of the Hugging Face Hub, or a local dataset folder."""

    name: str = option(MISSING, help="<owner>/<name> on the hub, or a local folder")
    split: str = option("test", help="split of the dataset, e.g. train")
    subset: str | None = option(None, help="subset (configuration) of the dataset; null: its default one")
    prompt_field: str = option("prompt", help="column that holds the prompt, as text or as a list of turns")
    revision: str | None = option(None, help="branch, tag or commit on the hub; null: the newest")

    def read(self) -> list[Prompt]:
        """Return one prompt per row."""
        # A name on the Hub stays as it is; only a local folder can begin with ~.
        name = expanded_name(self.name, "dataset.name")
        return load_hub(
            name,
            split=self.split,
            subset=self.subset,
            prompt_field=self.prompt_field,
            revision=self.revision,
        )
