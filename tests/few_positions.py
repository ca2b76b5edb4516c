"""A model folder with few positions, for tests of running out of positions."""

from __future__ import annotations

from pathlib import Path

from command_line import SMOKE
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

POSITIONS = 64


def small_model(folder: Path) -> list[str]:
    """Write a tiny model of `POSITIONS` positions into `folder`, and return the overrides that choose it."""
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), max_positions=POSITIONS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [*SMOKE, "model=hf", f"model.path='{folder}'", "model.dtype=float32", "dataset.per_category=null"]
