"""Config schemas of the datasets: where each comes from, and which of its prompts are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, option
from selfdraft.core.paths import expanded, expanded_name
from selfdraft.data.prompts import Prompt, select
from selfdraft.data.sources import load_bundled, load_hub, load_humaneval, load_jsonl


@dataclass
class DatasetConfig(Options):
    """Which prompts to use: of `categories` (families or categories), `per_category` of each family, `limit` in all.

    `skip_per_category` first leaves out that many of each family, to train on other prompts than those of evaluations.
    `seed` chooses them at random instead of taking the first ones; `shuffle` is a seed that mixes their order, which
    matters to drafters that keep state between requests (`drafter.warm`).
    """

    group: ClassVar[str] = "dataset"
    name: str = MISSING
    limit: int | None = option(None, at_least=1)
    per_category: int | None = option(None, at_least=1)
    skip_per_category: int = option(0, at_least=0)
    categories: list[str] = field(default_factory=list)
    seed: int | None = None
    shuffle: int | None = None

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

    name: str = "bundled"

    def read(self) -> list[Prompt]:
        """Return all 48 prompts."""
        return load_bundled()


@dataclass
class JsonlConfig(DatasetConfig):
    """A JSONL file in Spec-Bench's schema, or with a `prompt` on each line; `prompt_field` names another key."""

    name: str = "jsonl"
    path: str = MISSING
    prompt_field: str | None = None

    def read(self) -> list[Prompt]:
        """Return one prompt per line."""
        return load_jsonl(expanded(self.path, "dataset.path"), self.prompt_field)


@dataclass
class HumanEvalConfig(DatasetConfig):
    """HumanEval's 164 problems."""

    name: str = "humaneval"

    def read(self) -> list[Prompt]:
        """Return all 164 prompts."""
        return load_humaneval()


@dataclass
class HubConfig(DatasetConfig):
    """A dataset of the Hugging Face Hub, or a local dataset folder: `name` is the `path` of `datasets.load_dataset`."""

    name: str = MISSING
    split: str = "test"
    subset: str | None = None
    prompt_field: str = "prompt"
    revision: str | None = None

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
