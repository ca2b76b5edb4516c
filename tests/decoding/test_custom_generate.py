"""`generate(custom_generate=Drafting(…))` against plain `generate`, on the same stock models."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)

from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.models.loading.tiny import FAMILIES, tiny_model, tiny_tokenizer

PROMPT = torch.tensor([[5, 17, 3, 60, 44, 9, 5, 17, 3]])
PAD = 0
BATCH = torch.tensor([[PAD] * 4 + [5, 17, 3, 60, 44], [5, 17, 3, 60, 44, 9, 5, 17, 3], [PAD] * 8 + [21]])
MASK = torch.tensor([[0] * 4 + [1] * 5, [1] * 9, [0] * 8 + [1]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def both(model: PreTrainedModel, drafting: Drafting, ids: Tensor = PROMPT, **options) -> tuple[Tensor, Tensor]:
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD, **options}
    return model.generate(ids, custom_generate=drafting, **options), model.generate(ids, **options)


@pytest.mark.parametrize(
    ("family", "drafter"), zip(FAMILIES, itertools.cycle(["prompt_lookup", "jacobi", "layer_skip"]), strict=False)
)
def test_greedy_text_is_that_of_generate(family: str, drafter: str) -> None:
    model = tiny_model(family)
    ours, stock = both(model, Drafting(drafter))
    assert len(set(stock[0, 9:].tolist())) > 3
    assert ours.tolist() == stock.tolist() and ours.dtype == stock.dtype


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "gpt_neox"])
def test_a_left_padded_batch_with_ends_of_sequence_and_a_penalty(family: str) -> None:
    model = tiny_model(family)
    plain = model.generate(BATCH, attention_mask=MASK, max_new_tokens=24, do_sample=False, pad_token_id=PAD)
    eos = [int(plain[0, 9 + 5]), int(plain[1, 9 + 11])]  # two ids that do occur, at different places of two rows
    for options in ({}, {"repetition_penalty": 1.3}, {"repetition_penalty": 1.3, "min_new_tokens": 8}):
        ours, stock = both(model, Drafting(), BATCH, attention_mask=MASK, eos_token_id=eos, **options)
        assert ours.tolist() == stock.tolist(), options
        assert options or (stock[:, 9:] == PAD).any()  # a row that ended before the others


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": None, "max_length": 20},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [17, 3]]},
        {"forced_eos_token_id": 7, "eos_token_id": 7},
        {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 44},
        {"min_length": 20, "eos_token_id": 44},
        {"begin_suppress_tokens": list(range(0, 96, 2))},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_every_option_that_becomes_a_processor_keeps_its_meaning(model: PreTrainedModel, options: dict) -> None:
    ours, stock = both(model, Drafting(draft_length=6), BATCH, attention_mask=MASK, **options)
    assert ours.tolist() == stock.tolist()


class NotTwice(LogitsProcessor):
    """No token directly after itself: right only with the true history of every node."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, input_ids[:, -1:], float("-inf"))


def test_a_custom_processor_sees_only_real_tokens(model: PreTrainedModel) -> None:
    ours, stock = both(model, Drafting("jacobi", window=5), logits_processor=LogitsProcessorList([NotTwice()]))
    assert ours.tolist() == stock.tolist()


def test_stop_strings_end_the_answer_as_in_generate() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    plain = model.generate(PROMPT, max_new_tokens=24, do_sample=False)[0, 9:]
    text = tokenizer.decode(plain[6:8])
    stop = StoppingCriteriaList([StopStringCriteria(tokenizer, [text])])
    ours, stock = both(model, Drafting(), stopping_criteria=stop)
    assert ours.tolist() == stock.tolist()
    assert stock.shape[1] < 9 + 24


def test_a_streamer_gets_the_answer_piece_by_piece() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True)
    written = model.generate(PROMPT, custom_generate=Drafting(), max_new_tokens=24, do_sample=False, stream=pieces)
    pieces = list(pieces)
    assert "".join(pieces) == tokenizer.decode(written[0, 9:])
    assert len(pieces) > 2


def test_sampled_text_depends_on_torch_s_seed_but_not_on_the_drafter(model: PreTrainedModel) -> None:
    def sampled(seed: int, drafter: str) -> list:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 3.0, "top_k": 20, "max_new_tokens": 20, "num_return_sequences": 2}
        return model.generate(PROMPT, custom_generate=Drafting(drafter), **options).tolist()

    first = sampled(0, "none")
    assert first[0] != first[1] and first != sampled(1, "none")
    assert first == sampled(0, "none") == sampled(0, "prompt_lookup")


@pytest.mark.slow
@pytest.mark.parametrize(
    "warpers", [{"temperature": 1.7}, {"top_k": 5, "temperature": 2.0}, {"top_p": 0.7}, {"min_p": 0.2}], ids=str
)
def test_warpers_apply_exactly_once(model: PreTrainedModel, warpers: dict) -> None:
    """Draws of the first token, against the distribution that `generate` itself reports."""
    torch.manual_seed(0)
    draws = 400
    options = {"do_sample": True, "top_k": 0, **warpers, "max_new_tokens": 1}
    written = model.generate(
        PROMPT, custom_generate=Drafting("jacobi", window=3), num_return_sequences=draws, **options
    )
    reported = model.generate(PROMPT, return_dict_in_generate=True, output_scores=True, **options).scores[0]
    p = reported[0].softmax(-1).double()
    counts = torch.bincount(written[:, -1], minlength=len(p)).double()
    assert counts[p == 0].sum() == 0
    common = p * draws >= 5
    seen, expected = ([*x[common].tolist(), float(x[~common].sum())] for x in (counts, p * draws))
    if expected[-1] < 1:
        seen, expected = seen[:-1], [e * sum(seen[:-1]) / sum(expected[:-1]) for e in expected[:-1]]
    assert len(seen) > 1
    assert chisquare(seen, [e * sum(seen) / sum(expected) for e in expected]).pvalue > 1e-4


def test_the_model_is_not_changed_and_the_target_is_built_once(model: PreTrainedModel) -> None:
    drafting = Drafting()
    before = model.generate(PROMPT, max_new_tokens=8, do_sample=False)
    modules = {name: id(module) for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    both(model, drafting)
    target = drafting._prepared.target
    both(model, drafting)
    assert drafting._prepared.target is target
    assert modules == {name: id(module) for name, module in model.named_modules()}
    assert model.config._attn_implementation == implementation
    assert model.generate(PROMPT, max_new_tokens=8, do_sample=False).tolist() == before.tolist()


def test_weights_trained_between_calls_are_used() -> None:
    model, drafting = tiny_model(), Drafting()
    first, _ = both(model, drafting)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    ours, stock = both(model, drafting)
    assert ours.tolist() == stock.tolist() != first.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 2}, "generation by beam_search cannot be drafted for"),
        ({"prompt_lookup_num_tokens": 3}, "generation by assisted_generation cannot be drafted for"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True is not supported"),
        ({"prefix_allowed_tokens_fn": lambda *_: [1]}, "PrefixConstrainedLogitsProcessor cannot be applied"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor cannot be applied"),
        ({"attention_mask": torch.tensor([[1] * 7 + [0, 0]])}, "must be padded on the left"),
        ({"position_ids": torch.arange(3, 12)[None]}, "position_ids of your own are not supported"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_arguments_are_refused(model: PreTrainedModel, options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        model.generate(PROMPT, custom_generate=Drafting(), **{"max_new_tokens": 4, "do_sample": False, **options})


def test_a_streamer_for_a_batch_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="a streamer takes one prompt"):
        model.generate(BATCH, custom_generate=Drafting(), attention_mask=MASK, max_new_tokens=4, stream=object())


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="no drafter 'lookup'; choose one of none, jacobi"):
        Drafting("lookup")
    with pytest.raises(UserError, match=r"path full has no option 'draft_length'; there are candidates"):
        Drafting("jacobi", draft_length=3)
    with pytest.raises(UserError, match=r"drafter\.draft_length=0: must be at least 1"):
        Drafting("prompt_lookup", draft_length=0)


def test_learning_while_decoding_is_refused() -> None:
    with pytest.raises(UserError, match=r"^Drafting: learn=True: only task=evaluate learns"):
        Drafting("early_exit", learn=True)


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"Drafting: there is no engine 'fast'; choose one of auto, eager, native, compiled"
    ):
        Drafting("pool", engine="fast")
