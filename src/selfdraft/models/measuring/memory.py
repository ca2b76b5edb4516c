"""Estimate the memory that a run needs before it starts, and measure what it uses. MB are 10^6 bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfdraft.core.errors import Unsupported
from selfdraft.models.cache.cache import BLOCK
from selfdraft.models.families.anatomy import position_limit, refusing, text_config
from selfdraft.models.families.undivided import undivided
from selfdraft.models.kernels.packing import packable

PROMPT = 1024  # tokens of a long prompt, because the real lengths are known only after the tokenizer is loaded
TREE = 64  # tokens of a large tree
CONTROLS = 5 * 128  # rows of logits that a certificate holds at once

# Linux: writing 5 here sets the peak of the resident set (VmHWM) back to what is resident now.
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Needed:
    """Estimated bytes that one process will hold, besides those that Python and torch hold already."""

    weights: int
    packed: int
    cache: int
    logits: int
    float32: int
    compiled: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.packed + self.compiled + self.cache + self.logits + self.float32

    def __str__(self) -> str:
        names = ("weights", "packed copies", "compiled layers", "cache", "logits", "float32 copy to certify by")
        parts = (self.weights, self.packed, self.compiled, self.cache, self.logits, self.float32)
        return ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in zip(names, parts, strict=True) if size)


def needed(
    outline: PreTrainedModel, dtype: torch.dtype, device: torch.device, *, rows: int, packed: bool, new_tokens: int,
    certify: bool, compiled: bool = False, parts: int = 1,
) -> Needed:  # fmt: skip
    """Estimate the bytes that a run will hold.

    Args:
        outline: the model, on any device: "meta" costs nothing. rows: number of cache rows.
        certify: whether outputs are certified, which takes a float32 copy of models in another dtype.
        compiled: whether layers are compiled, which takes a copy of their matrices.
        parts: in how many parts, each for a process, matrices and cache are divided.

    Raises:
        UserError: the family cannot be driven, so that no run would begin.
    """
    compiled = not undivided(outline) and compiled
    config, size = text_config(outline), dtype.itemsize
    weights = sum(p.numel() for p in outline.parameters())
    matrices = sum(m.weight.numel() for m in outline.modules() if isinstance(m, nn.Linear))
    with refusing(outline):
        keys = sum(_key_size(layer) for layer in _layer_configs(config))
    slots = min(PROMPT + new_tokens, position_limit(config)) + TREE
    slots = -(-slots // BLOCK) * BLOCK
    return Needed(
        weights=-(-weights * size // parts),
        packed=matrices * size if packed and device.type == "cpu" and packable(dtype) else 0,
        compiled=matrices * size if compiled and device.type == "cpu" and dtype == torch.float32 else 0,
        cache=-(-2 * keys * slots * rows * size // parts),
        logits=(TREE * rows + CONTROLS) * config.vocab_size * 4,
        float32=-(-weights * 4 // parts) if certify and dtype != torch.float32 else 0,
    )


def _layer_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return a config for each layer: the model's, or its own in families whose layers differ in heads (Gemma 4)."""
    own = getattr(config, "per_layer_config", None)
    return [own[i] if own else config for i in range(config.num_hidden_layers)]


def _key_size(config: PreTrainedConfig) -> int:
    """Return how many numbers one token's keys have in a layer."""
    if not getattr(config, "num_attention_heads", None):
        return 0  # a state space model: its layers keep states, which are small
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def available(device: torch.device) -> int:
    """Return the free bytes of the device: of the GPU, or of the machine for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def available_everywhere(device: torch.device) -> int:
    """Return the free bytes of all GPUs and of the machine; with a CPU as the device, of the machine only."""
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    return available(torch.device("cpu")) + sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)


def refuse_what_cannot_fit(need: Needed, device: torch.device, processes: int = 1, *, everywhere: bool = False) -> None:
    """Refuse a run that needs more memory than is free, before anything is loaded.

    Args:
        processes: how many processes, each with that need, share the device's memory.
        everywhere: whether the layers are placed on all GPUs and the CPU.

    Raises:
        UserError: the run does not fit; the message has the numbers.
    """
    free = available_everywhere(device) if everywhere else available(device)
    if need.total * processes > free:
        times = f"{processes} processes of " if processes > 1 else ""
        raise Unsupported(
            f"memory: this run needs about {times}{need.total / 1e6:,.0f} MB ({need}), but {device.type} has "
            f"{free / 1e6:,.0f} MB left: take a smaller model, a narrower model.dtype, model.engine=eager or "
            "model.packed=false"
        )


def give_back() -> None:
    """Give freed memory back to the system, in some hundredths of a second. Does nothing without glibc.

    Otherwise glibc keeps most of it: it raises its limit for pieces that it returns at once to the size of the largest
    one that was freed. After that, tensors of up to 32 MB only leave holes in its own memory.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or another system
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The most memory held in each phase, in MB.

    On a GPU this is the memory that torch had allocated there. On Linux it is the process's resident set, whose peak is
    reset at every change of phase; elsewhere the resident set at the end of each phase, which may miss a peak within.

    Attributes:
        peaks: by phase. by_contender: by contender, while it decoded; contenders of one process share its weights.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, float] = {}
        self.by_contender: dict[str, float] = {}
        self._phases: list[str] = []
        self._contender: str | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the memory held in this `with` block for `phase`, and not for a phase around it."""
        self._note()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._note()
            self._phases.pop()

    @contextmanager
    def of(self, contender: str) -> Iterator[None]:
        """Count the memory held in this `with` block for a contender too, whatever the phases within."""
        self._note()
        self._contender = contender
        try:
            yield
        finally:
            self._note()
            self._contender = None

    def _note(self) -> None:
        peak = self._peak_since_reset()
        if self._contender is not None:
            self.by_contender[self._contender] = max(peak, self.by_contender.get(self._contender, 0.0))
        if self._phases:
            phase = self._phases[-1]
            self.peaks[phase] = max(peak, self.peaks.get(phase, 0.0))

    def _peak_since_reset(self) -> float:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak / 1e6
        try:
            lines = _STATUS.read_text().splitlines()
            peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
            _RESET.write_text("5")
        except (OSError, StopIteration):
            peak = psutil.Process().memory_info().rss
        return peak / 1e6
