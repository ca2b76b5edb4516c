"""Models with features that our forward through the layers would leave out are refused with one clear line."""

from __future__ import annotations

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from torch import nn
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.models.loading.tiny import tiny_model

PROMPT = torch.tensor([[5, 17, 3, 60, 44, 9, 5, 17, 3]])
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
CAUSAL = {"task_type": TaskType.CAUSAL_LM}
LEARNED_PROMPTS: list[PeftConfig] = [
    PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
    PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
    PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **CAUSAL),
    MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=2, **CAUSAL),
    CPTConfig(cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1], **CAUSAL),
]


def learned(config: PeftConfig) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), config).eval()


def drafted(model: nn.Module, drafting: Drafting, **options: object) -> list[int]:
    return model.generate(input_ids=PROMPT, custom_generate=drafting, **GREEDY, **options)[0, 9:].tolist()


def text(model: nn.Module, **options: object) -> list[int]:
    return model.generate(input_ids=PROMPT, **GREEDY, **options)[0, 9:].tolist()


@pytest.mark.parametrize("config", LEARNED_PROMPTS, ids=lambda config: config.peft_type.value)
def test_peft_prompt_learning_is_refused_by_name(config: PeftConfig) -> None:
    model, drafting = learned(config), Drafting("jacobi", window=3)
    for _ in range(2):  # PEFT puts its method on the model for the time of a call, and another one afterwards
        with pytest.raises(UserError, match=f"PEFT's {config.peft_type.value} works through prepare_inputs") as raised:
            drafted(model, drafting)
    assert "\n" not in str(raised.value)
    base = model.get_base_model()
    assert drafted(base, drafting) == text(base)


def test_an_adaption_prompt_gives_the_right_text_or_is_refused() -> None:
    model = learned(AdaptionPromptConfig(adapter_len=3, adapter_layers=2, **CAUSAL))
    for module in model.modules():
        if hasattr(module, "adaption_gate"):
            module.adaption_gate.data.fill_(5.0)
    try:
        assert drafted(model, Drafting("jacobi", window=3)) == text(model)
    except UserError as refused:
        assert "\n" not in str(refused)


@pytest.mark.slow
def test_lora_works() -> None:
    model = learned(LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **CAUSAL))
    assert drafted(model, Drafting("jacobi", window=3)) == text(model) != text(tiny_model())


def test_adapter_names_per_row_are_refused() -> None:
    model = learned(LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **CAUSAL))
    with pytest.raises(UserError, match="PEFT's adapter_names are given to "):
        drafted(model, Drafting("jacobi", window=3), adapter_names=["default"])


def test_lora_dropout_in_training_mode_is_refused() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False, **CAUSAL)
    model = get_peft_model(tiny_model(), config)
    with pytest.raises(UserError, match="is in training mode"):
        drafted(model, Drafting("jacobi", window=3))
    assert drafted(model.eval(), Drafting("jacobi", window=3)) == text(model)


class Preparing(LlamaForCausalLM):
    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return super().prepare_inputs_for_generation(input_ids * 0 + 3, **kwargs)


class Updating(LlamaForCausalLM):
    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)


class Louder(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.flip(-1)
        return out


class Plain(LlamaForCausalLM):
    pass


class Written(LlamaPreTrainedModel, GenerationMixin):
    """A model of somebody's own around parts of transformers, as remote code is."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, logits_to_keep=0, **kwargs):
        out = self.model(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)


class WrittenOtherwise(Written):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.flip(-1)
        return out


def as_a(kind: type[PreTrainedModel]) -> PreTrainedModel:
    model = tiny_model()
    own = kind(model.config).eval()
    own.load_state_dict(model.state_dict())
    return own


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Preparing, "prepare_inputs_for_generation"),
        (Updating, "_update_model_kwargs_for_generation"),
        (Louder, "forward"),
    ],
)
def test_a_subclass_that_overrides_methods_is_refused(kind: type[PreTrainedModel], method: str) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__} has a {method} of its own"):
        drafted(as_a(kind), Drafting("jacobi", window=3))


@pytest.mark.parametrize("kind", [Plain, Written])
def test_a_subclass_without_overrides_is_accepted(kind: type[PreTrainedModel]) -> None:
    model = as_a(kind)
    assert drafted(model, Drafting("jacobi", window=3)) == text(model)


def test_a_custom_forward_is_run_as_it_is() -> None:
    model = as_a(WrittenOtherwise)
    assert drafted(model, Drafting("jacobi", window=3)) == text(model)


def test_methods_patched_on_the_class_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=3)
    before = drafted(model, drafting)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", Louder.forward)
        with pytest.raises(UserError, match="LlamaForCausalLM has a forward of its own"):
            drafted(model, drafting)
    assert drafted(model, drafting) == before
