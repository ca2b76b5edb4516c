"""How far engines' logits are from those of plain float32, and at how many places another token is the best one.

    python experiments/engines/rounding.py [--data FILE.jsonl] [--every 12] [--bits 15 22]

Compared are, over the prompts of a file, or those that come with SelfDraft: the native engine, and for each number of
`--bits` the layers one by one with the inputs of every matrix rounded to integers of so many bits (and a sign), with a
scale for every 32 inputs. The second shows what an engine would do that multiplied such integers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.data.sources import load_bundled, load_jsonl
from selfdraft.models.engines.choice import NATIVE, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import load_embedded

GROUP = 32  # inputs that share a scale
LONGEST = 500  # tokens of a prompt


def rounded(_: nn.Module, given: tuple[Tensor, ...], *, bits: int) -> tuple[Tensor, ...]:
    """Return a matrix's input (…, I) with every 32 numbers rounded to `bits` and a sign: a forward pre-hook."""
    groups = given[0].unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / (2**bits - 1) + 1e-38
    return ((groups / scales).round() * scales).flatten(-2), *given[1:]


@contextmanager
def inputs_of(model: PreTrainedModel, bits: int) -> Iterator[None]:
    """Inside, round the inputs of every matrix."""
    matrices = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [matrix.register_forward_pre_hook(partial(rounded, bits=bits)) for matrix in matrices]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def of_target(target: Target, tokens: Sequence[int]) -> Tensor:
    """Return (S - 1, V) logits after all tokens but the first, computed in one forward."""
    target.allocate(1, len(tokens))
    target.prefill(0, tokens[:1])
    return target.forward([0], [tokens[1]], [TokenTree.chain(tokens[2:])])[0]


@torch.inference_mode()
def of_model(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Return the same by the stock model."""
    return model(torch.tensor([list(tokens)])).logits[0, 1:]


@one_line_script("rounding")
def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prompts in JSONL (default: those that come with SelfDraft)")
    parser.add_argument("--every", type=int, default=12, help="take one prompt of so many (default: 12)")
    parser.add_argument("--bits", type=int, nargs="*", default=[15], help="bits without the sign (default: 15)")
    given = parser.parse_args(arguments)
    if given.every < 1 or not all(0 < bits < 24 for bits in given.bits):
        raise UserError("--every: at least 1; --bits: from 1 to 23")
    prompts = load_bundled() if given.data is None else load_jsonl(given.data)
    loaded = load_embedded("float32", torch.device("cpu"))
    model, native = loaded.model, Target(loaded.model)
    use_engine(native, NATIVE)
    names = ["native engine", *(f"inputs of {bits} bits" for bits in given.bits)]
    changed, apart, margins, places = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0
    for prompt in prompts[:: given.every]:
        tokens = loaded.tokenizer(prompt.turns[0])["input_ids"][:LONGEST]
        if len(tokens) < 3:
            continue
        truth, found = of_model(model, tokens), {names[0]: of_target(native, tokens)}
        for bits, name in zip(given.bits, names[1:], strict=True):
            with inputs_of(model, bits):
                found[name] = of_model(model, tokens)
        best = truth.topk(2)
        places += len(truth)
        for name, logits in found.items():
            other = logits.argmax(-1) != best.indices[:, 0]
            changed[name] += int(other.sum())
            margins[name] = max([margins[name], *(best.values[:, 0] - best.values[:, 1])[other].tolist()])
            difference = logits - truth
            apart[name] += float((difference - difference.mean(-1, keepdim=True)).abs().mean(-1).sum())
    print("| | places | another best token | the largest margin of these | mean difference of a logit |")
    print("|---|---|---|---|---|")
    for name in names:
        print(f"| {name} | {places} | {changed[name]} | {margins[name]:.2g} | {apart[name] / max(places, 1):.1e} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
