"""Silence transformers while it loads a model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from transformers.utils import logging as hf_logging


@contextlib.contextmanager
def quiet_transformers(*, errors: bool = False) -> Iterator[None]:
    """Silence transformers' log lines and progress bars, and restore both afterwards.

    Args:
        errors: whether all that is written to the standard error is dropped: no setting disables the GGUF reader's bar.
    """
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if errors else contextlib.nullcontext():
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
