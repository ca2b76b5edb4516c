"""Other engines as contenders, each in a process of its own, which waits on a pipe while others decode.

Token ids go in and come out, and the engine's process times itself. Nothing of such an engine is imported here: its
packages may be installed in another environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.models.stock import StockGeneration

CHILDREN = Path(__file__).parent / "children"


@dataclass(frozen=True)
class Engine:
    """What runs another engine.

    Attributes:
        script: in `CHILDREN`. package: what its script imports, and `pip install` calls so.
        lookup: whether it drafts by its own prompt lookup.
    """

    script: str
    package: str
    lookup: bool = False


OTHERS = {
    "llama_cpp": Engine("run_llama_cpp.py", "llama-cpp-python"),
    "llama_cpp_prompt_lookup": Engine("run_llama_cpp.py", "llama-cpp-python", lookup=True),
    "openvino": Engine("run_openvino.py", "openvino-genai"),
    "openvino_prompt_lookup": Engine("run_openvino.py", "openvino-genai", lookup=True),
}


class OtherEngine:
    """One engine's process.

    Attributes:
        judged: whether its texts are compared with ours, as its file has the values of our weights.
        failed: why it answers no more; empty while it does.
        load_s: seconds in which it loaded its file.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        *,
        max_new_tokens: int,
        positions: int,
        eos: Sequence[int],
        threads: int,
        python: str | None = None,
        judged: bool = False,
    ) -> None:
        """Start the process, and wait until it has loaded the file.

        Args:
            name: in `OTHERS`. file: a GGUF file. positions: tokens of a prompt and its answer, at most.
            python: an interpreter that has the engine's package; by default this one.
            judged: see the attributes.

        Raises:
            UserError: the package is not installed, or the engine cannot load the file.
        """
        engine = OTHERS[name]
        self.name, self.judged, self.failed = name, judged, ""
        settings = {
            "file": str(file),
            "tokens": max_new_tokens,
            "positions": positions,
            "eos": sorted(eos),
            "threads": threads,
            "lookup": engine.lookup,
        }
        # -I: neither this folder nor the working directory is searched for modules.
        command = [python or sys.executable, "-I", str(CHILDREN / engine.script), json.dumps(settings)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise UserError(f"task.python={python}: {error.strerror}") from None
        started = self._told()
        if started is None:
            last = self.failed
            if "No module named" in last:
                raise UserError(f"{name} needs a package that is not installed: pip install {engine.package}")
            raise UserError(f"{name} does not start with {file} ({last})")
        self.load_s = float(started["load_s"])

    def decode(self, prompt: Sequence[int]) -> StockGeneration:
        """Answer one prompt; with nothing if the engine has died, for the reason in `failed`."""
        if self.failed:
            return StockGeneration([], 0, 0.0, 0.0, self.failed)
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died: told below
            self._process.stdin.write(json.dumps(list(prompt)) + "\n")
            self._process.stdin.flush()
        told = self._told()
        if told is None:
            return StockGeneration([], 0, 0.0, 0.0, self.failed)
        output = [int(token) for token in told["output"]]
        decode_s = float(told["latency_s"]) - float(told["first_s"])
        return StockGeneration(output, len(output) - int(told["first_tokens"]), decode_s, float(told["latency_s"]))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _told(self) -> dict[str, Any] | None:
        """Return the process's next line; None if it has ended, and `failed` then says how."""
        assert self._process.stdout is not None and self._process.stderr is not None
        with suppress(ValueError):
            told = json.loads(self._process.stdout.readline())
            if isinstance(told, dict):
                return told
        self._process.kill()
        said = self._process.stderr.read().strip().splitlines()
        status = self._process.wait()
        how = f"ended by signal {-status}" if status < 0 and not said else "ended"
        self.failed = one_line(said[-1])[:200] if said else how
        return None
