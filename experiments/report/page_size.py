"""How large report.html becomes with many runs, and how soon it can be used in a headless Chromium.

    python experiments/report/page_size.py RUN [--runs 20] [--rounds 5] [--keep FOLDER]

The page is of so many copies of a finished run of task=evaluate or task=compare, whose configurations differ in one
option. "Interactive" is the time from asking for the page until its scripts
have run and a key in the decode viewer has shown the next step. A browser is started once; every round opens a new
window without a cache. Needs `playwright` (extra: browser) and a Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.tracking.files.run_folder import CONFIG
from selfdraft.tracking.report.page import REPORT, write_report
from selfdraft.tracking.report.runs import RESULT, read_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FILES = (RESULT, "prompts.jsonl", "viewer.json", "environment.json", "selfdraft.json")
NEXT = "document.getElementById('v-step').textContent.startsWith('Step 2 ')"


def copies(run: Path, folder: Path, count: int) -> list[Path]:
    """Write copies of a run into a folder, each with a configuration of its own; return their folders."""
    result = json.loads((run / RESULT).read_bytes())
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")) if (run / CONFIG).is_file() else {}
    made = []
    for number in range(count):
        own = folder / f"{number:02d}"
        own.mkdir()
        for name in FILES:
            if (run / name).is_file():
                shutil.copy(run / name, own)
        drafter = {"name": result.get("drafter", "none"), **(config.get("drafter") or {}), "max_nodes": number}
        (own / CONFIG).write_text(json.dumps({**config, "drafter": drafter}))
        made.append(own)
    return made


def opened(page: Path, rounds: int) -> list[float]:
    """Return the seconds until the page can be used, once for each round."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise UserError("playwright is not installed: pip install 'selfdraft[browser]'") from None
    named = os.environ.get("SELFDRAFT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    seconds = []
    with sync_playwright() as started:
        try:
            browser = started.chromium.launch(args=["--no-sandbox"], **({"executable_path": named} if named else {}))
        except Error as error:
            raise UserError(f"no Chromium can be started: {str(error).splitlines()[0]}") from None
        for _ in range(rounds):
            window = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            begun = time.perf_counter()
            window.goto(page.as_uri())
            window.focus("#v-answer")
            window.keyboard.press("ArrowRight")
            window.wait_for_function(NEXT)
            seconds.append(time.perf_counter() - begun)
            window.context.close()
        browser.close()
    return seconds


def measure(run: Path, folder: Path, count: int, rounds: int) -> None:
    """Write the page into a folder, open it, and print a row of a Markdown table."""
    (found,), _ = read_runs([run])
    folders = copies(run, folder, count)
    page = folder / REPORT
    begun = time.perf_counter()
    write_report(page, folders)
    written = time.perf_counter() - begun
    seconds = opened(page, rounds)
    contenders = len(found.result.get("contenders", [0]))
    size = page.stat().st_size / 1e6
    print("| runs | contenders each | turns each | MB | seconds to write | interactive after, median (most) s |")
    print("|" + "---|" * 6)
    print(
        f"| {count} | {contenders} | {len(found.lines)} | {size:.2f} | {written:.1f} | "
        f"{statistics.median(seconds):.2f} ({max(seconds):.2f}) |"
    )


@one_line_script("page_size")
def main(arguments: list[str]) -> None:
    """Copy, write, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of task=evaluate or task=compare")
    parser.add_argument("--runs", type=int, default=20, help="copies of it in the page (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often it is opened (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a new folder for the copies and the page (default: none is kept)")
    given = parser.parse_args(arguments)
    if min(given.runs, given.rounds) < 1:
        raise UserError("--runs and --rounds: give at least 1")
    if not read_runs([given.run])[0]:
        raise UserError(f"{given.run} has no result of task=evaluate or task=compare")
    if given.keep is not None:
        given.keep.mkdir(parents=True)
        measure(given.run, given.keep, given.runs, given.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(given.run, Path(folder), given.runs, given.rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
