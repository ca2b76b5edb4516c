"""Decoders outside SelfDraft, as contenders beside ours."""

from __future__ import annotations

import torch

from selfdraft.app.schema_model import EmbeddedModelConfig
from selfdraft.app.schema_tasks import CompareConfig
from selfdraft.app.schemas import Config
from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded
from selfdraft.models.embedded_gguf import smollm2_135m_gguf
from selfdraft.models.loading import LoadedModel
from selfdraft.models.others import OTHERS, OtherEngine
from selfdraft.models.stock import StockGenerate
from selfdraft.models.weights import INT4, SAME


def reference_for(name: str, loaded: LoadedModel, config: Config, device: torch.device) -> StockGenerate | OtherEngine:
    """Return transformers' decoder or another engine, which has then loaded its file.

    An engine's texts are judged only where its file has the very values of our weights, as the default model's has.

    Raises:
        UserError: the engine's package is not installed, or it cannot load its file.
    """
    new_tokens = config.decoding.max_new_tokens
    if name not in OTHERS:
        return StockGenerate(loaded, name, new_tokens)
    task = config.task
    assert isinstance(task, CompareConfig)
    if device.type != "cpu":
        raise UserError(f"{name} is compared on a CPU only")
    if task.gguf is not None:
        file = expanded(task.gguf, "task.gguf")
        if not file.is_file():
            raise UserError(f"task.gguf={task.gguf}: there is no such file")
    elif isinstance(config.model, EmbeddedModelConfig):
        file = smollm2_135m_gguf()
    else:
        raise UserError(f"{name} reads a GGUF file: give that of your model as task.gguf")
    return OtherEngine(
        name,
        file,
        max_new_tokens=new_tokens,
        positions=int(loaded.model.config.max_position_embeddings),
        eos=sorted(loaded.eos),
        threads=torch.get_num_threads(),
        python=task.python,
        judged=task.gguf is None and config.model.dtype == "float32" and config.model.weights in (SAME, INT4),
    )
