"""Shape-invariant forwards: a token's logits have the same bits in every block that computes them (grade 3, *bits*).

Measured on oneDNN's packed CPU kernels, in float32 and bfloat16:

* A row of a packed product has the same bits for any number of rows except one: rows are padded to an even number.
* Attention gives a query the same bits for any number of queries, unless only one or two remain after its blocks of 32.
  With an even number of rows, that first happens at 22 rows if three query heads share a key, in float32.
* The number of keys decides how they are summed, whether they are masked or not. So it must depend only on the token's
  position: keys are padded to whole blocks, and no draft reaches from one block into the next. With smaller blocks
  fewer masked keys are computed and more drafts are cut short: 128 costs least (invariance_cost.py).

A tree puts keys into other slots than a chain and so sums them in another order: only chains are verified in this mode.
No library guarantees any of this, so it is tried on the loaded model first, width by width, and drafts stay within the
widths that passed.
"""

from __future__ import annotations

import torch

from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.packing import PackedLinear
from selfdraft.models.target import Target
from selfdraft.models.teacher_forced import teacher_forced

KEY_BLOCK, ROW_BLOCK = 128, 2
WIDTHS = range(ROW_BLOCK, 32 + 1, ROW_BLOCK)  # rows of a padded forward, tried against single tokens
TRIED_BLOCKS = (1, 4, 5)  # numbers of key blocks: few, the most that are summed at once, and more than that
LEAST = 8  # rows; with fewer, drafting is not worthwhile


def make_shape_invariant(target: Target) -> None:
    """Switch `target` to shape-invariant forwards, for the baseline as for every drafter.

    Raises:
        UserError: blocks and single tokens still round differently on this machine or model.
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
    target.widest_draft, target.chains_only = width - 1, True


def widest_alike(target: Target) -> int:
    """Return the largest of `WIDTHS` up to which all round as single tokens do; 0 if the first does not.

    Tried on random texts that end near the end of a block of keys.
    """
    passed, count = max(WIDTHS), max(WIDTHS) + ROW_BLOCK
    forwards, generator = target.forwards, torch.Generator().manual_seed(0)
    for keys in (KEY_BLOCK * blocks for blocks in TRIED_BLOCKS):
        length = min(keys, target.max_positions) - ROW_BLOCK
        text = torch.randint(target.vocab_size, (length,), generator=generator).tolist()
        root, *after = text[length - count :]
        single = teacher_forced(target, text, length - count, 1)
        for width in range(ROW_BLOCK, passed + 1, ROW_BLOCK):
            target.cache.rewind(0, length - count)
            (together,) = target.forward([0], [root], [TokenTree.chain(after[: width - 1])])
            if not torch.equal(single[:width], together):
                passed = width - ROW_BLOCK
                break
    target.forwards = forwards
    return passed
