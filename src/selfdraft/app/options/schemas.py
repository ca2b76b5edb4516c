"""The typed configuration: one dataclass per choice, registered as the schema of its YAML under conf/.

A wrong key or type fails when Hydra composes; a value out of range fails when the objects are made (see
`core.options`). Drafters have their own schemas: a new one needs no line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from omegaconf import MISSING

from selfdraft.app.options.schema_audit import AuditConfig
from selfdraft.app.options.schema_dataset import (
    AlpacaConfig,
    BundledConfig,
    DatasetConfig,
    Gsm8kConfig,
    HubConfig,
    HumanEvalConfig,
    JsonlConfig,
    Math500Config,
    MbppConfig,
    MtBenchConfig,
    SpecBenchConfig,
    SpeedBenchConfig,
)
from selfdraft.app.options.schema_drafter import AutoConfig
from selfdraft.app.options.schema_model import (
    EmbeddedModelConfig,
    ModelConfig,
    PretrainedModelConfig,
    RandomModelConfig,
    TinyModelConfig,
)
from selfdraft.app.options.schema_score import ScoreConfig
from selfdraft.app.options.schema_tasks import (
    AdviseConfig,
    AuditTask,
    CalibrateTask,
    CompareConfig,
    DistillTask,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneTask,
    GenerateConfig,
    ProfileConfig,
    ReportConfig,
    TaskConfig,
    TraceConfig,
)
from selfdraft.app.terminal.option_index import register
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option
from selfdraft.data.mixing import HOW
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.modules.calibrate import OBJECTIVES
from selfdraft.modules.recipe_options import RecipeConfig
from selfdraft.modules.recipes import RECIPES
from selfdraft.modules.search import METHODS


@dataclass
class CalibrateConfig(Options):
    """How task=calibrate searches: see `modules.search` for the methods and `modules.calibrate` for the objectives."""

    config_group: ClassVar[str] = "calibrate"
    name: str = choice_name("search")
    method: str = option(
        "bayes",
        choices=METHODS,
        help="how sublayers to skip are chosen: importance (score each sublayer alone, then skip the least harmful "
        "ones together), random, bayes (TPE), evolution (NSGA-II) or dp (whole layers only, by dynamic programming "
        "over hidden states)",
    )
    objective: str = option(
        "tokens_per_s",
        choices=OBJECTIVES,
        help="what is maximised: tokens_per_s (predicted from the measured costs on this machine) or matchness "
        "(share of tokens on which the drafting layers agree with the target, at drafter.path.sparsity)",
    )
    trials: int = option(
        120,
        at_least=1,
        help="number of sets of skipped sublayers that are tried, each by one forward per prompt; more take longer and "
        "may find better ones",
    )
    prompts: int = option(
        6, at_least=1, help="number of prompts on which a set is scored, spread evenly over the dataset"
    )
    tokens: int = option(
        64, at_least=4, help="tokens of each prompt's answer, which the model writes itself before the search"
    )
    check: int = option(
        5,
        at_least=0,
        help="number of best sets with which texts are then really decoded, to check the predicted speedup",
    )


@dataclass
class DistillConfig(Options):
    """What task=distill_data records; see `decoding.trajectories` for the Jacobi iterates."""

    config_group: ClassVar[str] = "distill"
    name: str = choice_name("texts")
    trajectories: int | None = option(
        None,
        at_least=2,
        help="for finetune=consistency: also record how guesses become the answer, in blocks of this many tokens, "
        "e.g. 16 (the Jacobi iterates); null: record only the answers",
    )
    passes: int = option(
        6,
        at_least=1,
        help="with trajectories, maximum number of times that a block is refined; as many as it has tokens make "
        "all of them right",
    )
    invented: int = option(
        0,
        at_least=0,
        help="number of prompts that the model writes itself, besides those of the dataset, where there are too "
        "few; needs decoding=sample",
    )
    samples: int = option(
        1,
        at_least=1,
        help="number of answers to each prompt, drawn independently; a prompt is invented and prefilled once for all "
        "of them; more than one needs decoding=sample",
    )
    rows: int | None = option(
        None,
        at_least=1,
        help="texts written at once; null: decoding.batch_size if that is not 1, otherwise as many as measured "
        "forwards and the free memory allow",
    )
    sources: list[str] = option(
        [],
        help=f"several sources in place of the dataset; {HOW}",
    )
    prompts: int | None = option(
        None, at_least=1, help="with sources, number of texts in all; null: as many as the sources have in these shares"
    )
    held_out: list[str] = option([], help="families or categories of which no prompt is used, in all sources")


@dataclass
class DecodingConfig(Options):
    """How answers are decoded. The guard is off by default, because a run measures the drafter itself."""

    config_group: ClassVar[str] = "decoding"
    name: str = choice_name("greedy")
    max_new_tokens: int = option(128, at_least=1, help="maximum number of tokens of an answer")
    min_new_tokens: int = option(
        0,
        at_least=0,
        help="answers do not end before they have this many tokens; for benchmarks with answers of equal length",
    )
    repetition_penalty: float | None = option(
        None, at_least=0.01, help="makes tokens that occurred before less likely, by this factor, e.g. 1.1; null: off"
    )
    stop: list[str] = option([], help='texts that end an answer, e.g. ["\\n\\n"]')
    shape_invariant: bool = option(
        False,
        help="true: the output is that of plain decoding to the bit, in any dtype: forwards are padded so that "
        "rounding does not depend on their size. For low-precision models whose texts must not differ at all; "
        "chains only, and on a CPU packed matrices",
    )
    batch_size: int = option(
        1,
        at_least=1,
        help="prompts decoded at once, each at its own pace; when one ends, the next takes its place. More give "
        "more tokens per second in all, but each answer takes longer",
    )
    guard: bool = option(
        False, help="true: draft only where that is predicted to pay, to be no slower than plain decoding"
    )

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

    name: str = choice_name("sample")
    temperature: float = option(
        1.0,
        at_least=0.01,
        help="divides the logits: below 1 likely tokens become likelier, above 1 texts become more varied",
    )
    top_k: int | None = option(None, at_least=1, help="draw from only this many most probable tokens; null: all")
    top_p: float | None = option(
        None,
        at_least=0.0001,
        at_most=1.0,
        help="draw from the fewest most probable tokens whose probabilities add up to this; null: all",
    )
    min_p: float | None = option(
        None,
        at_least=0.0,
        at_most=1.0,
        help="leave out tokens less probable than this share of the most probable one; null: none",
    )


@dataclass
class HardwareConfig(Options):
    """Where a run computes: the device, and the number of its processes and threads."""

    config_group: ClassVar[str] = "hardware"
    name: str = choice_name("cpu", choices=("cpu", "cpu_ddp", "gpu", "gpu_ddp", "gpu_fsdp"))
    accelerator: str = option("cpu", choices=("cpu", "gpu"), help="Lightning's accelerator: cpu or gpu")
    devices: int = option(1, at_least=1, help="number of processes, each with a GPU or a share of the cores")
    strategy: str = option(
        "auto", choices=("auto", "ddp"), help="Lightning's strategy: auto (one process) or ddp (several)"
    )
    threads: int | None = option(
        None,
        at_least=1,
        at_most=1024,
        help="torch's threads in each process; null: the cores, divided by the processes",
    )
    tree_parallel: bool = option(
        False,
        help="true: all processes work on the same prompt, and each verifies some branches of every draft; for "
        "large trees",
    )
    tensor_parallel: bool = option(
        False,
        help="true: all processes work on the same prompt, and each has a part of every matrix, as transformers' "
        "plan for the architecture says; for models too large for one device",
    )
    shard_base: bool = option(
        False,
        help="true, in task=finetune: each process holds a part of every layer of the frozen model, whatever the "
        "recipe; for models whose layers do not fit on each device",
    )

    @property
    def together(self) -> bool:
        """Whether all processes work on the same prompt."""
        return self.tree_parallel or self.tensor_parallel

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
        for name, shared in (("tree_parallel", "trees"), ("tensor_parallel", "matrices"), ("shard_base", "layers")):
            if getattr(self, name) and self.devices == 1:
                raise UserError(
                    f"hardware.{name}=true shares {shared} among processes, and hardware.devices=1 is one: "
                    f"use hardware={self.accelerator}_ddp"
                )
        if self.tree_parallel and self.tensor_parallel:
            raise UserError("hardware: trees are shared out, or matrices: leave tree_parallel or tensor_parallel out")
        if self.shard_base and self.together:
            raise UserError(
                "hardware.shard_base=true is for task=finetune, where no process decodes: leave tree_parallel and "
                "tensor_parallel out"
            )
        if self.accelerator == "gpu":
            found = torch.cuda.device_count()
            if self.devices > found:
                raise UserError(
                    f"hardware={self.name} asks for {self.devices} GPU(s), but torch sees {found}: use hardware=cpu"
                )


@dataclass
class LoggerConfig(Options):
    """Where results are logged besides the run's folder."""

    config_group: ClassVar[str] = "logger"
    name: str = choice_name("wandb", choices=("wandb", "tensorboard", "mlflow", "csv", "none"))
    mode: str | None = option(
        None,
        choices=("offline", "online", "disabled"),
        help="W&B's mode: offline, online or disabled; null: the value of WANDB_MODE, otherwise offline",
    )
    project: str = option("selfdraft", help="W&B's project, or MLflow's experiment")
    entity: str | None = option(None, help="W&B's account or team; null: your own")
    group: str | None = option(
        None, help="the group that W&B lists the run in; null: the name of the sweep's folder, or none"
    )
    tags: list[str] = option([], help="tags besides those of the drafter, the model and the dataset, e.g. [paper]")
    notes: str | None = option(None, help="a text that W&B shows with the run")


@dataclass
class Config(Options):
    """The whole configuration: a choice of every group, and options of no group."""

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
    score: ScoreConfig = MISSING
    audit: AuditConfig = MISSING
    seed: int = option(
        0,
        at_least=0,
        below=2**32,
        help="seed of everything random: sampling, initial guesses, training, bootstrap intervals",
    )
    prompt: str | None = option(None, help="the prompt that task=generate and task=trace answer")
    artifact: str | None = option(
        None,
        help="set by drafter.from=PATH, which loads the result of task=calibrate or task=finetune; no need to set it",
    )


SCHEMAS: dict[str, list[type[Options]]] = {
    "task": [
        EvaluateConfig,
        CompareConfig,
        AdviseConfig,
        DoctorConfig,
        GenerateConfig,
        TraceConfig,
        ProfileConfig,
        CalibrateTask,
        DistillTask,
        FinetuneTask,
        ExportConfig,
        AuditTask,
        ReportConfig,
    ],
    "model": [EmbeddedModelConfig, PretrainedModelConfig, RandomModelConfig, TinyModelConfig],
    "drafter": [AutoConfig, *(drafter.Config for drafter in PROPOSALS.values())],
    "drafter/path": [path.Config for path in PATHS.values()],
    "decoding": [DecodingConfig, SampleConfig],
    "dataset": [
        BundledConfig,
        JsonlConfig,
        HumanEvalConfig,
        HubConfig,
        Gsm8kConfig,
        Math500Config,
        MbppConfig,
        MtBenchConfig,
        AlpacaConfig,
        SpecBenchConfig,
        SpeedBenchConfig,
    ],
    "hardware": [HardwareConfig],
    "logger": [LoggerConfig],
    "calibrate": [CalibrateConfig],
    "finetune": [recipe.Config for recipe in RECIPES.values()],
    "distill": [DistillConfig],
    "score": [ScoreConfig],
    "audit": [AuditConfig],
}


def register_schemas() -> None:
    """Register all schemas, in place of those of the index (see `option_index`)."""
    register(SCHEMAS, Config)
