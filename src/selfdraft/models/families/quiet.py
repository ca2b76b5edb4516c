"""Silence transformers and the client of the model hub while they load a model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as hf_logging


@contextlib.contextmanager
def quiet_transformers(*, errors: bool = False) -> Iterator[None]:
    """Silence their log lines and transformers' progress bars, and restore all of it afterwards.

    Without a network, the client would print two lines for each of its many trials. The error after the last one says
    what is wrong.

    Args:
        errors: whether all that is written to the standard error is dropped: no setting disables the GGUF reader's bar.
    """
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    of_hub = hub_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if errors else contextlib.nullcontext():
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(of_hub)
        if bars:
            hf_logging.enable_progress_bar()
