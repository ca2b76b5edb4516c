"""Load a GGUF file as a stock transformers model; its quantised values become float32 without a change."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.models.families.quiet import quiet_transformers

MAGIC = b"GGUF"


def read_gguf(file: Path) -> PreTrainedModel:
    """Return the model of a GGUF file, in eval mode.

    Raises:
        UserError: the file cannot be read, or transformers does not know its architecture.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(len(MAGIC)) != MAGIC:
                raise UserError(f"{file} is no GGUF file")
        with quiet_transformers(errors=True):
            return weights_of(file).eval()
    except UserError:
        raise
    except Exception as error:  # of many types: the file is anybody's
        raise UserError(f"{file} cannot be read by transformers ({one_line(str(error))[:200]})") from error


def weights_of(file: Path) -> PreTrainedModel:
    """Return the same; transformers raises exceptions of many types."""
    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),  # never look for packed-weight kernels on a hub
        dtype=torch.float32,
    )
