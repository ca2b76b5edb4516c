"""Keep torch to one thread while OpenVINO runs the layers.

OpenVINO has threads of its own. When torch has divided an operation among several threads, these keep waiting actively
for some milliseconds afterwards. They then occupy the cores on which OpenVINO runs the next forward, and slow it down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_threaded(wanted: object = True) -> Iterator[None]:
    """Let torch use one thread inside; does nothing if `wanted` is false."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
