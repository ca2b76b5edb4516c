"""Measure what verification saves by reusing a draft's work:  python scripts/reuse_cost.py [layers] [hidden]

It times a Llama of about 1.2 billion random parameters in bfloat16 (16 layers of 2048, with an untied head), with early
exit at half depth, 4 drafted tokens and 256 tokens in the cache, interleaved. It prints median milliseconds, and shares
of a full verification. Random weights are enough, because the time does not depend on them.
"""

from __future__ import annotations

import argparse
import sys

import torch

from selfdraft.app.errors import one_line_script
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.path import Reuse
from selfdraft.models.profiling import interleaved_medians
from selfdraft.models.sparse import sparse_path
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model

CONTEXT, DRAFTED, ROUNDS = 256, 4, 7


@one_line_script("reuse_cost")
@torch.inference_mode()
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="?", type=int, default=16)
    parser.add_argument(
        "hidden", nargs="?", type=int, default=2048, help="size of the hidden states, a multiple of 256"
    )
    given = parser.parse_args(arguments)
    layers, hidden = given.layers, given.hidden
    model = tiny_model(
        "llama",
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        kv_heads=hidden // 256,
        intermediate_size=4 * hidden,
        vocab_size=32_000,
        dtype=torch.bfloat16,
        max_positions=1024,
    )
    target = Target(model)
    generator = torch.Generator().manual_seed(0)
    target.allocate(1, 2 * CONTEXT)
    target.prefill(0, torch.randint(target.vocab_size, (CONTEXT,), generator=generator).tolist())
    root, *draft = torch.randint(target.vocab_size, (1 + DRAFTED,), generator=generator).tolist()
    exit_path = sparse_path(target, SkipSet.from_layer(layers, layers // 2))
    states: list[torch.Tensor] = []
    for offset, token in enumerate([root, *draft[:-1]]):
        target.draft_forward(exit_path, [0], offset, [token], [TokenTree.empty()], keep=[states])
    reuse = [Reuse(exit_path.leading, torch.cat(states))]
    whole, short = [TokenTree.chain(draft)], [TokenTree.chain(draft[:-1])]
    cases = {
        "full verification": lambda: target.forward([0], [root], whole),
        "reusing, no bonus": lambda: target.forward([0], [root], short, reuse=reuse),
        "reusing, bonus kept": lambda: target.forward([0], [root], whole, reuse=reuse),
        "a drafting forward": lambda: target.draft_forward(exit_path, [0], 0, [root], [TokenTree.empty()]),
    }
    seconds = interleaved_medians(cases, ROUNDS)
    print(f"{target.parameters / 1e9:.2f} billion parameters, bfloat16, {torch.get_num_threads()} threads")
    for name, taken in seconds.items():
        print(f"{name:20s} {1e3 * taken:7.1f} ms  {taken / seconds['full verification']:5.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
