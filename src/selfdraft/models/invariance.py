"""Shape-invariant forwards: a token's logits have the same bits in whatever block they are computed (grade 3, *bits*).

Measured on oneDNN's packed CPU kernels, in float32 and bfloat16:

* A row of a packed product has the same bits for any number of rows but one: rows are padded to an even number.
* Attention gives a query the same bits for any number of queries, unless one or two alone are left over from its blocks
  of 32: with the even number, that first happens at 22 rows where three query heads share a key, in float32.
* Keys are summed up in blocks of 512, and a block that is masked as a whole adds nothing, to the bit: keys are padded
  to whole blocks.

A tree puts keys into other slots than a chain, to be summed up in another order: only chains are verified in this mode.
None of this is promised by anybody, so it is tried on the loaded model before it is relied on, width by width: drafts
stay within the widths that passed.
"""

from __future__ import annotations

import torch

from selfdraft.core.errors import UserError
from selfdraft.models.packing import PackedLinear
from selfdraft.models.target import Target

KEY_BLOCK, ROW_BLOCK = 512, 2
WIDTHS = range(ROW_BLOCK, 32 + 1, ROW_BLOCK)  # rows of a padded forward, tried against single tokens
LEAST = 8  # rows below which drafting is not worth while


def make_shape_invariant(target: Target) -> None:
    """Switch `target` to shape-invariant forwards, for the baseline as for every drafter.

    Raises:
        UserError: this machine or model rounds differently all the same.
    """
    target.key_block, target.row_block = KEY_BLOCK, ROW_BLOCK
    for linear in target.linears():
        if isinstance(linear, PackedLinear):
            linear.plain_rows = 0  # one kernel for any number of rows
    width = widest_alike(target)
    if width < LEAST:
        raise UserError(
            f"decoding.shape_invariant=true: on this machine and model, tokens in blocks of {width + ROW_BLOCK} do not "
            "have the bits of tokens computed one by one; use decoding.shape_invariant=false "
            "(and model.packed=true on a CPU)"
        )
    target.longest_draft, target.chains_only = width - 1, True


def widest_alike(target: Target) -> int:
    """The largest of `WIDTHS` for which it and all smaller ones round as single tokens do; 0 if the first does not.

    On a random text that begins within one block of keys and ends within the next.
    """
    count = 40
    prefix = max(1, min(KEY_BLOCK - count // 2, target.max_positions - count))
    text = torch.randint(target.vocab_size, (prefix + count,), generator=torch.Generator().manual_seed(0)).tolist()
    single, *blocks = target.teacher_forced_in(text, prefix, (1, *WIDTHS))
    passed = 0
    for width, block in zip(WIDTHS, blocks, strict=True):
        if not torch.equal(single, block):
            break
        passed = width
    return passed
