"""Audits of answers by transformers' own generate: clean ones, and ones with a fault planted in them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from batched_answers import LENGTH, PAD, VOCABULARY, batched, continued, ending_model, logits_of, prompts_of
from selfdraft.core.certificate import margin_control, spread_of_changes
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.audit import Auditor, Finding
from selfdraft.decoding.certify import Certifier
from selfdraft.models.forward.target import Target

DTYPES = (torch.float32, torch.bfloat16)
# A clear margin, in logits: more than rounding moves margins of these models.
CLEAR = {torch.float32: 0.1, torch.bfloat16: 2.0}
PLANTED = 4  # faults of a kind


@dataclass(frozen=True)
class Audited:
    """A model with its auditor, and some answers of its own."""

    model: PreTrainedModel
    eos: int
    auditor: Auditor
    answers: list[tuple[list[int], list[int]]]

    def __call__(self, prompt: Sequence[int], output: Sequence[int], limit: int | None = LENGTH) -> Finding:
        return self.auditor.audit(prompt, output, limit=limit)

    def whole(self) -> Iterator[tuple[list[int], list[int]]]:
        """The answers without padding."""
        for prompt, answer in self.answers:
            yield prompt, answer[: answer.index(self.eos) + 1] if self.eos in answer else answer


@cache
def audited(family: str, dtype: torch.dtype) -> Audited:
    model, eos = ending_model(family, dtype)
    auditor = Auditor(Certifier(Target(model), NextToken(eos=frozenset([eos]))), [eos], [PAD])
    batches = [prompts_of(seed, 8) for seed in range(3)]
    answers = [pair for prompts in batches for pair in zip(prompts, batched(model, prompts, eos), strict=True)]
    return Audited(model, eos, auditor, answers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_answers_of_a_padded_batch_are_no_mismatch(family: str, dtype: torch.dtype) -> None:
    found = audited(family, dtype)
    assert any(PAD in answer for _, answer in found.answers)  # some ended by themselves
    for prompt, answer in found.answers:
        finding = found(prompt, answer)
        assert finding.verdict in (["exact"] if dtype == torch.float32 else ["exact", "tie"]), finding
        assert finding.output == (answer[: answer.index(found.eos) + 1] if found.eos in answer else answer)
        if finding.verdict == "tie":
            assert finding.ties >= 1 and 0 < finding.margin <= finding.control
            assert finding.written == answer[finding.index] != finding.model


def clear(found: Audited, prompt: list[int], answer: list[int]) -> list[tuple[int, int]]:
    """The places of an answer where the best token leads clearly, and the second best there."""
    best = logits_of(found.model, prompt, answer).topk(2)
    leads, tokens = (best.values[:, 0] - best.values[:, 1]).tolist(), best.indices.tolist()
    return [
        (i, second)
        for i, (lead, (_, second)) in enumerate(zip(leads, tokens, strict=True))
        if lead > CLEAR[found.model.dtype] and found.eos not in (second, answer[i])
    ]


Planted = tuple[list[int], int]  # an answer with a fault, and the index of the first token that is wrong


def second_best(found: Audited, prompt: list[int], answer: list[int], draw: random.Random) -> Planted | None:
    """One token is the second best, and the model goes on from there."""
    places = clear(found, prompt, answer)
    if not places:
        return None
    at, second = draw.choice(places)
    rest = continued(found.model, [*prompt, *answer[:at], second], LENGTH - at - 1) if at < LENGTH - 1 else []
    rest = rest[: rest.index(found.eos) + 1] if found.eos in rest else rest
    return [*answer[:at], second, *rest], at


def dropped_bonus(found: Audited, prompt: list[int], answer: list[int], draw: random.Random) -> Planted | None:
    """A token is missing, and what follows was written as if it were there."""
    places = [i for i, _ in clear(found, prompt, answer) if i + 1 < len(answer) and answer[i] != answer[i + 1]]
    if not places:
        return None
    at = draw.choice(places)
    return answer[:at] + answer[at + 1 :], at


def stale_cache(found: Audited, prompt: list[int], answer: list[int], draw: random.Random) -> Planted | None:
    """From some token on, it continues another prefix: the prompt with an entry that an earlier request left there."""
    at = draw.randint(1, max(len(answer) // 2, 1))
    other = list(prompt)
    other[draw.randrange(len(other))] = draw.randrange(1, VOCABULARY)
    rest = continued(found.model, [*other, *answer[:at]], LENGTH - at)
    rest = rest[: rest.index(found.eos)] if found.eos in rest else rest
    index = next((i for i, (a, b) in enumerate(zip(rest, answer[at:], strict=False), at) if a != b), None)
    if index is None or answer[index] == found.eos:
        return None
    row = logits_of(found.model, prompt, answer)[index]
    is_clear = float(row[answer[index]] - row[rest[index - at]]) > CLEAR[found.model.dtype]
    return (answer[:at] + rest, index) if is_clear else None


FAULTS: list[Callable[[Audited, list[int], list[int], random.Random], Planted | None]] = [
    second_best,
    dropped_bonus,
    stale_cache,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_found_at_its_place(fault: Callable, dtype: torch.dtype) -> None:
    found, draw, planted = audited("llama", dtype), random.Random(0), 0
    for prompt, answer in found.whole():
        if (wrong := fault(found, prompt, answer, draw)) is None:
            continue
        output, index = wrong
        finding, planted = found(prompt, output), planted + 1
        assert (finding.verdict, finding.reason) == ("mismatch", "stock")
        assert (finding.index, finding.written) == (index, output[index])
        assert finding.model == answer[index] or dtype == torch.bfloat16  # there, the answer's own token may be a tie
        assert finding.margin > finding.control
        if dtype == torch.bfloat16:
            assert finding.margin_in_dtype > 0  # the model takes its own token in its dtype too
        if planted == PLANTED:
            return
    raise AssertionError(f"only {planted} faults were planted")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_truncated_stop_is_found_and_the_limit_is_none(dtype: torch.dtype) -> None:
    found, draw, planted = audited("llama", dtype), random.Random(1), 0
    for prompt, answer in found.whole():
        places = [i for i, _ in clear(found, prompt, answer) if i < len(answer)]
        if not places:
            continue
        at, planted = draw.choice(places), planted + 1
        finding = found(prompt, answer[:at], (None, LENGTH, at + 1)[planted % 3])
        assert (finding.verdict, finding.reason, finding.index) == ("mismatch", "length", at)
        assert (finding.written, finding.model) == (None, answer[at])
        assert finding.margin > finding.control
        assert found(prompt, answer[:at], at).verdict != "mismatch"  # it ended by the limit
        if planted == PLANTED:
            return
    raise AssertionError(f"only {planted} answers were cut")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_end_of_sequence_that_the_engine_left_out_is_no_fault(dtype: torch.dtype) -> None:
    found = audited("llama", dtype)
    ended = [(prompt, answer) for prompt, answer in found.whole() if answer[-1] == found.eos]
    assert ended
    for prompt, answer in ended:
        assert found(prompt, answer[:-1], None).verdict == found(prompt, answer).verdict != "mismatch"


def test_tokens_after_an_end_of_sequence_are_found_and_padding_is_none() -> None:
    found = audited("llama", torch.float32)
    ended = [(prompt, answer) for prompt, answer in found.whole() if answer[-1] == found.eos]
    assert ended
    for prompt, answer in ended:
        goes_on = [*answer, *continued(found.model, [*prompt, *answer], 3)]
        finding = found(prompt, goes_on)
        assert (finding.verdict, finding.reason) == ("mismatch", "length")
        assert (finding.index, finding.written, finding.model) == (len(answer), goes_on[len(answer)], None)
        for padding in ([PAD] * 3, [found.eos] * 2):
            assert found(prompt, [*answer, *padding]).output == answer
            assert found(prompt, [*answer, *padding]).verdict == "exact"


def test_an_earlier_mismatch_comes_before_a_wrong_end() -> None:
    found = audited("llama", torch.float32)
    prompt, answer = next((p, a) for p, a in found.whole() if clear(found, p, a[:-2]))
    at, second = clear(found, prompt, answer[:-2])[0]
    finding = found(prompt, [*answer[:at], second, *answer[at + 1 : -1]], None)
    assert (finding.index, finding.reason) == (at, "stock")


def test_a_model_without_an_end_of_sequence_cannot_end_before_the_limit() -> None:
    found = audited("llama", torch.float32)
    auditor = Auditor(found.auditor.certifier, [])
    prompt, answer = next((p, a) for p, a in found.whole() if a[-1] != found.eos)
    assert auditor.audit(prompt, answer, limit=LENGTH).verdict == "exact"
    finding = auditor.audit(prompt, answer[:-1], limit=LENGTH)
    assert (finding.verdict, finding.reason, finding.index) == ("mismatch", "length", LENGTH - 1)
    assert auditor.audit(prompt, answer, limit=None).reason == "length"


def test_an_empty_answer_is_judged_by_its_end() -> None:
    found = audited("llama", torch.float32)
    prompt = found.answers[0][0]
    assert found(prompt, [], 0).verdict == "exact"
    finding = found(prompt, [])
    assert (finding.verdict, finding.reason, finding.index) == ("mismatch", "length", 0)


def test_an_evaluation_still_calls_a_tie_with_the_stock_model_exact() -> None:
    found = audited("llama", torch.bfloat16)
    ties = [(p, a) for p, a in found.whole() if found(p, a).verdict == "tie"]
    assert ties
    by_stock = [found.auditor.certifier.by_stock(prompt, answer).verdict for prompt, answer in ties]
    assert by_stock.count("exact") >= 1 and "tie" not in by_stock


def test_rounding_of_the_two_tokens_themselves_explains_what_the_control_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control is about the two best tokens; a third one may be written, whose margin rounding moves further."""
    model, eos = ending_model("llama", torch.bfloat16)
    certifier = Certifier(Target(model), NextToken())
    asked: list[int] = []
    allowance = certifier.allowance
    monkeypatch.setattr(certifier, "allowance", lambda *given: asked.append(given[2].index) or allowance(*given))
    auditor = Auditor(certifier, [eos], [PAD])
    for seed in range(3):
        prompts = prompts_of(seed, 8)
        for prompt, answer in zip(prompts, batched(model, prompts, eos), strict=True):
            finding = auditor.audit(prompt, answer, limit=LENGTH)
            assert finding.verdict != "mismatch"
            assert certifier.by_stock(prompt, finding.output).verdict == "exact"
    assert asked  # else this test shows nothing


def test_a_third_token_that_a_block_prefers_is_a_tie() -> None:
    """Three tokens are level: a block may write the third one, whose margin the two best ones do not show."""
    single, block = torch.tensor([[2.0, 1.9, 1.8]]), torch.tensor([[2.0, 1.9, 2.1]])
    assert margin_control(single, block) == pytest.approx(0.0, abs=1e-6)
    assert spread_of_changes(single[0], block[0]) == pytest.approx(0.3)
    banned = torch.tensor([-math.inf])
    assert spread_of_changes(torch.cat([single[0], banned]), torch.cat([block[0], banned])) == pytest.approx(0.3)
    assert math.isinf(spread_of_changes(torch.cat([single[0], banned]), torch.tensor([2.0, 1.9, 1.8, 0.0])))
