"""Config schemas of the datasets: where each comes from, and which of its prompts are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option
from selfdraft.core.paths import expanded, expanded_name
from selfdraft.data import published
from selfdraft.data.prompts import Prompt, select
from selfdraft.data.published import MBPP_SPLITS, SPEED_SUBSETS, Origin
from selfdraft.data.sources import load_bundled, load_hub, load_humaneval, load_jsonl


@dataclass
class DatasetConfig(Options):
    """Which prompts to use; `data.prompts.select` says in which order the options are applied."""

    config_group: ClassVar[str] = "dataset"
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
    """A file of prompts or conversations: JSON, JSONL, Parquet or plain text."""

    name: str = choice_name("jsonl")
    path: str = option(MISSING, help="the file (a name that ends in .txt: a prompt on each line)")
    prompt_field: str | None = option(
        None,
        help="key that holds the prompt; null: the first of turns, prompt, messages, conversations and instruction",
    )

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
    prompt_field: str | None = option(
        None,
        help="column that holds the prompt, as text or as a list of turns or messages; null: the first of turns, "
        "prompt, messages, conversations and instruction",
    )
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


COPY = "a copy on this machine: a published file, or a folder that has it; null: the Hugging Face Hub"
REVISION = "branch, tag or commit on the hub; null: the newest"


@dataclass
class PublishedConfig(DatasetConfig):
    """A dataset with a name of its own, as it is published."""

    path: str | None = option(None, help=COPY)
    revision: str | None = option(None, help=REVISION)

    def origin(self, hub: str, split: str, subset: str | None = None, names: tuple[str, ...] = ()) -> Origin:
        """Return where the dataset is read from; for the arguments see `Origin`."""
        path = None if self.path is None else expanded(self.path, "dataset.path")
        return Origin(hub, split, subset, self.revision, path, names)


@dataclass
class Gsm8kConfig(PublishedConfig):
    """GSM8K's word problems."""

    name: str = choice_name("gsm8k")
    split: str = option("test", choices=("test", "train"), help="test (1,319 problems) or train (7,473)")

    def read(self) -> list[Prompt]:
        """Return a prompt and the final number for each problem."""
        return published.gsm8k(self.origin("openai/gsm8k", self.split, "main"))


@dataclass
class Math500Config(PublishedConfig):
    """500 problems of MATH."""

    name: str = choice_name("math500")

    def read(self) -> list[Prompt]:
        """Return a prompt and the boxed expression for each problem."""
        return published.math500(self.origin("HuggingFaceH4/MATH-500", "test"))


@dataclass
class MbppConfig(PublishedConfig):
    """MBPP's short Python tasks."""

    name: str = choice_name("mbpp")
    split: str = option("test", choices=tuple(MBPP_SPLITS), help=f"tasks by task_id: {', '.join(MBPP_SPLITS)}")
    subset: str = option(
        "full", choices=("full", "sanitized"), help="full (974 tasks) or sanitized (427, checked by hand)"
    )

    def read(self) -> list[Prompt]:
        """Return a prompt and the tests of each task."""
        names = ("mbpp.jsonl",) if self.subset == "full" else ("sanitized-mbpp.json",)
        return published.mbpp(self.origin("google-research-datasets/mbpp", self.split, self.subset, names))


@dataclass
class MtBenchConfig(PublishedConfig):
    """MT-bench's 80 questions of two turns."""

    name: str = choice_name("mt_bench")

    def read(self) -> list[Prompt]:
        """Return all questions."""
        return published.mt_bench(self.origin("HuggingFaceH4/mt_bench_prompts", "train", names=("question.jsonl",)))


@dataclass
class AlpacaConfig(PublishedConfig):
    """Alpaca's 52,002 instructions."""

    name: str = choice_name("alpaca")

    def read(self) -> list[Prompt]:
        """Return all instructions."""
        return published.alpaca(self.origin("tatsu-lab/alpaca", "train", names=("alpaca_data.json",)))


@dataclass
class SpecBenchConfig(DatasetConfig):
    """Spec-Bench's 480 questions of six families."""

    name: str = choice_name("spec_bench")
    path: str = option(
        MISSING, help="question.jsonl of github.com/hemingkx/Spec-Bench (data/spec_bench), or a folder that has it"
    )

    def read(self) -> list[Prompt]:
        """Return all questions."""
        path = expanded(self.path, "dataset.path")
        return published.spec_bench(Origin("", "question", path=path, names=("question.jsonl",)))


@dataclass
class SpeedBenchConfig(PublishedConfig):
    """NVIDIA's SPEED-Bench."""

    name: str = choice_name("speed_bench")
    subset: str = option(
        SPEED_SUBSETS[0],
        choices=SPEED_SUBSETS,
        help=f"{SPEED_SUBSETS[0]} (880 prompts of 11 families), or 1,536 prompts of one length: "
        f"{', '.join(SPEED_SUBSETS[1:])}",
    )

    def read(self) -> list[Prompt]:
        """Return all prompts of the subset."""
        return published.speed_bench(self.origin("nvidia/SPEED-Bench", "test", self.subset, (f"{self.subset}.jsonl",)))
