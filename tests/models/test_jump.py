"""Paths that begin at a predicted state: which state each token is predicted from, however its block is cut."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
import torch
from torch import nn

from begun import CLOSE
from made import costs_for
from random_adapters import ADAPTED
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.drafters.paths.base import Use
from selfdraft.drafters.paths.jump import Jump, JumpConfig
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.paths.jump import JumpPath
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.trained.adapter import Adapter

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
EMPTY = TokenTree.empty()
# Branches 5 6 9 and 7 8, whose nodes are not in the order of their depths.
TREE = TokenTree(torch.tensor([5, 6, 9, 7, 8]), torch.tensor([-1, 0, 1, -1, 3]), torch.ones(5, dtype=torch.bool))


def jump_of(target: Target) -> JumpPath:
    """A jump over the first two of four layers, with random matrices."""
    width, random = target.model.config.hidden_size, torch.Generator().manual_seed(0)
    feature, jump = (nn.Linear(width, width, bias=False, dtype=target.dtype).requires_grad_(False) for _ in range(2))
    nn.init.normal_(feature.weight, std=width**-0.5, generator=random)
    nn.init.normal_(jump.weight, std=width**-0.5, generator=random)
    path = sparse_path(target, SkipSet.of(4, [0, 1], [0, 1]), feature=feature, jump=jump)
    assert isinstance(path, JumpPath) and path.leading == 0
    return path


def begun(family: str = "llama") -> Target:
    """In double precision, because each drafted token multiplies the rounding of those before it."""
    target = Target(tiny_model(family, dtype=torch.float64))
    target.allocate(2, 0)
    target.prefill(0, PROMPT)
    target.prefill(1, PROMPT[:3])
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_drafted_token_by_token_equals_the_chain_in_one_block(family: str) -> None:
    target = begun(family)
    path, rows = jump_of(target), [0, 1]
    one = []
    for offset, token in enumerate([2, 5, 6, 9]):
        one.append(target.draft_forward(path, rows, offset, [token, token], [EMPTY, EMPTY]))
    chain = TokenTree.chain([5, 6, 9])
    block = target.draft_forward(path, rows, 0, [2, 2], [chain, chain])
    for row in rows:
        torch.testing.assert_close(torch.cat([each[row] for each in one]), block[row], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_tree_every_branch_is_drafted_like_a_chain(family: str) -> None:
    target = begun(family)
    path = jump_of(target)
    # Beside it a row with a shorter tree, whose padding is nobody's parent.
    tree, short = target.draft_forward(path, [0, 1], 0, [2, 2], [TREE, TokenTree.chain([7, 8])])
    for nodes in ([0, 1, 2], [3, 4]):
        chain = TokenTree.chain(TREE.tokens[nodes].tolist())
        (alone,) = target.draft_forward(path, [0], 0, [2], [chain])
        torch.testing.assert_close(tree[[0, *(1 + node for node in nodes)]], alone, **CLOSE)
    torch.testing.assert_close(short, target.draft_forward(path, [1], 0, [2], [TokenTree.chain([7, 8])])[0], **CLOSE)


def test_the_first_token_goes_on_from_the_full_model_s_final_state() -> None:
    target = begun()
    path = jump_of(target)
    drafted = target.draft_forward(path, [0], 0, [2], [EMPTY])[0]
    kept = target.cache.finals[0]
    target.cache.finals[0] = None
    unknown = target.draft_forward(path, [0], 0, [2], [EMPTY])[0]
    assert not torch.allclose(drafted, unknown, atol=1e-3)
    target.cache.finals[0] = torch.zeros_like(kept)
    assert torch.equal(target.draft_forward(path, [0], 0, [2], [EMPTY])[0], unknown)
    target.cache.finals[0] = kept
    assert torch.equal(target.draft_forward(path, [0], 0, [2], [EMPTY])[0], drafted)


def test_a_replay_takes_over_no_state_of_a_draft_and_leaves_none() -> None:
    """Its blocks are elsewhere in the text than their slots say."""
    target, fresh = begun(), begun()
    path = jump_of(target)
    for offset, token in enumerate([2, 5, 6]):
        target.draft_forward(path, [0], offset, [token], [EMPTY])
    left = target.cache.drafted[0]
    replayed = target.replay(path, 0, 4, PROMPT[4:], block=2)
    assert torch.equal(replayed, fresh.replay(jump_of(fresh), 0, 4, PROMPT[4:], block=2))
    assert target.cache.drafted[0] is left


def test_what_a_draft_left_moves_and_is_cleared_with_its_row() -> None:
    target = begun()
    cache = target.cache
    assert cache.drafted == [None, None] and cache.drafted_before(0, 9) is None
    target.draft_forward(jump_of(target), [0], 0, [2], [TREE])
    start = len(PROMPT)
    assert cache.drafted_before(0, start) is None and cache.drafted_before(0, start + 7) is None
    assert cache.drafted_before(0, start + 6) is not None
    cache.move(0, 1)
    assert cache.drafted[1] is cache.drafted[0]
    cache.clear(0)
    assert cache.drafted[0] is None


def test_states_and_kept_states_are_those_of_the_run() -> None:
    target = begun()
    path, states, kept = jump_of(target), [], [[]]
    logits = target.draft_forward(path, [0], 0, [2], [TREE], keep=kept)[0]
    assert torch.equal(logits, target.draft_forward(path, [0], 0, [2], [TREE])[0])
    torch.testing.assert_close(kept[0][0], target.anatomy.embed(torch.tensor([2, *TREE.tokens])), **CLOSE)
    with torch.inference_mode():
        hidden = path.run(target, target._block([0], [len(PROMPT)], [2], [TREE]), [TREE], states)
    assert len(states) == 1 + len(path.layers)
    torch.testing.assert_close(target.norm(states[-1]), hidden, **CLOSE)


def test_weights_that_are_no_jump_are_refused(tmp_path: FilePath) -> None:
    target = begun()
    ADAPTED["early_exit with the feature"].written(target, tmp_path / "exit")
    config = JumpConfig(adapter=str(tmp_path / "exit"))
    with pytest.raises(UserError, match=r"^drafter\.path\.adapter=.*: finetune=jump did not train it; .*path=trained$"):
        Jump(target, config, costs_for(target), Use())
    width = target.model.config.hidden_size
    Adapter("jump", {}, {"jump.weight": torch.eye(width)}).write(tmp_path / "half")
    with pytest.raises(UserError, match=r"jump\.weight' needs feature\.weight beside it"):
        Adapter.read(tmp_path / "half")
    other = {"jump.weight": torch.eye(width), "feature.weight": torch.eye(3)}
    Adapter("jump", {}, other).write(tmp_path / "other")
    with pytest.raises(UserError, match="was trained for another one"):
        Jump(target, JumpConfig(adapter=str(tmp_path / "other")), costs_for(target), Use())
