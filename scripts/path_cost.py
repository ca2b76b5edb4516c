"""Measure the cost of drafting through trained paths on this machine:  python scripts/path_cost.py RUN [RUN ...]

RUN is the folder of a task=finetune run. With 256 tokens in the cache of the default model (--dtype), these are timed
interleaved: a drafting forward, a verification of two tokens that reuses the draft's work if the path allows it,
and a plain forward of one token. Printed are median milliseconds, multiples of a plain forward of one token, and the
acceptance above which drafting a single token pays: draft + verification, in plain forwards, less one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from selfdraft.app.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.adapted import adapted_path
from selfdraft.models.adapter import Adapter
from selfdraft.models.loading import DTYPES, load_embedded
from selfdraft.models.path import Path, Reuse
from selfdraft.models.profiling import interleaved_medians
from selfdraft.models.target import Target

CONTEXT, ROUNDS = 256, 40
TOKEN, NEXT = 17, 5  # any two token ids: the cost of a forward does not depend on them


def cases(target: Target, path: Path) -> dict[str, Callable[[], object]]:
    """Return the calls that are timed for one path, by name."""
    states: list[torch.Tensor] = []
    keep = [states] if path.leading else None
    one, two = [TokenTree.empty()], [TokenTree.chain([NEXT])]

    def draft() -> None:
        states.clear()
        target.draft_forward(path, [0], 0, [TOKEN], one, keep=keep)

    draft()
    reuse = [Reuse(path.leading, states[0])] if states else None
    return {
        "plain": lambda: target.forward([0], [TOKEN], one),
        "draft": draft,
        "verify": lambda: target.forward([0], [TOKEN], two, reuse=reuse),
    }


@one_line_script("path_cost")
@torch.inference_mode()
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="RUN", help="folder of a task=finetune run")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of the model (default: bfloat16)")
    given = parser.parse_args(arguments)
    if not given.folders:
        raise UserError("give the folders of task=finetune runs")
    adapters = [Adapter.read(folder) for folder in given.folders]
    target = Target(load_embedded(given.dtype, torch.device("cpu")).model)
    target.allocate(1, 2 * CONTEXT)
    text = torch.randint(target.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(0))
    target.prefill(0, text.tolist())
    print("| path | plain forward of 1 | draft | of 1 | verification of 2 | of 1 | break-even acceptance |")
    print("|---|---|---|---|---|---|---|")
    for folder, adapter in zip(given.folders, adapters, strict=True):
        seconds = interleaved_medians(cases(target, adapted_path(target, adapter)), ROUNDS)
        one, draft, verify = (1e3 * seconds[name] for name in ("plain", "draft", "verify"))
        cells = f"{one:.1f} ms | {draft:.1f} ms | {draft / one:.2f} | {verify:.1f} ms | {verify / one:.2f}"
        print(f"| {adapter.recipe}: {folder} | {cells} | {(draft + verify) / one - 1:.2f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
