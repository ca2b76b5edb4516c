"""Make a token's logits the same, to the bit, in every forward that computes them (`decoding.shape_invariant=true`).

Usually a forward of five tokens rounds differently from five forwards of one, so a draft can change a token where two
are nearly equal. With the rules of this file it cannot, in any dtype (certificate grade 3, *bits*).

The native engine needs no such rules. It sums in the same order for any number of tokens, and takes the keys that a
token sees in the order of the text, wherever in the cache a tree has put them. So it verifies trees of any form without
padding. The rest is about layers that run one by one.

Measured on oneDNN's packed CPU kernels, in float32 and bfloat16:

* A row of a packed product has the same bits for any number of rows except one: rows are padded to an even number.
* Attention gives a query the same bits for any number of queries, unless only one or two remain after its blocks of 32.
  With an even number of rows, that first happens at 22 rows if three query heads share a key, in float32.
* The number of keys decides how they are summed, whether they are masked or not. So it must depend only on the token's
  position: keys are padded to whole blocks, and no draft reaches from one block into the next. With smaller blocks
  fewer masked keys are computed and more drafts are cut short: 128 costs least (invariance_cost.py).

A tree puts keys into other slots than a chain and so sums them in another order: only chains are verified there. No
library guarantees any of this, so it is tried on the loaded model first, width by width, and drafts stay within the
widths that passed.
"""

from __future__ import annotations

import torch

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.packing import PackedLinear
from selfdraft.models.reference.teacher_forced import teacher_forced

KEY_BLOCK, ROW_BLOCK = 128, 2
WIDTHS = range(ROW_BLOCK, 32 + 1, ROW_BLOCK)  # numbers of rows of a padded forward that are compared with single tokens
TRIED_BLOCKS = (1, 4, 5)  # numbers of key blocks: few, the most that are summed at once, and more than that
TEXTS = (3, 61, 515)  # lengths of texts after which a tree is tried
PARENTS = (-1, 0, 0, 1, -1, 4, 3, 6, 7, 4)  # the parent of each node of that tree
LEAST = 8  # rows; if fewer are alike, drafts are too short to be worthwhile


def make_shape_invariant(target: Target) -> None:
    """Switch `target` to shape-invariant forwards, for the baseline as for every drafter.

    Raises:
        UserError: blocks and single tokens still round differently on this machine or model.
    """
    if isinstance(target, StatefulTarget):
        raise _differs("tokens in blocks of a model that runs as a whole do not", "another model")
    if target.native is not None:
        if not alike_in_trees(target):
            raise _differs("tokens of a tree do not", "model.engine=eager")
        return
    target.key_block, target.row_block = KEY_BLOCK, ROW_BLOCK
    for linear in target.linears():
        if isinstance(linear, PackedLinear):
            linear.plain_rows = 0  # one kernel for any number of rows
    width = widest_alike(target)
    if width < LEAST:
        raise _differs(f"tokens in blocks of {width + ROW_BLOCK} do not", "model.packed=true on a CPU")
    target.widest_draft, target.chains_only = width - 1, True


def _differs(what: str, instead: str) -> UserError:
    return Unsupported(
        f"decoding.shape_invariant=true: on this machine and model, {what} have the bits of tokens computed one by "
        f"one; use decoding.shape_invariant=false (or {instead})"
    )


def _tree(nodes: list[int]) -> TokenTree:
    return TokenTree(torch.tensor(nodes), torch.tensor(PARENTS), torch.ones(len(nodes), dtype=torch.bool))


def alike_in_trees(target: Target) -> bool:
    """Return whether a random tree's logits have the same bits as those of its tokens one by one, after several texts.

    Every branch of the tree is decoded by itself as well, token by token.
    """
    forwards, generator = target.forwards, torch.Generator().manual_seed(0)
    alike = True
    for length in sorted({min(length, target.max_positions - 8) for length in TEXTS}):
        text = torch.randint(target.vocab_size, (length,), generator=generator).tolist()
        nodes = torch.randint(target.vocab_size, (len(PARENTS),), generator=generator).tolist()
        target.allocate(1, length + len(PARENTS) + 1)
        target.prefill(0, text[:-1])
        (together,) = target.forward([0], text[-1:], [_tree(nodes)])
        for leaf in set(range(len(PARENTS))) - set(PARENTS):
            branch = [leaf]
            while PARENTS[branch[0]] >= 0:
                branch.insert(0, PARENTS[branch[0]])
            target.cache.rewind(0, length - 1)
            for row, token in zip(
                [0, *(node + 1 for node in branch)], [text[-1], *(nodes[n] for n in branch)], strict=True
            ):
                (single,) = target.forward([0], [token], [TokenTree.empty()])
                alike &= torch.equal(single[0], together[row])
                target.commit(0, [])
        target.cache.clear(0)
    target.forwards = forwards
    return alike


def widest_alike(target: Target) -> int:
    """Return the largest of `WIDTHS` up to which all forwards round as those of single tokens; 0 if the first does not.

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
