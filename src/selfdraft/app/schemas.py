"""The typed configuration: one dataclass per choice, registered as the schema of its YAML under conf/.

A wrong key or type fails when Hydra composes; a value out of range fails when the objects are made (see
`core.options`). Drafters have their own schemas: a new one needs no line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from selfdraft.app.schema_dataset import BundledConfig, DatasetConfig, HubConfig, HumanEvalConfig, JsonlConfig
from selfdraft.app.schema_model import (
    EmbeddedModelConfig,
    ModelConfig,
    PretrainedModelConfig,
    RandomModelConfig,
    TinyModelConfig,
)
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, option
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.models.stock import REFERENCES
from selfdraft.modules.calibrate import OBJECTIVES
from selfdraft.modules.finetune import RecipeConfig
from selfdraft.modules.recipes import RECIPES
from selfdraft.modules.search import METHODS


@dataclass
class TaskConfig(Options):
    """The task to run."""

    group: ClassVar[str] = "task"
    name: str = MISSING


@dataclass
class EvaluateConfig(TaskConfig):
    """Decode a dataset with the drafter and with the baseline, interleaved, and compare.

    `repeats`: how often each of them decodes each prompt. `references`: decoders outside SelfDraft to time as well.
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
    """Measure forwards after `context` tokens, each `rounds` times; with `grid`, other contexts and batches too."""

    name: str = "profile"
    rounds: int = option(5, at_least=1)
    context: int = option(256, at_least=1)
    grid: bool = True


@dataclass
class CalibrateTask(TaskConfig):
    """Search for the best skip set of drafter=layer_skip; its options are those of the group `calibrate`."""

    name: str = "calibrate"


@dataclass
class FinetuneTask(TaskConfig):
    """Train draft-only weights; the recipe is a choice of the group `finetune`."""

    name: str = "finetune"


@dataclass
class CalibrateConfig(Options):
    """How task=calibrate searches: see `modules.search` for the methods and `modules.calibrate` for the objectives.

    `trials` candidates are scored on `prompts` prompts of the dataset, each answered with `tokens` tokens. The `check`
    best ones then really decode, to compare predicted and measured speedups.
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
class DistillTask(TaskConfig):
    """Write the target's own answers as a dataset to train on; its options are those of the group `distill`."""

    name: str = "distill_data"


@dataclass
class DistillConfig(Options):
    """Options of task=distill_data.

    `trajectories`: also record the Jacobi iterates of the answers, in blocks of this many tokens, refined up to
    `passes` times (see `decoding.trajectories`); null: only the answers. `invented`: number of prompts, besides those
    of the dataset, that the model writes itself by sampling.
    """

    group: ClassVar[str] = "distill"
    name: str = "texts"
    trajectories: int | None = option(None, at_least=2)
    passes: int = option(6, at_least=1)
    invented: int = option(0, at_least=0)


@dataclass
class DecodingConfig(Options):
    """How answers are decoded.

    `batch_size`: how many prompts are decoded at once, each at its own pace; when one ends, the next takes its row.
    `stop`: texts that end an answer. `shape_invariant`: pad forwards so that a token's logits have the same bits in
    every block, whatever its size: the output is then that of autoregressive decoding in any dtype. `guard`: draft only
    where a speedup is predicted. Off by default, because a run measures the drafter itself.
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
class HardwareConfig(Options):
    """Lightning's accelerator, devices and strategy; `threads`: torch's threads per process (null: cores / processes).

    `tree_parallel`: the processes divide the branches of every tree among them, instead of the prompts.
    """

    group: ClassVar[str] = "hardware"
    name: str = option("cpu", choices=("cpu", "cpu_ddp", "gpu", "gpu_ddp"))
    accelerator: str = option("cpu", choices=("cpu", "gpu"))
    devices: int = option(1, at_least=1)
    strategy: str = option("auto", choices=("auto", "ddp"))
    threads: int | None = option(None, at_least=1, at_most=1024)
    tree_parallel: bool = False

    @property
    def torch_device(self) -> str:
        """The accelerator's name in torch."""
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
    """Where results are logged besides the run's folder. `mode`: W&B's; null: that of WANDB_MODE, otherwise offline."""

    group: ClassVar[str] = "logger"
    name: str = option("wandb", choices=("wandb", "csv", "none"))
    mode: str | None = option(None, choices=("offline", "online", "disabled"))
    project: str = "selfdraft"


@dataclass
class Config(Options):
    """The whole configuration.

    `prompt`: the text that generate and trace answer. `artifact`: the file or folder given as drafter.from.
    """

    defaults: list[Any] = field(default_factory=list)
    task: TaskConfig = MISSING
    model: ModelConfig = MISSING
    drafter: DrafterConfig = MISSING
    decoding: DecodingConfig = MISSING
    dataset: DatasetConfig = MISSING
    hardware: HardwareConfig = MISSING
    logger: LoggerConfig = MISSING
    calibrate: CalibrateConfig = MISSING
    finetune: RecipeConfig = MISSING
    distill: DistillConfig = MISSING
    seed: int = option(0, at_least=0, below=2**32)
    prompt: str | None = None
    artifact: str | None = None


SCHEMAS: dict[str, list[type[Options]]] = {
    "task": [EvaluateConfig, GenerateConfig, TraceConfig, ProfileConfig, CalibrateTask, DistillTask, FinetuneTask],
    "model": [EmbeddedModelConfig, PretrainedModelConfig, RandomModelConfig, TinyModelConfig],
    "drafter": [drafter.Config for drafter in PROPOSALS.values()],
    "drafter/path": [path.Config for path in PATHS.values()],
    "decoding": [DecodingConfig, SampleConfig],
    "dataset": [BundledConfig, JsonlConfig, HumanEvalConfig, HubConfig],
    "hardware": [HardwareConfig],
    "logger": [LoggerConfig],
    "calibrate": [CalibrateConfig],
    "finetune": [recipe.Config for recipe in RECIPES.values()],
    "distill": [DistillConfig],
}


def register_schemas() -> None:
    """Register all schemas under the names that the defaults lists in conf/ use, e.g. `schema/JacobiConfig`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for schema in schemas:
            store.store(group=f"{group}/schema", name=schema.__name__, node=schema)
