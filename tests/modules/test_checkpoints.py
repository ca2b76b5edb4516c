"""Checkpoints on a full disk: the old one is kept, and the error names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from full_disk import limited_files
from selfdraft.app.terminal.errors import explain
from selfdraft.modules.checkpoints import DataOnly


def test_a_full_disk_keeps_the_old_checkpoint_and_gives_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    DataOnly().save_checkpoint({"state_dict": {"a": torch.zeros(1)}}, path)
    before = path.read_bytes()
    with limited_files(len(before) + 100), pytest.raises(OSError) as caught:
        DataOnly().save_checkpoint({"state_dict": {"a": torch.zeros(10_000)}}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    line = explain(caught.value)
    assert line is not None and line.startswith(f"{path}: the file has grown to the limit")
