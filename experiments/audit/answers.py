"""Let transformers' own generate answer prompts in left-padded batches of bfloat16, for an audit of the answers.

    python experiments/audit/answers.py answers.jsonl [--prompts file.jsonl] [--count 200] [--rows 8] [--tokens 16]

Takes the first turns of the shortest prompts of the file, by default of the bundled ones, and mixes their lengths.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from rich.progress import track
from transformers import GenerationConfig

from selfdraft.app.options.schema_dataset import BundledConfig, JsonlConfig
from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import load_embedded


@one_line_script("answers")
@torch.inference_mode()
def main(arguments: list[str]) -> None:
    """Write a line with the prompt and the answer, in token ids, for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path, help="the file to write; it must not exist")
    parser.add_argument("--prompts", help="a file as of dataset=jsonl (default: the bundled prompts)")
    parser.add_argument("--count", type=int, default=200, help="number of prompts, at most (default: 200)")
    parser.add_argument("--rows", type=int, default=8, help="prompts of a batch (default: 8)")
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of an answer, at most (default: 16)")
    given = parser.parse_args(arguments)
    if min(given.count, given.rows, given.tokens) < 1:
        raise UserError("--count, --rows and --tokens: at least 1")
    if given.to.exists():
        raise UserError(f"{given.to} exists already: give another name")
    loaded = load_embedded("bfloat16", torch.device("cpu"))
    encode = Chat(loaded.tokenizer).encode
    dataset = JsonlConfig(path=given.prompts) if given.prompts else BundledConfig()
    prompts = sorted({tuple(encode(prompt.beginning)) for prompt in dataset.load()}, key=len)[: given.count]
    random.Random(0).shuffle(prompts)
    pad, ends = loaded.tokenizer.pad_token_id, sorted(loaded.eos)
    options = GenerationConfig(max_new_tokens=given.tokens, do_sample=False, eos_token_id=ends, pad_token_id=pad)
    batches = [prompts[at : at + given.rows] for at in range(0, len(prompts), given.rows)]
    with given.to.open("w", encoding="utf-8") as file:
        for batch in track(batches, description="batches"):
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
            written = loaded.model.generate(ids, attention_mask=mask, generation_config=options)
            for prompt, answer in zip(batch, written[:, width:].tolist(), strict=True):
                line = {"prompt_ids": list(prompt), "output_ids": answer, "max_new_tokens": given.tokens}
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
