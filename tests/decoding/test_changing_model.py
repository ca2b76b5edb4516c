"""A `Drafting` is used again after its model changed: the text is always that of the current model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from types import MethodType

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.models.families.overrides import refuse_overrides
from selfdraft.models.loading.tiny import tiny_model

PROMPT = torch.tensor([[5, 17, 3, 60, 44, 9, 5, 17, 3]])
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def text(model: nn.Module) -> list[int]:
    return model.generate(PROMPT, **GREEDY)[0, 9:].tolist()


def ours(model: nn.Module, drafting: Drafting) -> list[int]:
    return model.generate(PROMPT, custom_generate=drafting, **GREEDY)[0, 9:].tolist()


def layer(model: PreTrainedModel, index: int = 1) -> nn.Module:
    return model.model.layers[index]


def step(model: PreTrainedModel, **options: bool) -> None:
    """One AdamW step, large enough to change the text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
    model(input_ids=PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def copied(model: PreTrainedModel) -> None:
    """As loading an average of weights does."""
    for p in model.parameters():
        p.data.copy_(1.5 * p.data.flip(0))


def through_numpy(model: PreTrainedModel) -> None:
    layer(model).self_attn.v_proj.weight.detach().numpy()[:] *= -3


def one_row(model: PreTrainedModel) -> None:
    layer(model, 3).mlp.down_proj.weight.data[7] = 9.0


def one_number(model: PreTrainedModel) -> None:
    layer(model, 3).mlp.down_proj.weight.data[5, 40] += 300.0


def rows_exchanged(model: PreTrainedModel) -> None:
    weight = model.lm_head.weight.data
    weight.copy_(weight.roll(1, 0))


def a_new_parameter(model: PreTrainedModel) -> None:
    attention = layer(model).self_attn
    attention.v_proj.weight = nn.Parameter(-3 * attention.v_proj.weight.detach())


def a_new_module(model: PreTrainedModel) -> None:
    layer(model).mlp = copy.deepcopy(layer(model, 3).mlp)


def a_layer_less(model: PreTrainedModel) -> None:
    del model.model.layers[1]
    model.config.num_hidden_layers = 3
    for index, remaining in enumerate(model.model.layers):
        remaining.self_attn.layer_idx = index


def another_eps(model: PreTrainedModel) -> None:
    layer(model).post_attention_layernorm.variance_epsilon = 1e4


def another_activation(model: PreTrainedModel) -> None:
    for each in model.model.layers:
        each.mlp.act_fn = nn.Tanh()


def frozen_in_double(model: PreTrainedModel) -> None:
    model.double()


CHANGES: list[Callable[[PreTrainedModel], None]] = [
    lambda model: step(model, fused=True),
    lambda model: step(model, foreach=True),
    copied,
    through_numpy,
    one_row,
    one_number,
    rows_exchanged,
    a_new_parameter,
    a_new_module,
    a_layer_less,
    another_eps,
    another_activation,
    frozen_in_double,
]
NAMES = ["fused AdamW", "foreach AdamW", *(change.__name__ for change in CHANGES[2:])]
SAME_TEXT = {"frozen_in_double"}  # in any other case the change is one that the text shows


@pytest.mark.parametrize(
    ("change", "packed", "engine"),
    [
        *(pytest.param(change, at % 2 == 0, "eager", id=NAMES[at]) for at, change in enumerate(CHANGES)),
        # A graph holds copies of everything, so kinds of changes suffice: in place, of one number, new, of a module.
        *(pytest.param(CHANGES[at], True, "auto", id=f"{NAMES[at]}, compiled") for at in range(1, len(CHANGES), 2)),
    ],
)
def test_changed_weights_and_modules_are_used(
    change: Callable[[PreTrainedModel], None], packed: bool, engine: str
) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=3, packed=packed, engine=engine)
    before = text(model)
    assert ours(model, drafting) == before
    change(model)
    now = text(model)
    assert (now == before) == (change.__name__ in SAME_TEXT)
    assert ours(model, drafting) == now


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_change_of_any_matrix_is_noticed(name: str) -> None:
    model, drafting = tiny_model(), Drafting("none")
    ours(model, drafting)
    prepared = drafting._prepared
    assert prepared.currency.holds(model)
    module = dict(layer(model, 2).named_modules())
    weight = next(m for n, m in module.items() if n.endswith(name)).weight.data
    old = weight[-1, -1].clone()
    weight[-1, -1] = 7.0
    assert not prepared.currency.holds(model)
    weight[-1, -1] = old
    assert prepared.currency.holds(model)


def with_adapters(**options: object) -> PeftModel:
    """Two adapters with an effect, in float32, "first" being active."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **options)
    model = get_peft_model(tiny_model(), config, adapter_name="first")
    model.add_adapter("second", config)
    return model.eval()


@pytest.mark.slow
def test_switched_merged_and_disabled_adapters_take_effect() -> None:
    model, drafting = with_adapters(), Drafting("jacobi", window=3)
    seen = []

    def check() -> None:
        seen.append(text(model))
        assert ours(model, drafting) == seen[-1]
        assert ours(model, drafting) == seen[-1]

    check()
    model.set_adapter("second")
    check()
    model.merge_adapter()
    check()
    model.unmerge_adapter()
    check()
    with model.disable_adapter():
        check()
    check()
    first, second, merged, unmerged, base, again = seen
    assert second == merged == unmerged == again
    assert len({tuple(s) for s in (first, second, base)}) == 3
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("second", -3)
    check()
    assert seen[-1] != again
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                parameter.data.copy_(-parameter)
    check()
    assert seen[-1] != seen[-2]


@contextmanager
def hooked(module: nn.Module, before: bool):
    """Doubles what goes in, or turns round what comes out."""
    if before:
        handle = module.register_forward_pre_hook(lambda _, args: (args[0] * -2 + 1, *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, out: out * -2 + 1)
    yield
    handle.remove()


@contextmanager
def patched(module: nn.Module):
    plain = module.forward
    module.forward = lambda *args, **kwargs: plain(*args, **kwargs) * -2 + 1
    yield
    del module.forward


PLACES = ["self_attn.q_proj", "self_attn.o_proj", "mlp", "mlp.up_proj", "input_layernorm", "mlp.act_fn"]


@pytest.mark.parametrize(
    ("place", "way"),
    [
        (place, ("before", "after", "patched")[(at + shift) % 3])
        for at, place in enumerate([*PLACES, "lm_head", "model.norm", "model.embed_tokens"])
        for shift in range(2 if at < 2 else 1)  # never before embed_tokens: doubled token ids are no token ids
    ],
)
def test_added_and_removed_hooks_and_forwards_take_effect(place: str, way: str) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=3, engine="auto" if place in PLACES[2:4] else "eager")
    module = (layer(model) if place in PLACES else model).get_submodule(place)
    before = text(model)
    assert ours(model, drafting) == before
    with patched(module) if way == "patched" else hooked(module, way == "before"):
        changed = text(model)
        assert changed != before
        assert ours(model, drafting) == changed
    assert ours(model, drafting) == before


def test_a_patched_class_takes_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=3)
    before = ours(model, drafting)
    kind = type(layer(model).mlp)
    plain = kind.forward
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, x: -plain(self, x) + 1)
        changed = text(model)
        assert changed != before and ours(model, drafting) == changed
    assert ours(model, drafting) == before


@contextmanager
def turned(model: PreTrainedModel):
    handle = model.model.rotary_emb.register_forward_hook(lambda _, __, out: (out[1], out[0]))
    yield
    handle.remove()


@pytest.mark.parametrize("rope", [{}, {"rope_type": "dynamic", "factor": 2.0}], ids=["default", "dynamic"])
def test_a_hook_on_the_rotary_embedding_takes_effect_but_not_its_cached_state(rope: dict) -> None:
    options = {"rope_parameters": {"rope_theta": 10000.0, **rope}} if rope else {}
    model, drafting = tiny_model(max_positions=14, **options), Drafting("jacobi", window=3)
    before = text(model)  # longer than the positions: a dynamic embedding remembers that
    assert ours(model, drafting) == before
    prepared = drafting._prepared
    assert text(model) == ours(model, drafting) == before and drafting._prepared is prepared
    with turned(model):
        changed = text(model)
        assert changed != before and ours(model, drafting) == changed
    assert ours(model, drafting) == before


def add_one(module: nn.Module, args: tuple, out: object) -> object:
    return out + 1 if isinstance(out, Tensor) else out


@contextmanager
def global_hook():
    handle = register_module_forward_hook(add_one)
    yield
    handle.remove()


@contextmanager
def training(model: PreTrainedModel):
    layer(model).self_attn.attention_dropout = 0.5
    model.train()
    yield
    model.eval()


@contextmanager
def patched_as_a_whole(model: PreTrainedModel):
    plain = model.forward
    model.forward = MethodType(lambda self, *args, **kwargs: plain(*args, **kwargs), model)
    yield
    del model.forward


@contextmanager
def hooked_as_a_whole(module: nn.Module):
    handle = module.register_forward_hook(lambda _, __, out: out)
    yield
    handle.remove()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda _: global_hook(), "torch calls a hook for every module"),
        (lambda _: torch.autocast("cpu", torch.bfloat16), "torch.autocast is on"),
        (training, r"model.layers.1.self_attn is in training mode; call model.eval\(\) first"),
        (patched_as_a_whole, "LlamaForCausalLM has a forward of its own"),
        (hooked_as_a_whole, "LlamaForCausalLM has hooks of its own"),
        (lambda model: hooked_as_a_whole(model.model), "LlamaModel has hooks of its own"),
        (lambda model: patched(model.model), "LlamaModel has a forward of its own"),
    ],
    ids=["global hook", "autocast", "training", "patched", "hooked", "base hooked", "base patched"],
)
def test_model_states_that_our_forward_would_ignore_are_refused(state: Callable, says: str) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=3)
    before = ours(model, drafting)
    for kept in (drafting, Drafting("jacobi", window=3)):
        with state(model), pytest.raises(UserError, match=says) as raised:
            ours(model, kept)
        assert "\n" not in str(raised.value)
    assert ours(model, drafting) == before


def test_an_unchanged_model_is_prepared_once_even_after_asking_for_hidden_states() -> None:
    """transformers leaves hooks on a model that was once asked for its hidden states: they change nothing."""
    model, drafting = tiny_model(), Drafting("jacobi", window=3)
    before = ours(model, drafting)
    prepared = drafting._prepared
    assert ours(model, drafting) == before and drafting._prepared is prepared
    assert model(PROMPT, output_hidden_states=True, output_attentions=True).hidden_states is not None
    assert any(part._forward_hooks for part in model.modules())
    assert ours(model, drafting) == before
    prepared = drafting._prepared
    assert ours(model, drafting) == before and drafting._prepared is prepared


@pytest.mark.slow
def test_a_compiled_forward_is_accepted() -> None:
    model = tiny_model()
    model.forward = torch.compile(model.forward)
    refuse_overrides(model)
