"""Run another engine in a process of its own:  python -I child.py ENGINE SETTINGS

ENGINE is a script beside this one. Its `load(settings)` returns a function that answers the token ids of a prompt with
the new ids and the seconds until the first of them. SETTINGS is a JSON object:

    source      the file or folder to load
    tokens      new tokens of an answer, at most
    positions   tokens of a prompt and its answer, at most
    eos         ids that end an answer
    threads     threads to compute with
    lookup      whether to draft by prompt lookup
    …           what one kind of engine needs besides

The process writes a JSON line with `load_s` and `memory_mb`. After that it reads a JSON list of token ids a line, and
writes a line with `output`, `first_s`, `first_tokens`, `latency_s` and `memory_mb` for each.
"""

import json
import os
import resource
import runpy
import sys
import time
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Load the engine, then answer until the input ends."""
    script, settings = sys.argv[1], json.loads(sys.argv[2])
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get among the answers
    sys.stdout = sys.stderr  # which keeps no text back
    load = runpy.run_path(script)["load"]
    begun = time.perf_counter()
    answer = load(settings)
    loaded = {"load_s": time.perf_counter() - begun, "memory_mb": peak_memory_mb()}
    print(json.dumps(loaded), file=told)
    for line in sys.stdin:
        ids = json.loads(line)
        begun = time.perf_counter()
        output, first_s = answer(ids)
        latency_s = time.perf_counter() - begun
        told_of = {"output": output, "first_s": first_s, "first_tokens": 1, "latency_s": latency_s}
        print(json.dumps({**told_of, "memory_mb": peak_memory_mb()}), file=told)


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far, in MB.

    Linux begins `ru_maxrss` with the peak of the process that started this one, so it is only read elsewhere.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


main()
