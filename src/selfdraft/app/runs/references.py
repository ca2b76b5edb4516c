"""Decoders outside SelfDraft, as contenders beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selfdraft.app.options.schema_model import EmbeddedModelConfig, PretrainedModelConfig
from selfdraft.app.options.schema_tasks import CompareConfig
from selfdraft.app.options.schemas import Config, ModelConfig
from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json
from selfdraft.core.paths import expanded
from selfdraft.decoding.certify import Certifier
from selfdraft.models.families.anatomy import position_limit, text_config
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.weights import INT4, SAME
from selfdraft.models.loading.checkpoint import located
from selfdraft.models.loading.embedded import smollm2_135m
from selfdraft.models.loading.embedded_gguf import smollm2_135m_gguf
from selfdraft.models.loading.gguf import read_gguf
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.reference.others import ENGINES, GGUF, ONNX_FOLDER, OtherEngine
from selfdraft.models.reference.served import SERVED, ServedEngine
from selfdraft.models.reference.stock import IN_4_BITS, OTHER_VALUES, REFERENCES, SAME_VALUES, StockGenerate

ONNX_CONFIG = "genai_config.json"
MAX_ONNX_CONFIG = 10_000_000  # bytes


def reference_for(
    name: str, loaded: LoadedModel, config: Config, device: torch.device
) -> StockGenerate | OtherEngine | ServedEngine:
    """Return transformers' decoder, a server, or another engine, which has then loaded its file.

    An engine's texts are judged only where its weights have the very values of ours (see `models.reference.stock`).

    Raises:
        UserError: the engine's package is not installed, it cannot load its file, or no server answers.
    """
    new_tokens = config.decoding.max_new_tokens
    if name in REFERENCES:
        return StockGenerate(loaded, name, new_tokens)
    task = config.task
    assert isinstance(task, CompareConfig)
    positions, eos = position_limit(text_config(loaded.model)), sorted(loaded.eos)
    if name == SERVED:
        assert task.server is not None  # CompareConfig has checked it
        return ServedEngine(task.server, max_new_tokens=new_tokens, positions=positions, eos=eos)
    if device.type != "cpu":
        raise UserError(f"{name} is compared on a CPU only")
    source: Path | str
    settings: Mapping[str, Any] = {}
    if ENGINES[name].reads == GGUF:
        source, weights = _gguf(name, task, config.model)
    elif ENGINES[name].reads == ONNX_FOLDER:
        source, weights = _onnx(task), OTHER_VALUES
    else:
        source, weights, settings = _model_folder(name, config.model)
    return OtherEngine(
        name,
        source,
        max_new_tokens=new_tokens,
        positions=positions,
        eos=eos,
        threads=torch.get_num_threads(),
        python=task.python,
        weights=weights,
        settings=settings,
    )


def arbiters_for(names: Sequence[str], config: Config) -> dict[str, Certifier | str]:
    """Return who judges the texts of engines that read a GGUF file of the user's: the model with that file's values.

    Returns:
        By name, a certifier; or a line that says why there is none, if the file or the family cannot be read here.
    """
    task = config.task
    readers = [name for name in names if name in ENGINES and ENGINES[name].reads == GGUF]
    if not readers or not isinstance(task, CompareConfig) or task.gguf is None:
        return {}
    arbiter: Certifier | str
    try:
        arbiter = Certifier(Target(read_gguf(expanded(task.gguf, "task.gguf"))))
    except UserError as error:
        arbiter = str(error)
    return dict.fromkeys(readers, arbiter)


def _gguf(name: str, task: CompareConfig, model: ModelConfig) -> tuple[Path, str]:
    """Return the GGUF file to read, and its weight class.

    Raises:
        UserError: there is none.
    """
    if task.gguf is not None:
        file = expanded(task.gguf, "task.gguf")
        if not file.is_file():
            raise UserError(f"task.gguf={task.gguf}: there is no such file")
        return file, OTHER_VALUES
    if not isinstance(model, EmbeddedModelConfig):
        raise UserError(f"{name} reads a GGUF file: give that of your model as task.gguf")
    # Rounding to bfloat16 or to 8 bits changes the values of that file, and float32 in 4 bits does not.
    classes = {SAME: IN_4_BITS, INT4: SAME_VALUES} if model.dtype == "float32" else {}
    return smollm2_135m_gguf(), classes.get(model.weights, OTHER_VALUES)


def _onnx(task: CompareConfig) -> Path:
    """Return the folder of ONNX Runtime GenAI.

    Raises:
        UserError: there is none, or it asks for a library of code.
    """
    assert task.onnx is not None  # CompareConfig has checked it
    folder = expanded(task.onnx, "task.onnx")
    try:
        with (folder / ONNX_CONFIG).open("rb") as file:
            asked = json.dumps(parse_json(file.read(MAX_ONNX_CONFIG).decode("utf-8", "replace")))
    except (OSError, MalformedJSON) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"task.onnx={task.onnx}: {ONNX_CONFIG} cannot be read ({reason})") from None
    if '"custom_ops_library"' in asked:
        raise UserError(f"task.onnx={task.onnx}: {ONNX_CONFIG} asks for custom_ops_library, whose code would be run")
    return folder


def _model_folder(name: str, model: ModelConfig) -> tuple[str, str, dict[str, str | None]]:
    """Return the folder or hub id that transformers reads, its weight class, and the script's further settings.

    Raises:
        UserError: the model has no folder.
    """
    if isinstance(model, EmbeddedModelConfig):
        source, revision = str(smollm2_135m()), None
    elif isinstance(model, PretrainedModelConfig):
        source, revision = located(model.path), model.revision
    else:
        raise UserError(f"{name} reads a model folder, and model={model.name} has none: use model=smollm2_135m or hf")
    kept = model.weights == SAME or (
        isinstance(model, EmbeddedModelConfig) and model.weights == INT4 and model.dtype == "float32"
    )
    return source, SAME_VALUES if kept else OTHER_VALUES, {"dtype": model.dtype, "revision": revision}
