"""Run other engines (llama.cpp, OpenVINO GenAI, …) for task=compare, each in a process of its own.

Token ids go in and come out, and the engine's process times itself. It waits on a pipe while others decode, so it takes
no time from them. Nothing of such an engine is imported here: its packages may be installed in another environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.models.reference.served import SERVED
from selfdraft.models.reference.stock import JUDGED, OTHER_VALUES, StockGeneration

CHILDREN = Path(__file__).parent / "children"
CHILD = CHILDREN / "child.py"
GGUF, MODEL_FOLDER, ONNX_FOLDER = "GGUF file", "model folder", "ONNX folder"
ENDING_S = 5.0  # seconds that a process gets to end by itself after its pipe was closed
SAID = 10_000  # largest number of bytes that is read of a process's last messages


@dataclass(frozen=True)
class Engine:
    """How another engine is run.

    Attributes:
        script: its file in `CHILDREN`. package: what the script imports, by the name for `pip install`.
        reads: `GGUF`, `MODEL_FOLDER` (of transformers) or `ONNX_FOLDER`.
        lookup: whether it drafts by its own prompt lookup.
    """

    script: str
    package: str
    reads: str = GGUF
    lookup: bool = False


ENGINES = {
    "llama_cpp": Engine("run_llama_cpp.py", "llama-cpp-python"),
    "llama_cpp_prompt_lookup": Engine("run_llama_cpp.py", "llama-cpp-python", lookup=True),
    "openvino": Engine("run_openvino.py", "openvino-genai"),
    "openvino_prompt_lookup": Engine("run_openvino.py", "openvino-genai", lookup=True),
    "onnx_genai": Engine("run_onnx_genai.py", "onnxruntime-genai", ONNX_FOLDER),
    "onnx_genai_prompt_lookup": Engine("run_onnx_genai.py", "onnxruntime-genai", ONNX_FOLDER, lookup=True),
    "economize_lookup": Engine("run_economize.py", "economize", MODEL_FOLDER, lookup=True),
}
OTHERS = (*ENGINES, SERVED)


class OtherEngine:
    """One engine's process.

    Attributes:
        weights: its weight class, one of those in `models.reference.stock`.
        judged: whether its texts are compared with ours: only where its weights have our values.
        failed: why it answers no more; empty while it does.
        load_s: seconds in which it loaded its file.
        peak_memory_mb: the most memory that its process has held so far; None if it does not say.
    """

    def __init__(
        self,
        name: str,
        source: Path | str,
        *,
        max_new_tokens: int,
        positions: int,
        eos: Sequence[int],
        threads: int,
        python: str | None = None,
        weights: str = OTHER_VALUES,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the process, and wait until it has loaded its file.

        Args:
            name: in `ENGINES`. source: what it reads (see `Engine`). positions: tokens of a prompt and its answer, at
                most.
            python: an interpreter that has the engine's package; by default this one.
            weights: see the attributes. settings: what its script needs besides.

        Raises:
            UserError: the package is not installed, or the engine cannot load its file.
        """
        engine = ENGINES[name]
        self.name, self.failed = name, ""
        self.weights, self.judged = weights, weights in JUDGED
        self.peak_memory_mb: float | None = None
        given = {
            "source": str(source),
            "tokens": max_new_tokens,
            "positions": positions,
            "eos": sorted(eos),
            "threads": threads,
            "lookup": engine.lookup,
            **(settings or {}),
        }
        # -I: neither this folder nor the working directory is searched for modules.
        command = [python or sys.executable, "-I", str(CHILD), str(CHILDREN / engine.script), json.dumps(given)]
        # Not a pipe, which would stop a process that fills it.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True
            )
        except OSError as error:
            raise UserError(f"task.python={python}: {error.strerror}") from None
        started = self._told()
        if started is None:
            if "No module named" in self.failed:
                raise UserError(
                    f"{name} needs a package that is not installed: pip install {engine.package} (or "
                    "'selfdraft[engines]' for all of them)"
                )
            raise UserError(f"{name} does not start with {source} ({self.failed})")
        self.load_s: float | None = float(started["load_s"])

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
        self._messages.close()

    def _told(self) -> dict[str, Any] | None:
        """Return the process's next line; None if it has ended, and `failed` then says how."""
        assert self._process.stdout is not None
        with suppress(ValueError):
            told = json.loads(self._process.stdout.readline())
            if isinstance(told, dict):
                if (memory := told.get("memory_mb")) is not None:
                    self.peak_memory_mb = max(float(memory), self.peak_memory_mb or 0.0)
                return told
        self.failed = self._how_it_ended()
        return None

    def _how_it_ended(self) -> str:
        """Return the signal or the last message of a process that no longer answers, which has then ended."""
        try:
            status = self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self.close()
            return "what it wrote is no answer"
        end = self._messages.seek(0, 2)
        self._messages.seek(max(0, end - SAID))
        said = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        if status < 0:
            return f"ended by signal {-status}"
        return one_line(said[-1])[:200] if said else "ended"
