"""Losslessness on stock models of every family: whatever drafts, the ids are those of `model.generate`.

Everything in float32 on random models whose best token leads by far more than rounding. So equality is asked for to the
last token, and no difference is excused as a tie.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from lossless import EVERY_CONFIG, LOSSLESS, ONE_EACH, cannot, name_of
from made import costs_for, made
from random_adapters import ADAPTED
from selfdraft.core.errors import UserError
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters import PROPOSALS
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig, PathDrafter
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from subjects import LENGTH, PROMPTS, stock_output, subject

# In batches, every config with one family at least, and every drafter that has a name with four. One by one, a config
# of every drafter. Families go round: a config begins where the one before it stopped.
NAMES = list(FAMILIES)


def shared_out(configs_of: Mapping[str, Sequence[DrafterConfig]], families: int, first: int) -> list:
    """Cases of (config, family): every config with a family or more, every drafter that has a name with `families`."""
    cases, turns = [], itertools.cycle([*NAMES[first:], *NAMES[:first]])
    for label, configs in configs_of.items():
        share = -(-(1 if "+" in label else families) // len(configs))
        for config in configs:
            able = (family for family in turns if not cannot(config, family))
            for family in itertools.islice(able, share):
                cases.append(pytest.param(config, family, id=f"{name_of(config)}-{family}"))
    return cases


ALONE = shared_out({name: configs[-1:] for name, configs in LOSSLESS.items()}, 1, first=0)
BATCHED = shared_out(LOSSLESS, 4, first=len(NAMES) // 2)
REFUSED = [(config, family) for config in ONE_EACH for family in FAMILIES if cannot(config, family)]
SUBJECTS = [(family, seed, seed == 2) for number, family in enumerate(FAMILIES) for seed in (number % 2, 2)]
MILD = [(family, 2, True) for family in FAMILIES]
SUBJECT_IDS = [f"{family}-{seed}" for family, seed, _ in SUBJECTS]


@pytest.mark.parametrize(("config", "family"), ALONE)
def test_one_by_one_the_ids_are_those_of_generate(family: str, config: DrafterConfig) -> None:
    it = subject(family, seed=EVERY_CONFIG.index(config) % 2, mild=False)
    alone = [0, 1]  # shorter and longer than the window
    drafter = made(it.target, config)
    assert [g.output for g in it.decode(drafter, 1, alone)] == [it.expected[i] for i in alone]


@pytest.mark.parametrize(("config", "family"), BATCHED)
def test_in_a_ragged_batch_the_ids_are_those_of_generate(family: str, config: DrafterConfig) -> None:
    it = subject(family, seed=2, mild=True)
    drafter = made(it.target, config)
    assert [g.output for g in it.decode(drafter, 3)] == it.expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "family"), zip(ADAPTED, itertools.cycle(["llama", "gemma3_text", "gpt_neox"]), strict=False)
)
def test_with_an_adapter_the_ids_are_those_of_generate(family: str, case: str, tmp_path: Path) -> None:
    it = subject(family, seed=2, mild=True)
    config = ADAPTED[case].written(it.target, tmp_path)
    drafter = made(it.target, config)
    assert [g.output for g in it.decode(drafter, 3)] == it.expected
    assert [g.output for g in it.decode(drafter, 1, [0, 1])] == it.expected[:2]


def test_every_drafter_that_takes_an_adapter_is_tried_with_one() -> None:
    """Pseudo tokens are, in test_pseudo_tokens.py: theirs are another kind."""
    taking = {name for name, proposal in PROPOSALS.items() if issubclass(proposal, PathDrafter)}
    configs = [case.drafter("folder") for case in ADAPTED.values()]
    assert {config.name for config in configs} == taking
    assert {config.path.name for config in configs} == {"trained", "jump"}


@pytest.mark.parametrize("case", ADAPTED)
def test_drafts_of_those_adapters_are_right_now_and_wrong_then(case: str, tmp_path: Path) -> None:
    it = subject("llama", seed=2, mild=True)
    config = ADAPTED[case].written(it.target, tmp_path)
    counted = [g.counts.acceptance_by_depth() for g in it.decode(made(it.target, config), 3)]
    levels = [by_depth[0] for by_depth in counted if by_depth]
    assert 0 < sum(level["accepted"] for level in levels) < sum(level["offered"] for level in levels)


@pytest.mark.parametrize(("config", "family"), REFUSED)
def test_a_family_that_a_drafter_cannot_serve_is_refused_by_name(family: str, config: DrafterConfig) -> None:
    with pytest.raises(UserError, match=f"'{family}'"):
        made(Target(tiny_model(family), packed=False), config)


@pytest.mark.parametrize("name", [name for name in LOSSLESS if name != "none"])
def test_those_drafts_are_right_now_and_wrong_then(name: str) -> None:
    """Or the equalities would say little. At two depths, over the first two of the drafter's configs."""
    it = subject("llama", seed=2, mild=True)
    generations = [g for config in LOSSLESS[name][:2] for g in it.decode(made(it.target, config), 3, [1, 3, 4])]
    levels = [g.counts.acceptance_by_depth() for g in generations]
    for depth in (0, 1):
        offered, accepted = (
            sum(level[depth][k] for level in levels if len(level) > depth) for k in ("offered", "accepted")
        )
        assert accepted > 0
        # The full model is always right, and here so is its copy in few bits (see test_weights.py for more).
        assert accepted < offered or name == "chain+full" or name.endswith("low_bit")


class GuessedTrees(Drafter):
    """Random trees around the right text: what today's drafters never propose, and tomorrow's will.

    Nodes branch anywhere, siblings may be equal, some are probes; about two in three that could be right are.
    """

    Config = DrafterConfig

    def __init__(self, target: Target, config: DrafterConfig, texts: Sequence[Sequence[int]]) -> None:
        super().__init__(target, config, costs_for(target))
        self.texts = texts

    def propose(self, context: Context) -> Draft:
        rng = context.rng
        text = next(t for t in self.texts if list(t[: len(context.tokens)]) == context.tokens)
        nodes = int(rng.integers(0, 14))
        parents = [int(rng.integers(max(ROOT, i - 5), i)) for i in range(nodes)]
        tokens: list[int] = []
        right: list[bool] = []
        depth: list[int] = []
        for parent in parents:
            depth.append(1 if parent == ROOT else depth[parent] + 1)
            position = len(context.tokens) - 1 + depth[-1]
            could_be = (parent == ROOT or right[parent]) and position < len(text)
            right.append(could_be and rng.random() < 0.65)
            tokens.append(text[position] if right[-1] else int(rng.integers(96)))
        flags = torch.as_tensor(rng.random(nodes) < 0.85)
        return Draft(TokenTree(torch.tensor(tokens, dtype=torch.long), torch.tensor(parents, dtype=torch.long), flags))


@pytest.mark.parametrize(("family", "seed", "mild"), SUBJECTS, ids=SUBJECT_IDS)
def test_with_any_tree_the_ids_are_those_of_generate(family: str, seed: int, mild: bool) -> None:
    it = subject(family, seed, mild)
    texts = [prompt + output for prompt, output in zip(PROMPTS, it.expected, strict=True)]
    for batch_size in (1, 3):
        generations = it.decode(GuessedTrees(it.target, DrafterConfig(), texts), batch_size)
        assert [g.output for g in generations] == it.expected
        # Paths were gathered out of the middle of trees, not only cut off at their ends.
        steps = [step for g in generations for step in g.steps]
        assert sum(path != list(range(len(path))) for _, _, path, *_ in steps) >= 5


@pytest.mark.parametrize(("family", "seed", "mild"), MILD, ids=FAMILIES)
def test_in_any_order_and_company_the_ids_are_the_same(family: str, seed: int, mild: bool) -> None:
    """Rows are refilled in another order, by a drafter that was used before and left nothing behind."""
    it = subject(family, seed, mild)
    config = configured("layer_skip", skip_attention=[2], draft_length=5)
    decoder = Decoder(it.target, made(it.target, config), Stopping(frozenset(), LENGTH), batch_size=2)
    for order in ([4, 2, 1], [2, 2, 1, 0]):
        run = decoder.run(Request(PROMPTS[i], key=i) for i in order)
        finished = [(request.key, generation.output) for request, generation in run if generation.ended]
        assert sorted(key for key, _ in finished) == sorted(order)
        assert all(output == it.expected[key] for key, output in finished)


@pytest.mark.parametrize("position", [6, 7, 8, 9])
def test_it_stops_where_generate_stops(position: int) -> None:
    """At an end of sequence in the midst of a draft: one of three tokens that are always right."""
    it = subject("llama", seed=0, mild=False)
    config = configured("layer_skip", sparsity=0.0, draft_length=3)
    eos = it.expected[1][position]
    written = stock_output(it.model, PROMPTS[1], eos_token_id=eos, pad_token_id=0)
    assert len(written) <= position + 1 < LENGTH
    decoder = Decoder(it.target, made(it.target, config), Stopping(frozenset({eos}), LENGTH))
    assert decoder.decode(PROMPTS[1]).output == written


@pytest.mark.parametrize(
    ("family", "configs"), zip(itertools.cycle(["llama", "gemma3_text"]), LOSSLESS.values(), strict=False), ids=LOSSLESS
)
def test_up_to_the_model_s_last_position_the_ids_are_those_of_generate(
    family: str, configs: Sequence[DrafterConfig]
) -> None:
    positions, prompt = 40, PROMPTS[1]
    model = tiny_model(family, max_positions=positions)
    target = Target(model)
    config = next(config for config in reversed(configs) if not cannot(config, family))
    drafter = made(target, config)
    output = Decoder(target, drafter, Stopping(frozenset(), 1000)).decode(prompt).output
    assert output == stock_output(model, prompt, positions - len(prompt))
