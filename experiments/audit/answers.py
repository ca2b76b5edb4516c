"""Write greedy answers by transformers' own generate, in left-padded batches, as a file for task=audit.

    python experiments/audit/answers.py FILE --dtype bfloat16 --count 200 --batch 8 --tokens 48

The model is SmolLM2-135M-Instruct (or, with --tiny FAMILY, a random tiny model), and the prompts are the bundled ones;
beyond their number, each is cut to its first words, so that all prompts differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import GenerationConfig

from selfdraft.data.sources import load_bundled
from selfdraft.models.chat import Chat
from selfdraft.models.embedded import smollm2_135m
from selfdraft.models.loading import load_pretrained, load_tiny


def texts(count: int) -> list[str]:
    """Return different prompts: the bundled ones, then their first half, third, and so on."""
    whole, found = [prompt.turns[0] for prompt in load_bundled()], {}
    for part in range(1, 99):
        for text in whole:
            words = text.split()
            found[" ".join(words[: max(len(words) // part, 3)])] = None
            if len(found) == count:
                return list(found)
    raise SystemExit(f"there are only {len(found)} prompts")


@torch.inference_mode()
def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--tiny", metavar="FAMILY")
    given = parser.parse_args()
    device = torch.device("cpu")
    if given.tiny:
        loaded = load_tiny(given.tiny, 0, given.dtype, device)
    else:
        loaded = load_pretrained(str(smollm2_135m()), given.dtype, device)
    chat, model = Chat(loaded.tokenizer), loaded.model
    prompts = [chat.encode([("user", text)]) for text in texts(given.count)]
    pad = loaded.tokenizer.pad_token_id
    config = GenerationConfig(
        max_new_tokens=given.tokens, do_sample=False, eos_token_id=sorted(loaded.eos), pad_token_id=pad
    )
    model.generation_config = GenerationConfig()
    with given.file.open("w", encoding="utf-8") as file:
        for first in range(0, len(prompts), given.batch):
            some = prompts[first : first + given.batch]
            width = max(map(len, some))
            ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in some])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some])
            written = model.generate(ids, attention_mask=mask, generation_config=config)
            for prompt, answer in zip(some, written[:, width:].tolist(), strict=True):
                file.write(json.dumps({"prompt_ids": prompt, "output_ids": answer}) + "\n")


if __name__ == "__main__":
    main()
