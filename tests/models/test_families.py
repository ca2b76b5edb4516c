"""Which model families are supported, and that others are refused by name with one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from made import made
from selfdraft.core.errors import UserError
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.pseudo_tokens import PseudoTokensConfig
from selfdraft.models.families.anatomy import FULL, SLIDING, dissect
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, WINDOW, tiny_model
from subjects import stock_output

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
T5_SIZES = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def stock(family: str, sizes: dict[str, Any] = SIZES) -> PreTrainedModel:
    """A random model of a transformers family, by its own config and class."""
    kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.from_config(AutoConfig.for_model(family, **sizes)).eval()


def assert_refused(model: PreTrainedModel, family: str, because: str = "") -> None:
    with pytest.raises(UserError) as caught:
        Target(model)
    message = str(caught.value)
    assert "\n" not in message
    assert f"'{family}'" in message and type(model).__name__ in message and because in message
    assert "supported are decoder-only models whose forward goes on from a cache of the text" in message


@pytest.mark.parametrize(
    ("family", "because"),
    [
        ("mpt", "its positions cannot be given"),
        ("mamba", "no single stack of layers that keep their keys in a cache"),
    ],
)
def test_an_unsupported_family_is_refused_by_name(family: str, because: str) -> None:
    assert_refused(stock(family), family, because)


def test_an_encoder_decoder_is_refused_by_name() -> None:
    assert_refused(stock("t5", T5_SIZES), "t5", "it is an encoder-decoder")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt_neox_japanese", "doge", "afmoe"])
def test_a_family_whose_layers_fail_in_our_forward_is_refused_without_a_crash(family: str) -> None:
    """Their stock forward runs; an exception in ours is reported as an unsupported family."""
    model = stock(family, SIZES | {"head_dim": 8})
    tokens = torch.arange(12)[None]
    expected = model(tokens).logits[0]
    try:
        target = Target(model)
    except UserError as refusal:
        assert f"'{family}'" in str(refusal) and "\n" not in str(refusal)
    else:
        ours = target.forward([0], [0], [TokenTree.chain(tokens[0, 1:])])[0]
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_unsupported_layer_types_are_refused_by_name() -> None:
    model = tiny_model("qwen2")
    model.config.layer_types = ["full_attention", "linear_attention"] * 2
    assert_refused(model, "qwen2", "layers of type linear_attention")


def test_a_stock_forward_that_does_more_than_run_its_layers_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the comparison with the stock forward prevents wrong text: logits scaled by 1.05 are noticed."""
    model = tiny_model()
    Target(model)
    stock_forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = stock_forward(*args, **kwargs)
        output.logits = output.logits * 1.05
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(UserError, match="give other logits than its own forward"):
        Target(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_anatomy_of_a_family_names_its_sliding_layers(family: str) -> None:
    anatomy = dissect(tiny_model(family))
    kinds = {"mistral": [SLIDING] * 4, "gemma2": [SLIDING, FULL] * 2, "gemma3_text": [SLIDING, FULL] * 2}
    assert list(anatomy.layer_types) == kinds.get(family, [FULL] * 4)
    assert anatomy.window == (WINDOW if family in kinds else None)
    assert (anatomy.softcap is not None) == (family == "gemma2")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_disabled_sliding_window_is_none(family: str) -> None:
    """Qwen checkpoints carry a window that they do not use."""
    off = dissect(tiny_model(family, sliding_window=WINDOW, use_sliding_window=False))
    assert off.window is None and set(off.layer_types) == {FULL}
    on = dissect(tiny_model(family, sliding_window=WINDOW, use_sliding_window=True, max_window_layers=2))
    assert on.window == WINDOW and on.layer_types == (FULL, FULL, SLIDING, SLIDING)


@pytest.mark.parametrize("family", ["starcoder2", "mixtral", "granite", "glm4", "olmo3", "smollm3", "phimoe"])
def test_unlisted_families_with_a_known_structure_are_supported(family: str) -> None:
    assert_driven(stock(family), packed=True)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["nemotron", "glm4_moe"])
def test_attention_with_partial_rotation_stays_stock(family: str, packed: bool) -> None:
    """Fused attention agrees for whole heads, but such a layer gets fewer angles."""
    model = stock(family, SIZES | {"head_dim": 8})
    assert model.model.rotary_emb.inv_freq.numel() < 4
    assert_driven(model, packed=packed)


@pytest.mark.parametrize("family", ["hunyuan_v1_moe", "phimoe", "mixtral"])
def test_pseudo_tokens_in_a_mixture_of_experts_change_no_text(family: str) -> None:
    """Routers read their matrix's dtype, or return a tuple."""
    model = stock(family, SIZES | {"head_dim": 8})
    target, prompt = Target(model), [5, 17, 3, 60, 44]
    drafter = made(target, PseudoTokensConfig(count=3, branches=3, nodes=9, costs="flat", noise=1.0))
    output = Decoder(target, drafter, Stopping(frozenset(), 12)).decode(prompt).output
    assert output == stock_output(model, prompt, 12, pad_token_id=0)


def assert_driven(model: PreTrainedModel, *, packed: bool) -> None:
    target = Target(model, packed=packed)
    tokens = torch.arange(5, 25)[None]
    target.prefill(0, tokens[0, :8].tolist())
    ours = target.forward([0], [int(tokens[0, 8])], [TokenTree.chain(tokens[0, 9:])])[0]
    torch.testing.assert_close(ours, model(tokens).logits[0, 8:], rtol=1e-3, atol=1e-3)
