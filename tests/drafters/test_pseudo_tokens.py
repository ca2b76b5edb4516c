"""The drafter of pseudo tokens: gains of right drafts, and lossless text with wrong ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from made import made
from probed_rows import repeating_target
from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.pseudo_tokens import PseudoTokensConfig, probes_under
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.invariance import make_shape_invariant
from selfdraft.models.reference.processors import repetition_penalty
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.heads import SamplerHead
from selfdraft.models.trained.pseudo import untrained
from stub_target import StubTarget, script, successor

PROMPT = [5, 17, 3, 60, 42]


def decode(target, config: DrafterConfig, prompt: list[int], length: int, rule: NextToken | None = None) -> Generation:
    return Decoder(target, made(target, config), Stopping(frozenset(), length), rule=rule).decode(prompt, seed=1)


def by_depth(generation: Generation) -> list[tuple[int, int]]:
    return [(level["offered"], level["accepted"]) for level in generation.counts.acceptance_by_depth()]


def test_right_probes_draft_while_the_same_forward_verifies() -> None:
    """A text decided by position: the first step has only probes, every further one commits three and the bonus."""
    target = StubTarget(script(list(range(1, 20))))
    generation = decode(target, PseudoTokensConfig(costs="flat"), [1], 13)
    assert generation.output == list(range(2, 15))
    assert by_depth(generation) == [(3, 3)] * 3 and target.forwards == 4
    first, second = (trees[0] for _, trees in target.seen[:2])
    assert not first.is_candidate.any() and len(first) == 3
    assert len(second) == 3 + 4 * 3  # candidates, and three probes under each and under the root


def test_wrong_probes_are_rejected() -> None:
    """Counting up, a probe's prediction depends on the token that the probe stands for, which a stub does not know."""
    generation = decode(StubTarget(successor), PseudoTokensConfig(costs="flat"), [20], 12)
    assert generation.output == list(range(21, 33))
    assert generation.counts.target_forwards == 12
    assert all(accepted == 0 for _, accepted in by_depth(generation))


def test_drafting_stops_if_it_does_not_pay() -> None:
    offered = []
    for costs in ("flat", "measured"):
        target = StubTarget(successor, vocab_size=300)
        target.costs = CostCurve((1, 64), (1.0, 32.0))  # one token more costs half a forward more
        offered.append(by_depth(decode(target, PseudoTokensConfig(costs=costs), [20], 200))[0][0])
    assert offered[0] > 190 and offered[1] < 60


def test_probes_go_to_likely_ends_and_fewer_if_tokens_are_expensive() -> None:
    """The stub's probes are right and sure: the accepted tokens end at the last candidate, and nowhere else."""
    seen = []
    for cost in (1.5, 6.0):
        target = StubTarget(script(list(range(1, 60))))
        target.costs = CostCurve((1, 64), (1.0, cost))
        assert decode(target, PseudoTokensConfig(), [1], 45).output == list(range(2, 47))
        seen.append([trees[0] for _, trees in target.seen])
    cheap, expensive = ([int((~tree.is_candidate).sum()) for tree in trees[1:-3]] for trees in seen)
    assert set(expensive) == {3} and sum(cheap) >= sum(expensive)
    assert all(probes_under(tree, int(tree.is_candidate.sum()) - 1) for tree in seen[1][1:-3])


def test_branches_are_tried_by_falling_probability() -> None:
    target = StubTarget(script(list(range(1, 20))))
    decode(target, PseudoTokensConfig(count=2, branches=2, nodes=6, costs="flat"), [1], 8)
    tree = target.seen[1][1][0]
    assert int(tree.is_candidate.sum()) == 6
    assert tree.tokens[:2].tolist() == [3, 4] and tree.parents[:2].tolist() == [ROOT, 0]  # the likeliest, and below it


def test_probes_are_found_in_the_verified_part_of_the_tree() -> None:
    tree = TokenTree.chain([5, 6]).probed(2, 0)
    assert [probes_under(tree, node) for node in (ROOT, 0, 1)] == [[2, 3], [4, 5], [6, 7]]
    cut = tree.up_to_depth(2)
    assert [probes_under(cut, node) for node in (ROOT, 0, 1)] == [[2, 3], [4], []]
    assert probes_under(TokenTree.empty(), ROOT) == []


@pytest.fixture
def repeating() -> Target:
    return repeating_target()


def oracle(target: Target, folder: Path, **tensors: torch.Tensor) -> str:
    """An adapter that knows what that model will say, with a LoRA beside it that changes little."""
    adapter = untrained(target, 3, noise=0.01)
    pseudo = target.anatomy.embed(torch.tensor([PROMPT[-1]] * 3)).detach()
    replace(adapter, tensors={**adapter.tensors, "pseudo": pseudo, **tensors}).write(folder)
    return str(folder)


@pytest.mark.parametrize("rule", [NextToken(), NextToken(sample=True, temperature=0.5)], ids=["greedy", "sampled"])
def test_all_drafts_of_a_perfect_adapter_are_accepted(repeating: Target, tmp_path: Path, rule: NextToken) -> None:
    config = PseudoTokensConfig(adapter=oracle(repeating, tmp_path), costs="flat")
    generation = decode(repeating, config, PROMPT, 25, rule)
    assert generation.output == decode(repeating, DrafterConfig(), PROMPT, 25, rule).output
    assert generation.counts.target_forwards == 7  # one token, and six times four


def test_an_adapter_s_sampler_is_used(repeating: Target, tmp_path: Path) -> None:
    head = SamplerHead(32)
    identity = {f"sampler.{name}": t for name, t in head.state_dict().items()}
    right = decode(
        repeating, PseudoTokensConfig(adapter=oracle(repeating, tmp_path / "a", **identity), costs="flat"), PROMPT, 25
    )
    assert right.counts.target_forwards == 7
    wrong = {**identity, "sampler.outer.bias": -1000 * repeating.anatomy.embed(torch.tensor(PROMPT[-1])).detach()}
    misled = decode(
        repeating, PseudoTokensConfig(adapter=oracle(repeating, tmp_path / "b", **wrong), costs="flat"), PROMPT, 25
    )
    assert misled.output == right.output and misled.counts.target_forwards == 25


@pytest.mark.parametrize(("known", "forwards"), [(True, 7), (False, 25)])
def test_a_sampler_drafts_only_token_ids_of_its_vocabulary(
    repeating: Target, tmp_path: Path, known: bool, forwards: int
) -> None:
    ids = [3, 9, PROMPT[-1], 40, 41, 44] if known else [t for t in range(60) if t != PROMPT[-1]]
    sampler = {f"sampler.{name}": t for name, t in SamplerHead(32).state_dict().items()}
    folder = oracle(repeating, tmp_path, vocabulary=torch.tensor(ids), **sampler)
    generation = decode(repeating, PseudoTokensConfig(adapter=folder, costs="flat"), PROMPT, 25)
    assert generation.output == decode(repeating, DrafterConfig(), PROMPT, 25).output
    assert generation.counts.target_forwards == forwards


def test_in_a_chain_only_the_last_candidate_s_probes_are_kept(repeating: Target, tmp_path: Path) -> None:
    make_shape_invariant(repeating)
    config = PseudoTokensConfig(adapter=oracle(repeating, tmp_path), costs="flat")
    generation = decode(repeating, config, PROMPT, 25)
    assert generation.output == decode(repeating, DrafterConfig(), PROMPT, 25).output
    assert generation.counts.target_forwards < 25


@pytest.mark.parametrize("sample", [False, True])
def test_logits_processors_never_see_probes(sample: bool) -> None:
    target = Target(tiny_model("llama", seed=2))
    rule = NextToken(sample=sample, processors=(repetition_penalty(1.4),))
    config = PseudoTokensConfig(count=2, branches=3, nodes=9, noise=0.3, costs="flat")
    assert decode(target, config, PROMPT, 20, rule).output == decode(target, DrafterConfig(), PROMPT, 20, rule).output


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    target = Target(tiny_model("llama"))
    with pytest.raises(UserError, match="there is no such file"):
        made(target, PseudoTokensConfig(adapter=str(tmp_path / "none")))
    Adapter("lora", {}, {"vocabulary": torch.arange(2)}).write(tmp_path)
    with pytest.raises(UserError, match="recipe 'lora' trained no pseudo tokens"):
        made(target, PseudoTokensConfig(adapter=str(tmp_path)))
