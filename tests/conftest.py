"""Put this folder on the path, so that tests can import the helpers in it, and use one thread."""

import gc
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
gc.disable()  # while tests are imported: little of that is garbage

# Matrices of tiny models only lose by being shared out, and manifold so when the machine is busy. This holds for torch,
# which is not imported here: the process that shares out the tests does without it; and for processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SELFDRAFT_GRAPHS"] = ""  # tests that keep graphs name a folder: none may lie in the user's cache
os.environ.setdefault("SELFDRAFT_TEST_RUN", str(os.getpid()))  # names the server that all of them share: see forked.py

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, all processes of a test would inherit deafness to the Ctrl-C it sends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup


LONG = ("app", "scripts", "fuzz", "modules", "real", "gpu")  # folders whose tests run commands, train, or need a GPU


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="a few cases of every test, none of which is slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast, do not even import the tests in `LONG`, unless their folder is named."""
    folders = {f"tests/{folder}" for folder in LONG}
    named = any(folder in given for folder in folders for given in config.args)
    inside = any(collection_path.as_posix().endswith(folder) for folder in folders)
    return True if config.getoption("--fast") and inside and not named else None


def pytest_collection_finish() -> None:
    """Tell the garbage collector to skip what the imports made; visiting it took a sixth of test_lossless.py's time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --fast, keep a case of a test for each named drafter, or of three families, or else one; no slow ones."""
    if not config.getoption("--fast"):
        return
    kept: list[pytest.Item] = []
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("real"):
            continue
        cases = getattr(item, "callspec", None)
        params = cases.params if cases else {}
        drafter = getattr(params.get("config"), "label", "")
        families = not drafter and bool({"family", "model"} & set(params))
        if "+" in drafter:
            continue
        test = item.nodeid.partition("[")[0], drafter
        seen[test] += 1
        if seen[test] <= (3 if families else 1):
            kept.append(item)
    left = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = kept
