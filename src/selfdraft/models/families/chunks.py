"""Let layers that compute in chunks take small ones where there are few tokens.

State-space layers (Mamba-2 and its hybrids) divide a text into chunks of a fixed length, often 256 tokens, and fill the
last one up. Without their CUDA kernels a draft of 8 tokens then takes as long as 256. How long chunks are does not
change what is computed, apart from rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

LEAST = 8  # tokens of the smallest chunk


def chunked_layers(model: nn.Module) -> list[nn.Module]:
    """Return the state-space layers whose chunks have a length that can be chosen."""
    return [m for m in model.modules() if hasattr(m, "A_log") and isinstance(m.__dict__.get("chunk_size"), int)]


@contextmanager
def chunks_for(layers: Sequence[nn.Module], tokens: int) -> Iterator[None]:
    """Inside, let layers take the smallest power of two that `tokens` fit in, if that is less than their own length."""
    own = [int(layer.chunk_size) for layer in layers]  # type: ignore[arg-type]
    least = max(LEAST, 1 << (tokens - 1).bit_length())
    try:
        for layer, size in zip(layers, own, strict=True):
            layer.chunk_size = min(size, least)  # type: ignore[assignment]
        yield
    finally:
        for layer, size in zip(layers, own, strict=True):
            layer.chunk_size = size  # type: ignore[assignment]
