"""Grade 1 of lossless, for sampling: the distribution of whole sequences, against one that is enumerated.

A tiny model over eight tokens has 512 answers of three tokens. Their probabilities come from the stock model and from
transformers' own warpers, one answer at a time: nothing of ours is in them. Against them stand the counts of many
decodings, by a chi-square test.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lossless import ONE_EACH, ONE_NAMES, TRIED, name_of
from made import costs_for, made
from random_adapters import ADAPTED
from random_drafts import RandomTree, RandomTreeConfig
from selfdraft.core.acceptance import reject
from selfdraft.core.costs import CostCurve
from selfdraft.core.sampling import NextToken, draw
from selfdraft.decoding import loop
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters import PROPOSALS
from selfdraft.drafters.base import Context, Drafter, DrafterConfig, PathDrafterConfig
from selfdraft.drafters.chain import Chain, ChainConfig, _Chain
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.processors import repetition_penalty

VOCABULARY, LENGTH = 8, 3
PROMPT = [1, 5, 2, 6, 1, 5]  # its last tokens stood before: lookups find something
ROWS = 100
# Answers that are counted: of random trees, which show what a verification can do wrong; of a drafter; and of one that
# runs the model for each request by itself, not for all rows at once.
TRIALS, DRAFTER_TRIALS, FEWER_TRIALS = 1200, 500, 320
LEAST_EXPECTED = 5.0  # cells with less are put together: the test's approximation needs that
# Some fifty tests are made. At 1e-6 each, one false alarm in twenty thousand choices of seeds; the planted faults must
# fall below it.
SIGNIFICANCE = 1e-6

RULES: dict[str, tuple[NextToken, list]] = {
    "T=1": (NextToken(sample=True), []),
    "T=0.7": (NextToken(sample=True, temperature=0.7), [TemperatureLogitsWarper(0.7)]),
    "top_k=3": (NextToken(sample=True, top_k=3), [TopKLogitsWarper(3)]),
    "top_p=0.8": (NextToken(sample=True, top_p=0.8), [TopPLogitsWarper(0.8)]),
    "min_p=0.2": (NextToken(sample=True, min_p=0.2), [MinPLogitsWarper(0.2)]),
    "penalty=1.5": (
        NextToken(sample=True, processors=(repetition_penalty(1.5),)),
        [RepetitionPenaltyLogitsProcessor(1.5)],
    ),
}
TREES = [RandomTreeConfig(how=how) for how in ("with", "without", "certain")]
# What is drawn from distributions and verified by them: chains, and Jacobi's blocks unless they follow measured costs.
# All other drafts are no draws, and their text is compared with that of sampling without drafts, token by token.
DISTINCT: list[DrafterConfig] = [
    DrafterConfig(),
    JacobiConfig(window=3, refine_steps=3, init="prompt_random", candidates=1, costs="flat"),
    JacobiConfig(window=3, init="previous_tail", candidates=1, costs="flat"),
    JacobiConfig(window=2, refine_steps=2, init="ngram", mode="literal"),
    JacobiConfig(window=2, refine_steps=9, init="ngram", candidates=3, costs="flat"),
    JacobiConfig(window=3, refine_steps=1, mode="literal", order="gauss_seidel", candidates=2),
    configured("layer_skip", sparsity=0.5, draft_length=2),
    configured("layer_skip", skip_attention=[1, 2], skip_mlp=[1, 2], min_confidence=0.3),
    configured("layer_skip", sparsity=0.5, draft_length=2, siblings=True, draft_vocabulary=6),
    configured("early_exit", draft_length=3, bonus="forgo"),
    configured("early_exit", draft_length=2, siblings=True, length="gain"),
    configured("swift", draft_length=2, context_window=1, min_confidence=0.2),
    configured("clasp", sparsity=0.5, interval=1, draft_length=2),
    configured("dynamic_exit", stride=1, interval=2, draft_length=2),
    configured("width_skip", ratio=0.5, draft_length=2),
    configured("sparse_kv", sink=1, recent=2, top_k=1, refresh=1, draft_length=2),
    configured("sparse_jacobi", window=2, sparsity=0.5),
    PoolConfig(costs="flat", max_nodes=8, warm=True),  # no draw
    # A path that reads states, chooses keys or a length of its own, under every way to propose:
    configured("chain", path="full", draft_length=2),
    configured("jacobi", path="clasp", window=2, sparsity=0.5, interval=1),
    configured("jacobi", path="sparse_kv", window=3, sink=1, recent=2, top_k=1, refresh=1),
    *TREES,
]


class PrefilledOnce(Target):
    """Copies the keys of a prompt from another row that begins with it: thousands of requests here have the same."""

    known: tuple[list[int], torch.Tensor | None] | None = None

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        holding = [each for each, length in enumerate(self.cache.lengths) if length >= len(tokens)]
        if self.known is None or self.known[0] != list(tokens) or not holding:
            super().prefill(row, tokens)
            self.known = list(tokens), self.cache.finals[row]
            return
        self.cache.move(holding[0], row)
        self.cache.rewind(row, len(tokens))
        self.cache.finals[row] = self.known[1]


def target() -> Target:
    """The target of tests in which prompts differ."""
    return target_of(Target)


@cache
def target_of(kind: type[Target]) -> Target:
    """Flat enough that no answer dominates: faults must have something to bend."""
    model = tiny_model("llama", vocab_size=VOCABULARY, layers=4, hidden=16, heads=2, kv_heads=1, seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.35)
    return kind(model, packed=False)


@cache
def expected(rule: str) -> dict[tuple[int, ...], float]:
    """The probability of every answer."""
    warpers, model = LogitsProcessorList(RULES[rule][1]), target().model
    answers = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
    probability = np.ones(len(answers))
    for at in range(LENGTH):
        ids = torch.tensor([[*PROMPT, *answer[:at]] for answer in answers])
        with torch.no_grad():
            scores = model(ids).logits[:, -1].float()
        step = warpers(ids, scores).softmax(-1).double()
        probability *= step[torch.arange(len(answers)), torch.tensor([answer[at] for answer in answers])].numpy()
    return dict(zip(answers, probability.tolist(), strict=True))


def drafter_of(config: DrafterConfig, kind: type[Target] = Target) -> Drafter:
    """The drafter of a config, those of this file included."""
    if isinstance(config, RandomTreeConfig):
        return RandomTree(target_of(kind), config, costs_for(target_of(kind)))
    return made(target_of(kind), config)


def test_every_drafter_is_among_those_that_are_tried() -> None:
    every = [*DISTINCT, *UNDRAWN]
    tried = {part.name for config in every for part in (config, getattr(config, "path", config))}
    assert {config.label for config in every} | tried >= TRIED


def trials_for(config: DrafterConfig) -> int:
    """How many answers are counted."""
    if isinstance(config, RandomTreeConfig):
        return TRIALS
    drafted_together = config.name == "chain" and config.path.name in ("full", "layer_skip", "early_exit")
    by_itself = isinstance(config, PathDrafterConfig) and (not drafted_together or config.siblings)
    return FEWER_TRIALS if by_itself or getattr(config, "mode", "") == "literal" else DRAFTER_TRIALS


def p_value(config: DrafterConfig, rule: str, seed: int = 0, trials: int | None = None) -> float:
    """Of `trials_for` answers; zero where one came out that has no probability.

    For each two of an answer's tokens a chi-square test of the pairs; of these three, the least times three. There are
    64 pairs but 512 answers, most of which would be too rare to be tested by themselves.
    """
    trials = trials or trials_for(config)
    # All requests have the same prompt, and nothing else: so a row that holds enough tokens begins with it.
    drafter = drafter_of(config, PrefilledOnce)
    decoder = Decoder(drafter.target, drafter, Stopping(frozenset(), LENGTH), rule=RULES[rule][0], batch_size=ROWS)
    requests = [Request(PROMPT, seed=seed * trials + i) for i in range(trials)]
    counts = Counter(tuple(g.output) for _, g in decoder.run(requests) if g.ended)
    assert counts.total() == trials
    probabilities = expected(rule)
    if any(probabilities[answer] < 1e-12 for answer in counts):
        return 0.0
    observed, wanted = np.zeros((VOCABULARY,) * LENGTH), np.zeros((VOCABULARY,) * LENGTH)
    for answer, probability in probabilities.items():
        observed[answer], wanted[answer] = counts[answer], probability * trials
    tests = [of_pairs(observed.sum(left_out).ravel(), wanted.sum(left_out).ravel()) for left_out in range(LENGTH)]
    return min(1.0, len(tests) * min(tests))


def of_pairs(observed: np.ndarray, wanted: np.ndarray) -> float:
    """The p-value of counts, the rare ones put together."""
    rare = wanted < LEAST_EXPECTED
    if wanted[rare].sum() >= LEAST_EXPECTED:
        observed = np.append(observed[~rare], observed[rare].sum())
        wanted = np.append(wanted[~rare], wanted[rare].sum())
    else:
        observed, wanted = observed[~rare], wanted[~rare]
    assert len(observed) > VOCABULARY
    return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def draws(config: DrafterConfig) -> bool:
    """Whether drafts are drawn from distributions, which the verification takes into account."""
    if isinstance(config, JacobiConfig):
        return config.literal or config.costs == "flat"
    return isinstance(config, ChainConfig)


def some_rules(number: int, config: DrafterConfig) -> list[str]:
    """Of each drafter one, by turns: what a rule does to a tree is the loop's. One kind of random tree meets all."""
    rules = list(RULES)
    if config in TREES:
        return rules if config == TREES[0] else rules[TREES.index(config) - 1 :: 2]
    return [rules[number % len(rules)]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "rule"),
    [
        pytest.param(config, rule, id=f"{name_of(config)}-{rule}")
        for number, config in enumerate(DISTINCT)
        for rule in some_rules(number, config)
    ],
)
def test_answers_are_distributed_as_the_target_alone_would_write_them(config: DrafterConfig, rule: str) -> None:
    assert p_value(config, rule) > SIGNIFICANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTED)
def test_with_an_adapter_answers_are_distributed_as_without_one(case: str, tmp_path: Path) -> None:
    config = ADAPTED[case].written(target(), tmp_path)
    assert p_value(config, "top_k=3", trials=FEWER_TRIALS) > SIGNIFICANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTED)
def test_with_an_adapter_the_same_seed_writes_the_same_text_in_any_batch(case: str, tmp_path: Path) -> None:
    check_any_batch(ADAPTED[case].written(target(), tmp_path))


UNDRAWN = [config for config in [JacobiConfig(), *ONE_EACH] if not draws(config)]


@pytest.mark.slow
@pytest.mark.parametrize("config", UNDRAWN, ids=map(name_of, UNDRAWN))
def test_a_draft_that_is_no_draw_gives_the_very_text_of_sampling_without_drafts(config: DrafterConfig) -> None:
    """One number for each position, drawn beforehand, decides; so the same seed writes the same text."""
    rule = NextToken(sample=True, temperature=0.9)
    answers = []
    for chosen in (config, DrafterConfig()):
        decoder = Decoder(target(), drafter_of(chosen), Stopping(frozenset(), 12), rule=rule)
        answers.append([decoder.decode(PROMPT, seed=seed).output for seed in range(8)])
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", [*ONE_EACH, *TREES], ids=[*ONE_NAMES, "with", "without", "certain"])
def test_the_same_seed_writes_the_same_text_in_any_batch(config: DrafterConfig) -> None:
    check_any_batch(config)


def check_any_batch(config: DrafterConfig) -> None:
    """Alone, in a batch of three, and in one of four in the opposite order."""
    texts = []
    for rows, order in ((1, 1), (3, 1), (4, -1)):
        drafter = drafter_of(config)
        decoder = Decoder(
            target(), drafter, Stopping(frozenset(), 7), rule=NextToken(sample=True, top_k=5), batch_size=rows
        )
        requests = [Request(PROMPT[: 2 + i % 4], seed=i, key=i) for i in range(5)][::order]
        texts.append({request.key: g.output for request, g in decoder.run(requests) if g.ended})
    assert texts[0] == texts[1] == texts[2]


# The test must be able to fail: four faults of the peers, each planted where it would stand.


def unwarped_bonus(tree, p, q, trials, draws):
    """SWIFT's: what follows the accepted tokens is drawn at temperature 1, whatever the temperature is."""
    right, _ = reject(tree, p, q, trials, draws)
    raw = p**0.7
    return right, draw(raw / raw.sum(-1, keepdim=True), draws)


def pad_accepted(tree, p, q, trials, draws):
    """SWIFT's too: drafts are padded with token 0, and the padding passes for a draft."""
    right, after = reject(tree, p, q, trials, draws)
    return right | (tree.tokens == 0), after


def residual_of_the_wrong_branch(tree, p, q, trials, draws):
    """The rejected child's distribution is left in, and its neighbour's is subtracted."""
    return reject(tree, p, q.roll(1, dims=0), trials, draws)


def longest_of_independent_samples(tree, p, q, trials, draws):
    """REST's: each branch is verified with samples of its own, and the one that gets furthest wins."""
    parents = tree.parents + 1
    own = torch.rand(len(tree), generator=torch.Generator().manual_seed(int(draws[0] * 2**40)))
    return draw(p[parents], own) == tree.tokens, draw(p, draws)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rule", "how"),
    [
        (unwarped_bonus, "T=0.7", "with"),
        (pad_accepted, "T=1", "with"),
        (residual_of_the_wrong_branch, "T=1", "without"),
        (longest_of_independent_samples, "T=1", "with"),
    ],
)
def test_a_planted_fault_is_caught(monkeypatch: pytest.MonkeyPatch, fault: Callable, rule: str, how: str) -> None:
    """That the same tree and rule pass without a fault is tested above."""
    config = RandomTreeConfig(how=how)
    monkeypatch.setattr(loop, "reject", fault)
    assert p_value(config, rule) < SIGNIFICANCE


@pytest.mark.slow
def test_min_new_tokens_forbids_the_end_at_every_node_before() -> None:
    rule = NextToken(eos=frozenset({3, 4}), min_new_tokens=5)
    for config in (*ONE_EACH, replace(TREES[2])):
        decoder = Decoder(target(), drafter_of(config), Stopping(rule.eos, 20), rule=rule)
        output = decoder.decode(PROMPT).output
        assert not {3, 4} & set(output[:5])
        alone = Decoder(target(), made(target(), DrafterConfig()), Stopping(rule.eos, 20), rule=rule)
        assert output == alone.decode(PROMPT).output


class KeepsByWhatWasDrawn(Chain):
    """A fault of our own, found late: the last draw is verified or not by how likely it is itself."""

    def _bonus_pays(self, context: Context, chain: _Chain) -> bool:
        sampling, context.rule = context.rule, NextToken()
        pays = super()._bonus_pays(context, chain)
        context.rule = sampling
        return pays


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "exact"), [(Chain, True), (KeepsByWhatWasDrawn, False)])
def test_whether_a_draw_is_kept_may_not_depend_on_it(
    drafter: type[Chain], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With costs at which the last token is kept now and left out then."""
    monkeypatch.setitem(PROPOSALS, "chain", drafter)
    monkeypatch.setattr(target_of(PrefilledOnce), "costs", CostCurve((1, 64), (1.25, 1.25)), raising=False)
    drafting, late = CostCurve((1, 64), (0.5, 0.5)), CostCurve((1, 64), (1.0, 1.0))
    monkeypatch.setattr(
        target_of(PrefilledOnce), "costs_of", lambda path: drafting if len(path.skip) else late, raising=False
    )
    config = configured("early_exit", draft_length=2, bonus="auto")
    assert (p_value(config, "top_k=3", seed=1, trials=2000) > SIGNIFICANCE) == exact
