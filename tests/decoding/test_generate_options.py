"""Options of `generate` for batches and streamers, and families that are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

PAD = 0
BATCH = torch.tensor([[PAD] * 4 + [5, 17, 3, 60, 44], [5, 17, 3, 60, 44, 9, 5, 17, 3], [PAD] * 8 + [21]])
MASK = torch.tensor([[0] * 4 + [1] * 5, [1] * 9, [0] * 8 + [1]])
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": PAD}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_repetition_penalty": 3.0},
        {"encoder_repetition_penalty": 0.2},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 0.2},
        {"encoder_repetition_penalty": 0.2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"sequence_bias": {(17,): 9.0, (17, 3): -9.0}},
        {"suppress_tokens": [53, 60], "remove_invalid_values": True, "renormalize_logits": True},
        {"watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash"}},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("rows", [1, 3])
def test_penalties_on_the_prompt_use_each_row_s_own_prompt(model: PreTrainedModel, options: dict, rows: int) -> None:
    options = {**GREEDY, **options, "attention_mask": MASK[:rows]}
    stock = model.generate(BATCH[:rows], **options)
    ours = model.generate(BATCH[:rows], custom_generate=Drafting("jacobi", window=5), **options)
    assert (
        ours.tolist() == stock.tolist() != model.generate(BATCH[:rows], attention_mask=MASK[:rows], **GREEDY).tolist()
    )


def test_a_penalty_that_ignores_another_length_of_every_prompt(model: PreTrainedModel) -> None:
    written = []
    for drafting in (None, Drafting("jacobi", window=5)):
        penalty = RepetitionPenaltyLogitsProcessor(3.0, prompt_ignore_length=torch.tensor([4, 2, 8]))
        options = {**GREEDY, "attention_mask": MASK, "logits_processor": LogitsProcessorList([penalty])}
        written.append(model.generate(BATCH, custom_generate=drafting, **options).tolist())
    assert written[0] == written[1]


def test_several_answers_to_every_prompt(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 2, "top_k": 1, "encoder_repetition_penalty": 0.2}
    ours = model.generate(BATCH, attention_mask=MASK, custom_generate=Drafting("jacobi", window=5), **options)
    assert ours.tolist() == model.generate(BATCH, attention_mask=MASK, **options).tolist()


class LongEnough(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 20)


@pytest.mark.parametrize("sample", [False, True])
def test_an_unlimited_length_allocates_no_memory_ahead(model: PreTrainedModel, sample: bool) -> None:
    options = {"max_new_tokens": 10**12, "do_sample": sample, "stopping_criteria": StoppingCriteriaList([LongEnough()])}
    answer = model.generate(BATCH[1:2], custom_generate=Drafting("jacobi", window=5), **options)
    assert answer.shape == (1, 20)
    if not sample:
        assert answer.tolist() == model.generate(BATCH[1:2], **options).tolist()


def test_an_assistant_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="generation by assisted_generation cannot be drafted for"):
        model.generate(BATCH[1:2], custom_generate=Drafting("none"), assistant_model=tiny_model(), **GREEDY)


def test_a_quantized_cache_is_refused(model: PreTrainedModel) -> None:
    """Called as `generate` calls it, which itself stops before that where no library for such caches is installed."""
    config = GenerationConfig(cache_implementation="quantized", **GREEDY)
    with pytest.raises(UserError, match="cache_implementation='quantized' is not supported: it changes the text"):
        Drafting("none")(model, BATCH[1:2], LogitsProcessorList(), StoppingCriteriaList(), config)


class Pieces(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("argument", ["streamer", "stream"])
def test_a_streamer_given_by_either_name_gets_prompt_and_answer_once(model: PreTrainedModel, argument: str) -> None:
    pieces = Pieces()
    written = model.generate(BATCH[1:2], custom_generate=Drafting("jacobi", window=5), **{argument: pieces}, **GREEDY)
    assert pieces.pieces[0] == BATCH[1].tolist() and pieces.ended == 1
    assert [token for piece in pieces.pieces for token in piece] == written[0].tolist()


def test_a_text_streamer_ends() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    written = model.generate(BATCH[1:2], custom_generate=Drafting("none"), streamer=pieces, **GREEDY)
    assert "".join(pieces) == tokenizer.decode(written[0, 9:])


def test_two_streamers_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="give streamer= or stream=, not both"):
        model.generate(BATCH[1:2], custom_generate=Drafting("none"), streamer=Pieces(), stream=Pieces(), **GREEDY)


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


def composite() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 96, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(
        text_config=text,
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        image_token_id=90,
        boi_token_id=91,
        eoi_token_id=92,
    )
    return Gemma3ForConditionalGeneration(config)


def test_a_model_for_images_and_text_is_decoded_without_images() -> None:
    model = composite().eval()
    expected = model.generate(BATCH[1:2], **GREEDY)
    assert torch.equal(model.generate(BATCH[1:2], custom_generate=Drafting("pool"), **GREEDY), expected)


def test_unsupported_families_are_refused_without_blaming_an_argument() -> None:
    model = t5().eval()
    with pytest.raises(UserError, match=f"'{model.config.model_type}'") as refused:
        model.generate(BATCH[1:2], custom_generate=Drafting("none"), **GREEDY)
    assert "leave it out" not in str(refused.value) and "\n" not in str(refused.value)
