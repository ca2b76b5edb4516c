"""How many threads torch's own operations use while the layers are compiled.

OpenVINO has threads of its own. After an operation that torch shared out, torch's threads go on asking for work for
some milliseconds, on the very cores that the next graph needs. Beside a graph, torch is therefore faster with one.
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
