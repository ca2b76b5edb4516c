"""Identify a model by a short digest, so that what was made or measured for it is not used with another one."""

from __future__ import annotations

import hashlib
import json

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from selfdraft.models.families.dispatch import weights_of

PASSING = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "quantization_config")
SAMPLES = 64  # weights looked at in each tensor, evenly spread


def shape_fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hexadecimal digits of what the cost of a forward depends on: configuration, shapes and dtypes.

    They are the same for copies of a model with other weights, and differ in another dtype.
    """
    tensors = sorted((name, str(p.dtype), list(p.shape)) for name, p in model.named_parameters())
    return hashlib.sha256(json.dumps([_configuration(model), tensors], default=str).encode()).hexdigest()[:16]


def _configuration(model: PreTrainedModel) -> str:
    """Return the configuration as text, without what depends on where and how the model was loaded."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in PASSING}
    return json.dumps(config, sort_keys=True, default=str)


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hexadecimal digits of the configuration and of weights taken from every tensor.

    They are the same in float32 and bfloat16 (float16 rounds otherwise), on any device and wherever the model was
    loaded from; they differ after fine-tuning.
    """
    digest = hashlib.sha256(_configuration(model).encode())
    samples: dict[str, bytes] = {}
    for name, weight in weights_of(model):
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight  # of which processes have parts
        flat = whole.detach().flatten()
        picked = flat[:: max(len(flat) // SAMPLES, 1)][:SAMPLES]
        # Rounded to bfloat16, so that float32 weights give the same digits as their bfloat16 copies.
        samples[name] = picked.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()
    for name in sorted(samples):
        digest.update(name.encode() + samples[name])
    return digest.hexdigest()[:16]
