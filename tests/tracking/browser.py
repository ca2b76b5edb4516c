"""A headless Chromium for tests of the report; where there is none, they are skipped with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser: `$SELFDRAFT_CHROMIUM`, the one that Playwright has downloaded, or the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: browser)")
    with api.sync_playwright() as started:
        named = os.environ.get("SELFDRAFT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        options = {"executable_path": named} if named else {}
        try:
            browser = started.chromium.launch(args=["--no-sandbox"], **options)
        except api.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield browser
        browser.close()
