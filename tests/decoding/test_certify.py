"""Certificates on a real (tiny) model: exact, tie and mismatch, and the control that decides between them."""

from __future__ import annotations

import pytest
import torch

from made import made
from selfdraft.core.certificate import Certificate, first_divergence
from selfdraft.core.sampling import NextToken
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.certify import CONTROL_BLOCKS, WINDOW, Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.none import NoDrafter
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model

PROMPT = [5, 17, 3, 60, 44, 9]
LENGTH = 20


def greedy(target: Target) -> list[int]:
    return Decoder(target, made(target, NoDrafter.Config()), Stopping(frozenset(), LENGTH)).decode(PROMPT).output


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_model())


@pytest.fixture(scope="module")
def baseline(target: Target) -> list[int]:
    output = greedy(target)
    assert len(set(output)) > 4  # a text that repeats one token would hide an index that is off
    return output


@torch.inference_mode()
def stock_margin(target: Target, baseline: list[int], index: int, other: int) -> float:
    """Logit of the baseline's token minus that of the other one, by the stock model, no cache involved."""
    logits = target.model(torch.tensor([PROMPT + baseline[:index]]), use_cache=False).logits[0, -1].float()
    return float(logits[baseline[index]] - logits[other])


def runner_up(target: Target, baseline: list[int], index: int) -> int:
    with torch.inference_mode():
        logits = target.model(torch.tensor([PROMPT + baseline[:index]]), use_cache=False).logits[0, -1]
    best, second = logits.topk(2).indices.tolist()
    assert best == baseline[index]
    return second


def replaced(baseline: list[int], index: int, token: int) -> list[int]:
    return [*baseline[:index], token, *baseline[index + 1 :]]


def test_equal_ids_are_exact_and_measure_the_distance_to_the_stock_forward(target: Target, baseline: list[int]) -> None:
    certificate = Certifier(target).certify(PROMPT, list(baseline), baseline)
    assert (certificate.verdict, certificate.first_divergence, certificate.reason) == ("exact", None, None)
    assert 0 < certificate.distance < certificate.ceiling < 1e-3


def test_a_text_is_checked_once(target: Target, baseline: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats and references share the baseline's stock forward."""
    certifier, calls = Certifier(target), []
    forward = certifier._beside_stock.stock._forward
    monkeypatch.setattr(certifier._beside_stock.stock, "_forward", lambda *a: calls.append(a) or forward(*a))
    for _ in range(3):
        certifier.certify(PROMPT, list(baseline), baseline)
    assert len(calls) == 1


@pytest.mark.parametrize("index", [0, 7, LENGTH - 1])
def test_two_equal_wrong_texts_are_a_mismatch(target: Target, baseline: list[int], index: int) -> None:
    """Comparing them shows nothing, but the stock forward chooses another token."""
    wrong = replaced(baseline, index, runner_up(target, baseline, index))
    certificate = Certifier(target).certify(PROMPT, wrong, wrong)
    assert (certificate.verdict, certificate.reason) == ("mismatch", "stock")
    assert certificate.first_divergence >= index and certificate.margin > 0
    assert Certifier(target, NextToken(sample=True)).certify(PROMPT, wrong, wrong).verdict == "exact"  # a draw


@pytest.mark.parametrize("index", [0, 1, 7, LENGTH - 1])
def test_a_wrong_token_is_a_mismatch_with_the_margin_at_the_divergence(
    target: Target, baseline: list[int], index: int
) -> None:
    other = runner_up(target, baseline, index)
    certificate = Certifier(target).certify(PROMPT, replaced(baseline, index, other), baseline)
    assert (certificate.verdict, certificate.first_divergence) == ("mismatch", index)
    assert certificate.margin == pytest.approx(stock_margin(target, baseline, index, other), abs=1e-3)
    assert 0 <= certificate.control < certificate.margin


def test_the_certificate_does_not_depend_on_tokens_after_the_divergence(target: Target, baseline: list[int]) -> None:
    other = runner_up(target, baseline, 3)
    one = Certifier(target).certify(PROMPT, replaced(baseline, 3, other), baseline)
    two = Certifier(target).certify(PROMPT, [*baseline[:3], other, *reversed(baseline[4:])], baseline)
    assert one == two


@pytest.fixture(scope="module")
def interchangeable() -> tuple[Target, list[int], list[int]]:
    """A model for which two tokens are equal, its text, and the text with one of the two replaced by the other."""
    model = tiny_model()
    first = greedy(Target(model))
    other = next(token for token in range(96) if token not in first and token not in PROMPT)
    with torch.no_grad():
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            weight[other] = weight[first[7]]
    target = Target(model)
    baseline = greedy(target)
    index = next(i for i, token in enumerate(baseline) if token in (first[7], other))
    output = replaced(baseline, index, first[7] + other - baseline[index])
    return target, baseline, output


def test_a_margin_within_the_control_is_a_tie(interchangeable: tuple[Target, list[int], list[int]]) -> None:
    target, baseline, output = interchangeable
    certificate = Certifier(target).certify(PROMPT, output, baseline)
    assert (certificate.verdict, certificate.reason) == ("tie", None)
    assert certificate.first_divergence == first_divergence(output, baseline)
    assert certificate.margin == 0.0 and 0 <= certificate.control < 1e-3


def test_text_after_a_tie_is_still_checked(interchangeable: tuple[Target, list[int], list[int]]) -> None:
    """After a tie, the drafter's text must still be the model's choice."""
    target, baseline, output = interchangeable
    index = first_divergence(output, baseline)
    wrong = [*output[: index + 2], *((token + 1) % 96 for token in output[index + 2 :])]
    certificate = Certifier(target).certify(PROMPT, wrong, baseline)
    assert (certificate.verdict, certificate.reason) == ("mismatch", "stock")
    assert certificate.first_divergence > index


def test_the_control_of_one_prompt_does_not_apply_to_another(
    target: Target, baseline: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt has its own control: with a maximum over prompts, one bad text would excuse all later ones."""
    output = replaced(baseline, 3, runner_up(target, baseline, 3))
    fresh, used = Certifier(target), Certifier(target)
    with monkeypatch.context() as planted:
        planted.setattr("selfdraft.decoding.certify.margin_control", lambda *_: 1e6)
        assert used.certify(PROMPT, output, baseline).reason == "control"
    assert used.certify(PROMPT, output, baseline) == fresh.certify(PROMPT, output, baseline)


@pytest.mark.slow
def test_in_a_batch_a_wrong_baseline_excuses_nothing(target: Target, baseline: list[int]) -> None:
    """The baseline's rows round in batches too, so the worse of the two tokens is checked."""
    other = runner_up(target, baseline, 7)
    wrong = replaced(baseline, 7, other)
    certifier = Certifier(target, batch_size=4)
    as_usual, swapped = certifier.compare(PROMPT, wrong, baseline), certifier.compare(PROMPT, baseline, wrong)
    assert (swapped.verdict, swapped.first_divergence) == ("mismatch", 7)
    assert swapped.margin == pytest.approx(as_usual.margin, abs=1e-3)
    assert certifier.certify(PROMPT, baseline, wrong).reason == "stock"


def test_the_control_of_a_batch_covers_blocks_of_all_its_rows(target: Target) -> None:
    assert Certifier(target).blocks == [2, 4, 8, 16]
    assert Certifier(target, batch_size=6).blocks == [2, 4, 6, 8, 12, 16, 24, 48, 96]


@pytest.mark.parametrize("longer", ["output", "baseline"])
def test_an_output_that_ends_earlier_or_later_is_a_mismatch(target: Target, baseline: list[int], longer: str) -> None:
    shorter = baseline[:-2]
    pair = (baseline, shorter) if longer == "output" else (shorter, baseline)
    certificate = Certifier(target).certify(PROMPT, *pair)
    assert (certificate.verdict, certificate.first_divergence) == ("mismatch", LENGTH - 2)


def test_an_empty_output_is_a_mismatch(target: Target, baseline: list[int]) -> None:
    certificate = Certifier(target).certify(PROMPT, [], baseline)
    assert (certificate.verdict, certificate.first_divergence) == ("mismatch", 0)


def at_once(target: Target, output: list[int]) -> torch.Tensor:
    """The logits after each token of an answer, all computed in one forward."""
    target.allocate(1, len(PROMPT) + len(output) + 1)
    target.prefill(0, PROMPT[:-1])
    return target.forward([0], [PROMPT[-1]], [TokenTree.chain(output)])[0]


def one_by_one(target: Target, output: list[int]) -> torch.Tensor:
    """The same, each computed in a forward of its own."""
    target.allocate(1, len(PROMPT) + len(output) + 1)
    target.prefill(0, PROMPT[:-1])
    found = []
    for token in (PROMPT[-1], *output):
        found += target.forward([0], [token], [TokenTree.empty()])
        target.commit(0, [])
    return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_control_is_wide_in_bfloat16_and_narrow_in_float32(family: str) -> None:
    controls, alike = {}, False
    for dtype in (torch.float32, torch.bfloat16):
        target = Target(tiny_model(family, dtype=dtype))
        output = greedy(target)
        alike = torch.equal(one_by_one(target, output[:4]), at_once(target, output[:4]))
        certifier = Certifier(target)
        certificate = certifier.certify(PROMPT, replaced(output, 4, (output[4] + 1) % 96), output)
        controls[dtype] = certificate.control
    assert controls[torch.float32] < 1e-3
    if alike:  # some processors round alike in forwards of one and of five tokens, as many as this control needs
        assert controls[torch.bfloat16] == 0
    else:
        assert controls[torch.bfloat16] > 10 * controls[torch.float32]


def test_certifying_does_not_count_as_decoding(target: Target, baseline: list[int]) -> None:
    forwards = target.forwards
    Certifier(target).certify(PROMPT, replaced(baseline, 0, runner_up(target, baseline, 0)), baseline)
    assert target.forwards == forwards
    assert greedy(target) == baseline  # and what it left in the cache harms nobody


def test_a_prompt_of_one_token_can_be_certified(target: Target) -> None:
    decoder = Decoder(target, made(target, NoDrafter.Config()), Stopping(frozenset(), 6))
    output = decoder.decode([7]).output
    certificate = Certifier(target).certify([7], replaced(output, 5, (output[5] + 1) % 96), output)
    assert (certificate.verdict, certificate.first_divergence) == ("mismatch", 5)


def test_an_output_that_uses_all_positions_can_be_certified() -> None:
    """The control's blocks must not run past the last position."""
    target = Target(tiny_model(max_positions=len(PROMPT) + LENGTH))
    output = greedy(target)
    certificate = Certifier(target).certify(PROMPT, replaced(output, LENGTH - 1, (output[-1] + 1) % 96), output)
    assert (certificate.verdict, certificate.first_divergence) == ("mismatch", LENGTH - 1)


def bfloat16_ties(family: str) -> tuple[Target, list[tuple[int, list[int]]]]:
    """A target, and outputs that part from its greedy text where the two best tokens are close."""
    target = Target(tiny_model(family, dtype=torch.bfloat16))
    output = greedy(target)
    margins = []
    for index in range(LENGTH):
        other = runner_up_of(target, output, index)
        margins.append((stock_margin(target, output, index, other), index, other))
    return target, [(index, replaced(output, index, other)) for _, index, other in sorted(margins)[:2]]


def runner_up_of(target: Target, baseline: list[int], index: int) -> int:
    with torch.inference_mode():
        logits = target.model(torch.tensor([PROMPT + baseline[:index]]), use_cache=False).logits[0, -1]
    return next(token for token in logits.topk(2).indices.tolist() if token != baseline[index])


@torch.inference_mode()
def float32_margin(target: Target, baseline: list[int], index: int, other: int) -> float:
    """The margin by a float32 model that is loaded without the code under test."""
    wide = tiny_model(target.model.config.model_type)
    wide.load_state_dict({name: weight.float() for name, weight in target.model.state_dict().items()})
    logits = wide(torch.tensor([PROMPT + baseline[:index]]), use_cache=False).logits[0, -1]
    return float(logits[baseline[index]] - logits[other])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_tie_is_decided_by_float32(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, outputs = bfloat16_ties(family)
    baseline = greedy(target)
    monkeypatch.setattr("selfdraft.decoding.certify.judge", lenient)  # everything is a tie to bfloat16
    for index, output in outputs:
        certificate = Certifier(target).compare(PROMPT, output, baseline)
        found, truth = certificate.float32, float32_margin(target, baseline, index, output[index])
        assert found is not None
        assert found.margin == pytest.approx(truth, abs=1e-3)
        assert found.prefers == ("baseline" if truth >= 0 else "drafter")
        assert found.control > 0
        assert certificate.verdict == ("tie" if abs(truth) <= found.control else "mismatch")


def lenient(index: int, margin: float, control: float, *_: object) -> Certificate:
    return Certificate("tie", index, margin, control)


def test_a_tie_that_float32_does_not_confirm_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token that a far too wide control would accept."""
    target = Target(tiny_model(dtype=torch.bfloat16))
    baseline = greedy(target)
    monkeypatch.setattr("selfdraft.decoding.certify.judge", lenient)
    worst = (baseline[3] + 1) % 96
    assert stock_margin(target, baseline, 3, worst) > 3
    certificate = Certifier(target).compare(PROMPT, replaced(baseline, 3, worst), baseline)
    assert certificate.verdict == "mismatch"
    assert certificate.float32 is not None and certificate.float32.margin > certificate.float32.control


def test_the_float32_copy_is_made_once_and_does_not_change_the_model() -> None:
    target = Target(tiny_model(dtype=torch.bfloat16))
    baseline = greedy(target)
    certifier = Certifier(target)
    certifier.certify(PROMPT, list(baseline), baseline)
    copy = certifier._beside_stock.truth.model
    assert copy.dtype == torch.float32 and copy is not target.model
    assert target.model.dtype == torch.bfloat16 and greedy(target) == baseline
    certifier.certify(PROMPT, replaced(baseline, 5, runner_up_of(target, baseline, 5)), baseline)
    assert certifier._beside_stock.truth.model is copy
    same = Certifier(Target(tiny_model()))
    assert same._beside_stock.truth is same._beside_stock.stock  # in float32 there is no need of a copy


@pytest.mark.slow
def test_a_tie_is_checked_on_a_window_and_a_mismatch_on_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tie needs only the last tokens before the divergence; a mismatch is checked on all of them."""
    target = Target(tiny_model(max_positions=512))
    decoder = Decoder(target, made(target, NoDrafter.Config()), Stopping(frozenset(), 60))
    baseline = decoder.decode(PROMPT).output
    output = replaced(baseline, 50, (baseline[50] + 1) % 96)
    certifier, widths = Certifier(target), []
    certifier.by_stock(PROMPT, baseline)

    def counted(rows, roots, trees, forward=target.forward):
        widths.append(1 + len(trees[0]))
        return forward(rows, roots, trees)

    monkeypatch.setattr(target, "forward", counted)
    with monkeypatch.context() as planted:
        planted.setattr("selfdraft.decoding.certify.judge", lenient)
        assert certifier.compare(PROMPT, output, baseline).verdict == "tie"
    assert widths.count(1) == WINDOW and sum(widths) == (1 + len(CONTROL_BLOCKS)) * WINDOW
    widths.clear()
    assert certifier.compare(PROMPT, output, baseline).verdict == "mismatch"
    assert not widths  # this margin is above all that rounding can do, and the window was measured before
    monkeypatch.setattr(certifier, "_beyond_rounding", lambda *_: False)
    assert certifier.compare(PROMPT, output, baseline).verdict == "mismatch"
    assert widths.count(1) >= len(baseline)


def test_before_a_mismatch_the_prompt_of_a_short_answer_is_measured(
    target: Target, baseline: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may move a margin on one token in twenty, and far: an answer of four tokens does not show it."""
    prompt, looked = [*PROMPT, *baseline[:14]], []
    short = baseline[14:18]
    other = replaced(short, 3, (short[3] + 1) % 96)

    def control(single: torch.Tensor, block: torch.Tensor) -> float:
        looked.append(len(single))
        return 0.0

    monkeypatch.setattr("selfdraft.decoding.certify.margin_control", control)
    monkeypatch.setattr(Certifier, "_beyond_rounding", lambda *_: False)  # a smaller margin than this one
    assert Certifier(target).compare(prompt, other, short).verdict == "mismatch"
    assert sorted(set(looked)) == [4, len(prompt) - 1 + len(short)]
    looked.clear()
    monkeypatch.setattr("selfdraft.decoding.certify.WIDEST", 9)
    assert Certifier(target).compare(prompt, other, short).verdict == "mismatch"
    assert sorted(set(looked)) == [4, 9]


def test_the_two_measures_agree_on_the_margin(target: Target, baseline: list[int]) -> None:
    """Prefilled up to the window, or token by token from the prompt on: the margin is that of the same place."""
    index = LENGTH - 1
    output = replaced(baseline, index, runner_up(target, baseline, index))
    begin = len(PROMPT) - 1
    window, whole = (
        Certifier(target)._judge(PROMPT, output, baseline, index, first, begin + index)
        for first in (begin + index - WINDOW + 1, begin)
    )
    assert window.margin == pytest.approx(whole.margin, abs=1e-3)
    assert window.control <= 10 * whole.control + 1e-4
