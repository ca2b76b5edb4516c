"""The options of each task: one dataclass per choice of the group `task`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option
from selfdraft.models.reference.others import ENGINES, ONNX_FOLDER, OTHERS
from selfdraft.models.reference.served import SERVED, server_address
from selfdraft.models.reference.stock import REFERENCES

CANDIDATES = (  # of task=advise
    "jacobi",
    "lookahead",
    "prompt_lookup",
    "suffix",
    "recycling",
    "recycling nodes=16",
    "pool",
    "layer_skip",
    "early_exit",
    "low_bit",
)


@dataclass
class TaskConfig(Options):
    """The task to run."""

    config_group: ClassVar[str] = "task"
    name: str = choice_name(MISSING)


@dataclass
class EvaluateConfig(TaskConfig):
    """Decode a dataset with the drafter and with the baseline, interleaved, and compare."""

    name: str = choice_name("evaluate")
    repeats: int = option(
        1,
        at_least=1,
        help="how often the drafter and plain decoding each decode every prompt; more make the intervals of the "
        "speedup narrower",
    )
    references: list[str] = option(
        [], choices=REFERENCES, help=f"decoders outside SelfDraft to time as well: {', '.join(REFERENCES)}"
    )


@dataclass
class CompareConfig(TaskConfig):
    """Decode a dataset with any number of contenders, interleaved, and rank them."""

    name: str = choice_name("compare")
    contenders: list[str] = option(
        ["none", "jacobi", "pool"],
        help='drafters with their options, e.g. "pool sources=[suffix]" or "guarded swift", and decoders outside '
        f"SelfDraft: {', '.join((*REFERENCES, *OTHERS))}; plain decoding, none, always takes part",
    )
    repeats: int = option(1, at_least=1, help="how often each contender decodes every prompt")
    runs: list[str] = option(
        [], help="folders of finished runs of task=evaluate or task=compare, which are shown beside the contenders"
    )
    gguf: str | None = option(
        None, help="GGUF file for llama_cpp and openvino; null: that of the default model, which has its values"
    )
    onnx: str | None = option(
        None, help="folder for onnx_genai, made of your model by the model builder of ONNX Runtime GenAI"
    )
    server: str | None = option(
        None, help="address of the running server that vllm sends prompts to, e.g. http://localhost:8000/v1"
    )
    python: str | None = option(
        None, help="interpreter of an environment that has the packages of other engines; null: this one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None:
            server_address(self.server)
        for name in (" ".join(text.split()) for text in self.contenders):
            if name == SERVED and self.server is None:
                raise UserError(f"{name}: give the address of its server, e.g. task.server=http://localhost:8000/v1")
            if name in ENGINES and ENGINES[name].reads == ONNX_FOLDER and self.onnx is None:
                raise UserError(
                    f"{name} reads a folder of its own format: make one of your model with python -m "
                    "onnxruntime_genai.models.builder, and give it as task.onnx"
                )


@dataclass
class AdviseConfig(TaskConfig):
    """Find out whether this model should draft for itself on this machine, and how."""

    name: str = choice_name("advise")
    candidates: list[str] | None = option(
        None,
        help="drafters with their options, as in task.contenders of task=compare; a path's size and draft lengths that "
        f"are not given are chosen; null: {', '.join(CANDIDATES)}",
    )
    prompts: int = option(
        20,
        at_least=1,
        help="number of prompts: all candidates are predicted from one decoding of these, and the best ones decode "
        "them",
    )
    tried: int = option(
        6, at_least=1, help="number of prompts for candidates that cannot be predicted, and so have to decode"
    )
    confirmed: int = option(
        3, at_least=1, help="number of best predicted candidates that then decode all prompts, to confirm the choice"
    )


@dataclass
class DoctorConfig(TaskConfig):
    """Show what works for this model on this machine, and why the rest does not."""

    name: str = choice_name("doctor")


@dataclass
class GenerateConfig(TaskConfig):
    """Stream one answer."""

    name: str = choice_name("generate")
    certify: bool = option(
        True,
        help="true: also decode the answer without drafts and compare, which takes as long again or more; false: "
        "only the answer",
    )


@dataclass
class TraceConfig(TaskConfig):
    """Show every step of one answer."""

    name: str = choice_name("trace")
    branches: int = option(
        4,
        at_least=0,
        help="maximum number of rejected branches that are shown below a step; trace.json holds all of them",
    )


@dataclass
class ProfileConfig(TaskConfig):
    """Measure the cost of forwards and their parts on this machine."""

    name: str = choice_name("profile")
    rounds: int = option(
        5,
        at_least=1,
        help="how often each forward is timed, in turn with the others, so that a busy moment does not decide",
    )
    context: int = option(256, at_least=1, help="number of tokens in the cache before each forward")
    grid: bool = option(True, help="true: also measure other context lengths and batch sizes, which takes longer")


@dataclass
class CalibrateTask(TaskConfig):
    """Search for the best skip set of drafter=layer_skip; its options are those of the group `calibrate`."""

    name: str = choice_name("calibrate")


@dataclass
class FinetuneTask(TaskConfig):
    """Train draft-only weights; the recipe is a choice of the group `finetune`."""

    name: str = choice_name("finetune")


PEFT, SPECULATORS = "peft", "speculators"


@dataclass
class ExportConfig(TaskConfig):
    """Write the weights of the task=finetune run given as drafter.from in a format that other programs load."""

    name: str = choice_name("export")
    format: str = option(
        PEFT,
        choices=(PEFT, SPECULATORS),
        help="peft (an adapter: any recipe's LoRA, layers and norm) or speculators (a checkpoint that vLLM loads: a "
        "jump with one copy)",
    )
    to: str | None = option(None, help="folder to write; null: a folder in the run's folder, named by the format")
    push_to_hub: str | None = option(
        None, help="owner/name of a model repository to upload the folder to, new ones private; null: no upload"
    )


@dataclass
class DistillTask(TaskConfig):
    """Write the target's own answers as a dataset to train on; its options are those of the group `distill`."""

    name: str = choice_name("distill_data")


@dataclass
class ReportConfig(TaskConfig):
    """Write one HTML page about finished runs."""

    name: str = choice_name("report")
    runs: list[str] = option([], help="folders of runs and sweeps, or patterns of them: 'task.runs=[outputs/*]'")
    others: list[str] = option(
        [], help="results of other programs to show beside ours: JSONL files in Spec-Bench's form"
    )
    others_plain: str | None = option(
        None, help="the same of plain decoding by those programs, for their speedups; null: no speedups of theirs"
    )
    spec_bench: bool = option(
        False, help="true: also write the answers of all runs in Spec-Bench's form, for its speed.py and equal.py"
    )


@dataclass
class AuditTask(TaskConfig):
    """Check the outputs of any engine against the model; its options are those of the group `audit`."""

    name: str = choice_name("audit")
