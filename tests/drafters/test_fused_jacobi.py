"""Trained Jacobi: predictions are fed back, right drafts save forwards, and wrong ones change no text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from made import made
from probed_rows import repeating_target
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import ROOT
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.fused_jacobi import FusedJacobiConfig
from selfdraft.models.forward.target import Target
from selfdraft.models.reference.invariance import make_shape_invariant
from selfdraft.models.trained.fused import untrained_rows
from selfdraft.models.trained.heads import ConfidenceHead, MarkovHead
from stub_target import StubTarget, script

PROMPT = [5, 17, 3, 60, 42]


def decode(target, config: DrafterConfig, prompt: list[int], length: int, rule: NextToken | None = None) -> Generation:
    return Decoder(target, made(target, config), Stopping(frozenset(), length), rule=rule).decode(prompt, seed=1)


def test_right_rows_draft_while_the_same_forward_verifies() -> None:
    """A text decided by position: the first step has only gated rows, every further one commits three and the bonus."""
    target = StubTarget(script(list(range(1, 20))))
    generation = decode(target, FusedJacobiConfig(costs="flat"), [1], 13)
    assert generation.output == list(range(2, 15))
    assert target.forwards == 4


def test_gated_rows_get_the_predictions_of_the_step_before_and_masks_after_them() -> None:
    target = StubTarget(script(list(range(1, 40))))
    decode(target, FusedJacobiConfig(costs="flat", nodes=2), [1], 20)
    first, second = (trees[0] for _, trees in target.seen[:2])
    assert first.tokens.tolist() == [target.pad_id] * 3  # nothing is known yet
    # Three tokens are predicted, 3 4 5, and two of them drafted.
    assert second.tokens[:2].tolist() == [3, 4]
    fed = {parent: [] for parent in (ROOT, 0, 1)}
    for node in range(2, len(second)):
        end = node
        while not second.is_candidate[end]:
            end = second.parent_list[end]
            if end == ROOT:
                break
        fed[end].append(int(second.tokens[node]))
    assert fed[1] == [5, 0, 0]  # the prediction after both, then masks
    assert fed[0] == [0, 5, 0]  # if 4 is rejected, it is known to be wrong
    assert fed[ROOT] == [0, 4, 5]
    without = StubTarget(script(list(range(1, 40))))
    decode(without, FusedJacobiConfig(costs="flat", nodes=2, feedback=False), [1], 20)
    assert without.seen[1][1][0].tokens[2:].unique().tolist() == [without.pad_id]


@pytest.fixture
def repeating() -> Target:
    return repeating_target()


def oracle(target: Target, folder: Path, **tensors: torch.Tensor) -> str:
    """Rows that go on from the state of the node they follow: with this model, they know what comes."""
    adapter = untrained_rows(target, 3, noise=0.001)
    replace(adapter, tensors={**adapter.tensors, **tensors}).write(folder)
    return str(folder)


@pytest.mark.parametrize("rule", [NextToken(), NextToken(sample=True, temperature=0.5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("invariant", [False, True])
def test_all_drafts_of_perfect_rows_are_accepted(
    repeating: Target, tmp_path: Path, rule: NextToken, invariant: bool
) -> None:
    if invariant:
        make_shape_invariant(repeating)
    config = FusedJacobiConfig(adapter=oracle(repeating, tmp_path), costs="flat", branches=1, nodes=4)
    generation = decode(repeating, config, PROMPT, 25, rule)
    assert generation.output == decode(repeating, DrafterConfig(), PROMPT, 25, rule).output
    assert generation.counts.target_forwards == 7  # one token, and six times four


def test_the_markov_head_can_mislead_and_the_confidence_head_can_stop(repeating: Target, tmp_path: Path) -> None:
    markov = MarkovHead(32, repeating.vocab_size, 2)
    embedded = repeating.anatomy.embed(torch.tensor(PROMPT[-1])).detach()
    up = torch.zeros(repeating.vocab_size, 2)
    up[9] = 1e4
    wrong = {"markov.down.weight": embedded.expand(2, -1), "markov.up.weight": up}
    assert {f"markov.{name}" for name, _ in markov.named_parameters()} == set(wrong)
    config = FusedJacobiConfig(adapter=oracle(repeating, tmp_path / "a", **wrong), costs="flat", branches=1)
    misled = decode(repeating, config, PROMPT, 25)
    assert misled.counts.target_forwards == 25
    unsure = {f"confidence.{name}": torch.zeros_like(p) for name, p in ConfidenceHead(32).named_parameters()}
    unsure["confidence.outer.bias"] = torch.tensor([-20.0])
    config = FusedJacobiConfig(adapter=oracle(repeating, tmp_path / "b", **unsure), branches=1)
    offered = decode(repeating, config, PROMPT, 2).counts.acceptance_by_depth()
    assert not sum(level["offered"] for level in offered)  # until it has seen one be right, nothing pays
    assert misled.output == decode(repeating, DrafterConfig(), PROMPT, 25).output
