"""Loading a causal language model and its tokenizer, with every failure told in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from selfdraft.core.errors import UserError
from selfdraft.models.embedded import smollm2_135m
from selfdraft.models.tiny import tiny_model, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A stock model in eval mode, its tokenizer, and the ids that end its answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]


def load_embedded(dtype: str, device: torch.device) -> LoadedModel:
    """SmolLM2-135M-Instruct, downloaded and converted on first use."""
    return load_pretrained(str(smollm2_135m()), dtype, device)


def load_tiny(family: str, seed: int, dtype: str, device: torch.device) -> LoadedModel:
    """A random tiny model of one family with a byte tokenizer: nothing to download, nothing to understand."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, seed=seed, vocab_size=len(tokenizer), max_positions=4096, dtype=DTYPES[dtype])
    return LoadedModel(model.to(device), tokenizer, _ids(tokenizer.eos_token_id))


def load_random(path: str, seed: int, dtype: str, device: torch.device) -> LoadedModel:
    """A model of the shape that a folder's (or hub id's) config.json gives, its weights drawn on the device.

    Its text means nothing, and its seconds are those of any weights. The tokenizer is the tiny models' one.

    Raises:
        UserError: there is no such configuration, or its vocabulary holds no bytes.
    """
    tokenizer = tiny_tokenizer()
    with _quiet_transformers(), _told_in_one_line(path):
        config = _decoder_only_config(_source(path), None)
        if config.vocab_size < len(tokenizer):
            raise UserError(f"model.path={path}: vocab_size={config.vocab_size}, but bytes need {len(tokenizer)}")
        with torch.random.fork_rng(), device:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    return LoadedModel(model.eval(), tokenizer, frozenset())


def load_pretrained(path: str, dtype: str, device: torch.device, revision: str | None = None) -> LoadedModel:
    """Any causal LM from a folder or a hub id.

    Raises:
        UserError: naming what could not be loaded, and why.
    """
    source = _source(path)
    with _quiet_transformers(), _told_in_one_line(path):
        _decoder_only_config(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=DTYPES[dtype], output_loading_info=True
        )
        _refuse_made_up_weights(path, report)
        try:
            generation = GenerationConfig.from_pretrained(source, revision=revision)
        except OSError:  # many folders have none
            generation = model.generation_config
    model.eval()
    if device.type == "cpu":
        _into_memory(model)
    return LoadedModel(model.to(device), tokenizer, _ids(generation.eos_token_id) | _ids(tokenizer.eos_token_id))


def outline_pretrained(path: str, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the "meta" device: its configuration alone is read.

    Raises:
        UserError: as `load_pretrained` does, as far as the configuration tells.
    """
    source = _source(path)
    with _quiet_transformers(), _told_in_one_line(path), torch.device("meta"):
        return AutoModelForCausalLM.from_config(_decoder_only_config(source, revision))


def outline_embedded() -> PreTrainedModel:
    """SmolLM2-135M-Instruct without its weights; downloaded and converted on first use."""
    return outline_pretrained(str(smollm2_135m()))


def _source(path: str) -> str:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"model.path={path}: the folder has no config.json; give a Hugging Face model folder")
    if not folder.is_dir() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise UserError(f"model.path={path}: no such folder; give a Hugging Face model folder or a hub id (owner/name)")
    return str(folder) if folder.is_dir() else path


def _decoder_only_config(source: str, revision: str | None) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(source, revision=revision)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model family '{config.model_type}' is not supported: it is an encoder-decoder")
    return config


def _refuse_made_up_weights(path: str, report: dict) -> None:
    """transformers initialises at random what a checkpoint lacks, and only warns."""
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"model.path={path}: the checkpoint lacks {len(lacking)} of the weights that its config.json asks for "
            f"({lacking[0]}, …): they would be random; give a complete folder"
        )


def _into_memory(model: PreTrainedModel) -> None:
    """Own copies of memory-mapped weights: otherwise the first forwards pay page faults, and pages may be dropped."""
    for tensor in (*model.parameters(), *model.buffers()):  # tied parameters come once, and stay tied
        tensor.data = tensor.data.clone()


def _ids(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


@contextmanager
def _told_in_one_line(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model.path={path}: cannot be loaded as a causal language model ({reason})") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No per-tensor bars and load reports; restored afterwards."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
