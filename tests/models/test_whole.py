"""Families whose layers run within the model's own forward: the same texts by every drafter, and a model left alone."""

from __future__ import annotations

import copy

import pytest
import torch

from made import made
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.engines.choice import use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.small import WINDOW, small_model
from selfdraft.models.training.teacher import trainable
from subjects import stock_output

# What is special about them: sinks; scaled logits; shared keys, streams and inputs per layer; chunks and layers without
# rotary positions; learned positions; layers called in other ways; biases by distance.
SPECIAL = ["gpt_oss", "cohere2", "gemma3n_text", "gemma4_text", "llama4_text", "gpt2", "opt", "phi", "bloom"]
PROMPT = [5, 17, 3, 60, 42, 7, 33, 81, 2, 14, 27, 5, 17, 3]
TOKENS = 8
CONFIGS = {
    "tree": configured("pool", costs="flat", max_nodes=12, min_probability=0.0),
    "jacobi": configured("jacobi", window=10, refine_steps=3, candidates=2, costs="flat"),  # longer than a window
    "skip": configured("layer_skip", skip_attention=[0, 2], skip_mlp=[1], draft_length=10),
    "whole layers": configured("layer_skip", skip_attention=[1, 3], skip_mlp=[1, 3], draft_length=3),
    "exit": configured("early_exit", exit_layer=2, bonus="keep", draft_length=3),
    "keys": configured("sparse_kv", sink=1, recent=4, draft_length=3),
    "pseudo tokens": configured("pseudo_tokens", count=3, branches=3, nodes=9, costs="flat", noise=1.0),
    "fused": configured("fused_jacobi", count=2, branches=3, nodes=9, costs="flat", noise=1.0),
    "clasp": configured("clasp", sparsity=0.5, interval=1),
    "low bits": configured("low_bit", bits=8, draft_length=3),
    "width": configured("width_skip", ratio=0.5, draft_length=3),
}
# OPT's MLP is no module; Llama 4's layers take rows one by one; Gemma 3n's pass four streams of states on; mixtures.
REFUSED = {
    ("opt", "skip"),
    ("llama4_text", "pseudo tokens"),
    ("llama4_text", "fused"),
    ("gemma3n_text", "fused"),
    ("llama4_text", "width"),
    ("gpt_oss", "width"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECIAL)
def test_every_kind_of_drafter_writes_the_text_of_generate(family: str) -> None:
    model = small_model(family)
    target, expected = Target(model), stock_output(model, PROMPT, TOKENS, pad_token_id=0)
    assert target.whole is not None
    wrong = {}
    for name, config in CONFIGS.items():
        if (family, name) in REFUSED:
            with pytest.raises(UserError, match=family):
                decoder(target, config)
            continue
        output = decoder(target, config).decode(PROMPT).output
        if output != expected:
            wrong[name] = output
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECIAL)
def test_rows_of_different_lengths_are_decoded_together(family: str) -> None:
    model = small_model(family)
    prompts = [PROMPT, PROMPT[:3], PROMPT[2:9]]
    together = decoder(Target(model), CONFIGS["tree"], rows=3)
    outputs = [generation.output for generation in together.answer([Request(prompt) for prompt in prompts])]
    assert outputs == [stock_output(model, prompt, TOKENS, pad_token_id=0) for prompt in prompts]


def test_a_token_sees_what_the_family_lets_it_see() -> None:
    """The prompt is longer than a window or a chunk, and the rules differ from layer to layer."""
    rules = {}
    for family in ("gemma4_text", "llama4_text", "gpt2"):
        target = Target(small_model(family))
        assert target.whole is not None
        query, keys = torch.tensor([WINDOW + 2]), torch.arange(WINDOW + 3)
        rules[family] = [None if r is None else int(r.between(query, keys).sum()) for r in target.whole.rules]
    assert rules["gemma4_text"] == [WINDOW, None, WINDOW, None]
    assert rules["llama4_text"] == [3, 3, 3, None]  # the chunk's tokens 8, 9 and 10
    assert rules["gpt2"] == [None] * 4


def test_the_model_is_left_as_it_is() -> None:
    model = small_model("cohere2")
    parts = {name: (type(part), dict(part._modules)) for name, part in model.named_modules()}
    config = copy.deepcopy(model.config.to_dict()) | {"attention": model.config._attn_implementation}
    decoder(Target(model), CONFIGS["skip"]).decode(PROMPT)
    assert {name: (type(part), dict(part._modules)) for name, part in model.named_modules()} == parts
    assert model.config.to_dict() | {"attention": model.config._attn_implementation} == config


def test_an_mlp_that_is_no_part_of_its_own_is_not_left_out() -> None:
    target = Target(small_model("opt"))
    with pytest.raises(UserError, match=r"the MLP of model family 'opt' is no part of its own"):
        made(target, CONFIGS["skip"])


def test_engines_and_training_say_why_they_do_not_take_such_a_family() -> None:
    target = Target(small_model("gpt2"))
    assert "layers of model family 'gpt2' run within the model's own forward" in use_engine(target, "auto")
    with pytest.raises(UserError, match=r"model.engine=native: .* within the model's own forward"):
        use_engine(target, "native")
    with pytest.raises(UserError, match=r"task=finetune: layers of model family 'gpt2' run within"):
        trainable(target)


def test_a_family_that_reads_the_order_of_slots_is_refused() -> None:
    """A chain after nothing gives the right logits, because slots then have the order of positions."""
    model = small_model("gpt2")
    for layer in model.transformer.h:
        stock = layer.attn.forward
        layer.attn.__class__ = type("Ordered", (type(layer.attn),), {"forward": _by_slots(stock)})
    with pytest.raises(UserError, match="give other logits"):
        Target(model)


def test_layers_that_attend_to_images_are_refused() -> None:
    with pytest.raises(UserError, match="some of its layers attend to images"):
        Target(small_model("mllama"))


def _by_slots(stock):
    forward = type(stock.__self__).forward

    def ordered(self, hidden_states, past_key_values=None, attention_mask=None, **kwargs):
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dtype != torch.bool:
            width, span = attention_mask.shape[-2:]
            far = torch.arange(span)[None] < torch.arange(span - width, span)[:, None] - 2
            attention_mask = attention_mask.masked_fill(far, torch.finfo(attention_mask.dtype).min)
        return forward(self, hidden_states, past_key_values, attention_mask, **kwargs)

    return ordered


def decoder(target: Target, config: DrafterConfig, rows: int = 1) -> Decoder:
    return Decoder(target, made(target, config), Stopping(frozenset(), TOKENS), batch_size=rows)


def test_a_forward_after_a_partly_run_path_goes_on_from_its_states() -> None:
    target = Target(small_model("gpt2"))
    target.cache = KVCache(4, 1, 0)
    target.prefill(0, PROMPT[:5])
    tree = TokenTree.chain(PROMPT[6:9])
    (expected,) = target.forward([0], [PROMPT[5]], [tree])
    block = target._block([0], [5], [PROMPT[5]], [tree])
    with torch.inference_mode():
        lower = target.full.part(0, 2).drive(target, block, normed=False)
        upper = target.full.part(2, 4).drive(target, block, lower)
    torch.testing.assert_close(target.logits(target.full, upper, [tree])[0], expected)
