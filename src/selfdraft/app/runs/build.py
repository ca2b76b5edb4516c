"""Build the objects of a run from its configuration."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import DictConfig, OmegaConf, flag_override
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from selfdraft.app.options.schema_model import EMBEDDED
from selfdraft.app.options.schemas import Config, DecodingConfig, HardwareConfig, ModelConfig, SampleConfig
from selfdraft.app.runs.references import arbiters_for, reference_for
from selfdraft.app.terminal.console import make_console
from selfdraft.app.terminal.ranks import OWN_CORES
from selfdraft.core.errors import UserError
from selfdraft.core.heartbeat import busy
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.tree_parallel import TreeParallelTarget, shared_costs
from selfdraft.drafters.base import PathDrafterConfig
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.presets import is_tensor_parallel, is_tree_parallel
from selfdraft.drafters.specs import Spec
from selfdraft.models.engines.choice import COMPILED, EAGER, NATIVE, use_engine
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.target import Target
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import AUTO, DTYPES, StockModel, fitting_dtype
from selfdraft.models.measuring.memory import PeakMemory, needed, refuse_what_cannot_fit
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.models.reference.invariance import make_shape_invariant
from selfdraft.models.reference.processors import repetition_penalty
from selfdraft.modules.bench import BASELINE, DRAFTER, Bench
from selfdraft.modules.online import learns
from selfdraft.tracking.files.artifact import Artifact

Made = TypeVar("Made")


def settled(composed: DictConfig) -> DictConfig:
    """Return the configuration with model.dtype=auto replaced by the dtype that fits this machine.

    The run's config.yaml then names that dtype. So the run cannot be resumed with another one on another machine.
    """
    if OmegaConf.select(composed, "model.dtype", default=None) != AUTO:
        return composed
    decided = copy.deepcopy(composed)
    with flag_override(decided, ["readonly", "struct"], False):
        on_gpu = OmegaConf.select(decided, "hardware.accelerator", default="cpu") == "gpu"
        # The default model's values are those of a file with 4 and 8 bits a weight.
        few_bits = decided.model.name == EMBEDDED and decided.model.get("engine", AUTO) in (AUTO, NATIVE)
        decided.model.dtype = fitting_dtype(torch.device("cuda" if on_gpu else "cpu"), few_bits)
    return decided


def measured_config(composed: DictConfig) -> dict:
    """Return the options that affect a measurement; a run is resumed only with the same ones.

    The logger's do not, nor do those of scores, so that a finished run can still be scored.
    """
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in ("logger", "score")}


def build_bench(
    config: Config, device: torch.device, references: list[str], specs: Mapping[str, Spec] | None = None
) -> Bench:
    """Load the model, and return the bench with the decoders that an evaluation or a comparison times.

    Args:
        references: names of decoders outside SelfDraft.
        specs: our contenders besides plain decoding, by name; by default the configured drafter.

    Raises:
        UserError: the model cannot be loaded or is not supported; an option does not fit the model or another option.
    """
    plain = DecodingConfig(
        max_new_tokens=config.decoding.max_new_tokens,
        shape_invariant=config.decoding.shape_invariant,
        guard=config.decoding.guard,
    )
    decoding, batch_size = config.decoding, config.decoding.batch_size
    if references and batch_size > 1:
        raise UserError(
            "decoders outside SelfDraft answer prompt by prompt: compare with them at decoding.batch_size=1"
        )
    if config.decoding.shape_invariant and batch_size > 1:
        raise UserError(
            f"decoding.shape_invariant=true decodes one prompt at a time: use decoding.batch_size=1, not {batch_size}"
        )
    if references and config.decoding != plain:
        raise UserError(
            "decoders outside SelfDraft decode greedily, and end by length or end of sequence only: leave the other "
            "options out"
        )
    specs = {DRAFTER: Spec(config.drafter, decoding.guard)} if specs is None else specs
    one_by_one = ""
    if any(learns(spec.config) for spec in specs.values()):
        if config.task.name != "evaluate":
            raise UserError("drafter.learn=true: only task=evaluate learns while it decodes; leave it out")
        one_by_one = "drafter.learn=true changes weights, of which other engines than eager have copies"
    memory, tell = PeakMemory(device), rank_zero_only(make_console().print)
    with memory("load"):
        parts = config.hardware.tensor_parallel
        if parts:
            refuse_parts(config, specs)
        if config.model.placed:
            _refuse_own_matrices("model.device_map", _contenders(config, specs))
        with busy(f"loading {config.model.label}", tell):
            loaded, load_s = timed(lambda: config.model.load(device, shared=parts))
        model = replace(config.model, engine=EAGER, packed=False) if parts else config.model
        with busy("packing the matrices and preparing the engine", tell):
            (whole, engine), compile_s = timed(
                lambda: build_target(model, loaded.model, invariant=decoding.shape_invariant, one_by_one=one_by_one)
            )
    print_of_model = refuse_other_model(config, loaded.model)
    chat = Chat(loaded.tokenizer)
    rule = _rule(decoding, loaded.eos)
    if decoding.shape_invariant:
        make_shape_invariant(whole)
    costs = costs_on(whole, by_clock=not config.hardware.together)
    # Each process certifies by itself, so that its verdicts do not depend on the other processes' rounding.
    certifier = Certifier(whole, rule, batch_size=batch_size)
    target: TargetProtocol = whole
    if config.hardware.together:
        costs = shared_costs(costs)
    if config.hardware.tree_parallel:
        target = _shared(whole, config)
    stopping = Stopping(loaded.eos, decoding.max_new_tokens, tuple(decoding.stop), chat.decode)
    with busy("measuring what forwards cost here, and preparing the drafters", tell):
        made = {name: timed(partial(spec.drafter, target, costs)) for name, spec in specs.items()}
    drafters = {name: drafter for name, (drafter, _) in made.items()}
    for line in dict.fromkeys(drafter.said for drafter in drafters.values() if drafter.said):
        tell(line)
    drafters.setdefault(BASELINE, NoDrafter(target, NoDrafter.Config(), costs))
    return Bench(
        chat=chat,
        decoders={
            name: Decoder(target, drafter, stopping, rule=rule, batch_size=batch_size, memory=memory)
            for name, drafter in drafters.items()
        },
        certifier=certifier,
        references={name: reference_for(name, loaded, config, device) for name in references},
        arbiters=arbiters_for(references, config),
        memory=memory,
        fingerprint=print_of_model,
        engine=engine,
        load_s=load_s,
        compile_s=compile_s,
        prepare_s={name: seconds for name, (_, seconds) in made.items()},
    )


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    """Do some work; return its result and the seconds that it took."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


def build_target(
    config: ModelConfig, model: StockModel, *, invariant: bool = False, one_by_one: str = ""
) -> tuple[Target, str]:
    """Return the target of a loaded model, and a line that says which engine runs it and why.

    Args:
        invariant: whether a token's bits must not depend on the block that computes it.
        one_by_one: why layers have to be run one by one; empty if they need not.

    Raises:
        UserError: the model is not supported, or not by the engine that is asked for.
    """
    if config.placed:  # packed matrices and engines would need all weights in one place
        config = replace(config, engine=EAGER, packed=False)
    target = target_of(model, packed=config.packed, attention=config.attention)
    tell = rank_zero_only(make_console().print)
    engine = use_engine(target, config.engine, one_by_one, tell, config.weights, invariant)
    return target, engine


def _shared(target: Target, config: Config) -> TreeParallelTarget:
    """Return the target of one of the processes that divide every tree among them."""
    if not is_tree_parallel(config.drafter):
        raise UserError(
            f"hardware.tree_parallel: drafter={config.drafter.label} reads the whole cache, of which no process has "
            "all; leave one of them out"
        )
    if config.decoding.guard:
        raise UserError("hardware.tree_parallel: every process would guard by its own clock; use decoding.guard=false")
    if target.chains_only:
        raise UserError(
            "hardware.tree_parallel shares out branches, and decoding.shape_invariant allows but one: leave one out"
        )
    if not torch.distributed.is_initialized():
        raise UserError("hardware.tree_parallel needs its processes, and only task=evaluate starts them")
    return TreeParallelTarget(target)


def refuse_parts(config: Config, specs: Mapping[str, Spec] | None) -> None:
    """Refuse what is not computed by processes that have a part of every matrix each.

    Args:
        specs: our contenders besides plain decoding; by default the configured drafter.

    Raises:
        UserError: a drafter makes copies of matrices; the guard goes by each process's clock; there are no processes.
    """
    contenders = _contenders(config, specs)
    _refuse_own_matrices("hardware.tensor_parallel", contenders)
    if any(spec.guarded for spec in contenders):
        raise UserError("hardware.tensor_parallel: every process would guard by its own clock; guard nothing")
    if config.decoding.shape_invariant:
        raise UserError(
            "hardware.tensor_parallel: decoding.shape_invariant needs whole matrices; leave one of them out"
        )
    if not torch.distributed.is_initialized():
        raise UserError("hardware.tensor_parallel needs its processes, which task=evaluate and task=compare start")


def _contenders(config: Config, specs: Mapping[str, Spec] | None) -> list[Spec]:
    return [Spec(config.drafter, config.decoding.guard)] if specs is None else list(specs.values())


def _refuse_own_matrices(option: str, contenders: list[Spec]) -> None:
    """Refuse drafters that make matrices from the model's, all of which are then in no single place.

    Raises:
        UserError: there is one.
    """
    for spec in contenders:
        if not is_tensor_parallel(spec.config):
            raise UserError(
                f"{option}: drafter={spec.config.label} has matrices of its own, which are not divided; leave one of "
                "them out"
            )


def refuse_other_model(config: Config, model: StockModel) -> str:
    """Return the fingerprint of the model, which must be the one that the artifact given as drafter.from is for.

    Raises:
        UserError: the artifact is for another model.
    """
    found = fingerprint(model)
    if config.artifact is not None:
        artifact = Artifact.read(Path(config.artifact))
        artifact.refuse_other_model(f"drafter.from={config.artifact}", config.model.label, found)
    return found


def refuse_a_run_that_cannot_fit(config: Config, *, certify: bool, rows: int | None = None) -> None:
    """Refuse a run whose memory the machine does not have, before the model is loaded or other processes start.

    Args:
        certify: whether outputs will be certified; dtypes narrower than float32 then need a float32 copy of the model.
        rows: number of texts that are in the cache at once; None for decoding.batch_size.

    Raises:
        UserError: the run does not fit; the message has the numbers. Or several processes would each divide the model.
    """
    if config.model.placed and config.hardware.devices > 1:
        raise UserError("model.device_map divides a model within one process: use hardware.devices=1")
    device, outline = torch.device(config.hardware.torch_device), config.model.outline()
    refuse_layers_that_do_not_exist(config, outline.config.get_text_config().num_hidden_layers)
    # On a CPU, every process first loads the whole model into the memory that all of them share.
    sharded = config.hardware.shard_base and device.type == "cuda"
    need = needed(
        outline,
        DTYPES[config.model.dtype],
        device,
        rows=config.decoding.batch_size if rows is None else rows,
        packed=config.model.packed and not config.hardware.tensor_parallel and not config.model.placed,
        compiled=config.model.engine == COMPILED,  # auto does without where there is no room
        new_tokens=config.decoding.max_new_tokens,
        certify=certify and not isinstance(config.decoding, SampleConfig),
        parts=config.hardware.devices if config.hardware.tensor_parallel or sharded else 1,
    )
    processes = 1 if device.type == "cuda" else config.hardware.devices
    if not config.model.on_disk:  # there, what fits into no memory finds its place
        refuse_what_cannot_fit(need, device, processes, everywhere=config.model.placed)


def refuse_layers_that_do_not_exist(config: Config, layers: int) -> None:
    """Refuse layer numbers that a model of `layers` layers does not have, before its weights are loaded.

    Raises:
        UserError: the drafter's path, or the fine-tuning, names such a layer.
    """
    if isinstance(config.drafter, PathDrafterConfig):
        config.drafter.path.refuse_missing_layers(layers)
    if config.task.name == "finetune":
        config.finetune.refuse_missing_layers(layers)


def _rule(decoding: DecodingConfig, eos: frozenset[int]) -> NextToken:
    """Return the sampling rule."""
    penalty = decoding.repetition_penalty
    rule = NextToken(
        eos=eos,
        min_new_tokens=decoding.min_new_tokens,
        processors=() if penalty is None else (repetition_penalty(penalty),),
    )
    if not isinstance(decoding, SampleConfig):
        return rule
    return replace(
        rule,
        sample=True,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_p=decoding.min_p,
    )


def use_threads(hardware: HardwareConfig) -> None:
    """Divide the cores among this machine's processes: two that each use all of them slow each other down severely."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable = min(usable, torch.get_num_threads())  # OMP_NUM_THREADS may ask for fewer
    sharing = 1 if OWN_CORES in os.environ else hardware.devices
    torch.set_num_threads(hardware.threads or max(1, usable // sharing))
