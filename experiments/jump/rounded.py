"""Write the folder of a task=finetune run again, with its matrices rounded to 8 bits; 32 inputs share a scale.

model.engine=native then reads a quarter of the bytes:  python experiments/jump/rounded.py <run> <new folder>
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from selfdraft.models.adapter import Adapter
from selfdraft.models.weights import GROUP, encoded
from selfdraft.tracking.artifact import ADAPTER, FILE, Artifact


def rounded(tensor: Tensor) -> Tensor:
    """Return a matrix in 8 bits, as values; anything else as it is."""
    fits = tensor.dim() == 2 and tensor.is_floating_point() and not tensor.shape[1] % GROUP
    return encoded(tensor, 8).values() if fits else tensor


def main(run: Path, out: Path) -> None:
    """Read the artifact and weights of `run`; write them to `out`."""
    artifact, adapter = Artifact.read(run), Adapter.read(run)
    replace(adapter, tensors={name: rounded(t) for name, t in adapter.tensors.items()}).write(out)
    replace(artifact, options={**artifact.options, ADAPTER: "."}).write(out / FILE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
