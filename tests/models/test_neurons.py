"""Sparse width: MLPs with only the neurons that a prompt uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from begun import CLOSE, LONG, SHORT, begin
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.small import small_model
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.paths.mlps import neurons_of
from selfdraft.models.paths.neurons import most_active, neuron_statistics, sliced_mlps
from selfdraft.models.paths.sparse import sparse_path

# One of every kind besides: transposed weights; no gates; matrices that lie in the layer itself, or in two parts of it;
# an MLP that also takes the residual stream; gates and values in one matrix; an activation with parameters; names of
# its own; states in four streams.
OTHERS = [
    "gpt2",
    "nemotron",
    "starcoder2",
    "phi",
    "opt",
    "bert",
    "bloom",
    "modernbert-decoder",
    "apertus",
    "lfm2",
    "gemma3n_text",
]


def model_of(family: str) -> PreTrainedModel:
    """A tiny model of the suite's families, a small one of the others; the same at every call."""
    return tiny_model(family) if family in FAMILIES else small_model(family)


def downs(target: Target) -> list[nn.Module]:
    """Per layer: the stock matrix that takes the neurons, by names that differ from family to family."""
    ends = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "output.dense", "Wo", "w2")
    found = []
    for layer in target.anatomy.layers:
        name = target.anatomy.attention_name
        known = [
            part
            for part_name, part in layer.named_modules()
            if part_name.endswith(ends) and not part_name.startswith(f"{name}.")
        ]
        assert len(known) == 1
        found += known
    return found


def activations(model: PreTrainedModel, target: Target, text: list[int]) -> list[Tensor]:
    """Per layer (S, F): what the stock model's down projections get."""
    seen: list[Tensor] = []
    hooks = [
        d.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].flatten(0, -2))) for d in downs(target)
    ]
    with torch.inference_mode():
        model(torch.tensor([text]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_neurons_are_chosen_by_their_share_of_the_prompt_s_activations(family: str) -> None:
    model = model_of(family)
    target = Target(model)
    begin(target, SHORT)
    ours = neuron_statistics(target, neurons_of(target), LONG)
    for mine, z in zip(ours, activations(model, target, LONG), strict=True):
        share = z.abs() / z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(mine, share.norm(dim=0), rtol=1e-3, atol=1e-3)
        (kept,) = most_active([mine], 0.25)
        count = len(mine) // 4
        assert len(kept) == count and set(kept.tolist()) == set(mine.argsort()[-count:].tolist())
    assert target.cache.lengths == [len(SHORT) - 1]  # and the request's cache was left alone


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_a_sliced_mlp_equals_the_stock_one_with_other_neurons_zeroed(family: str) -> None:
    model = model_of(family)
    target = Target(model)
    kept = most_active(neuron_statistics(target, neurons_of(target), LONG), 0.5)
    parts = family not in ("opt", "bert")  # else the MLP is no part of its own and cannot be left out by itself
    skip = SkipSet.of(4, [1] if family != "gemma3n_text" else [], [2]) if parts else SkipSet.of(4, [1], [1])
    path = sparse_path(target, skip, mlps=sliced_mlps(target, neurons_of(target), kept, skip))
    assert path.leading == 0
    begin(target, LONG)
    ours = target.draft_forward(path, [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    with torch.inference_mode():
        past = model(torch.tensor([LONG[:-1]]), use_cache=True).past_key_values  # the prefix has seen whole MLPs
        for down, neurons in zip(downs(target), kept, strict=True):
            only = torch.zeros(len(neurons) * 2).index_fill_(0, neurons, 1.0)
            down.register_forward_pre_hook(lambda m, x, only=only: (x[0] * only, *x[1:]))
        leave_out(target, skip)
        expected = model(torch.tensor([[1, 2, 3]]), past_key_values=past).logits[0]
    torch.testing.assert_close(ours, expected, **CLOSE)
    whole = target.draft_forward(sparse_path(target, skip), [0], 0, [1], [TokenTree.chain([2, 3])])[0]
    assert (ours - whole).abs().max() > 0.01


def leave_out(target: Target, skip: SkipSet) -> None:
    """Leave out sublayers of the stock model by hooks."""
    anatomy, adds = target.anatomy, target.model.config.model_type == "bloom"  # to the residual stream, themselves
    for index in skip.whole_layers():
        anatomy.layers[index].register_forward_hook(
            lambda m, given, kwargs, out: given[0] if isinstance(out, Tensor) else (given[0], *out[1:]),
            with_kwargs=True,
        )
    for index in skip.attention - skip.whole_layers():
        attention = getattr(anatomy.layers[index], anatomy.attention_name)
        attention.register_forward_hook(lambda m, x, out: (x[1] if adds else torch.zeros_like(out[0]), *out[1:]))
    for index in skip.mlp - skip.whole_layers():
        mlp = getattr(anatomy.layers[index], anatomy.mlp_name)
        mlp.register_forward_hook(lambda m, x, out: x[1] if adds else torch.zeros_like(out))


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "granitemoe", "jetmoe", "llama4_text"])
def test_mixtures_of_experts_are_refused_by_name(family: str) -> None:
    said = rf"^drafter/path=width_skip: the neurons of model family '{family}' cannot be chosen: its MLPs are mixtures"
    with pytest.raises(UserError, match=said):
        neurons_of(Target(small_model(family)))


def test_mlps_in_which_a_part_needs_all_neurons_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"'bitnet' cannot be chosen: its MLPs do not run with fewer neurons \(RuntimeError\)"
    ):
        neurons_of(Target(small_model("bitnet")))


class Deep(nn.Module):
    """An MLP with one matrix more than it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


class Beside(nn.Module):
    """An MLP with a matrix that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.beside = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) + x @ self.beside.weight


class Twice(nn.Module):
    """An MLP that calls its matrices twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.last(self.first(x).relu())).relu())


@pytest.mark.parametrize("kind", [Deep, Beside, Twice])
def test_mlps_of_other_kinds_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=r"its MLPs are not one or two matrices, an activation and one more matrix"):
        neurons_of(Target(with_mlps(kind)))


class Joined(nn.Module):
    """An MLP with gates and values in one matrix, in an order of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.both, self.last, self.order = nn.Linear(32, 128), nn.Linear(64, 32), order

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        if self.order == "halves":
            gate, up = both.chunk(2, -1)
        elif self.order == "pairs":
            gate, up = both[..., ::2], both[..., 1::2]
        else:
            gate, up = both.chunk(2, -1)
            up = up.flip(-1)
        return self.last(gate.sigmoid() * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["halves", "pairs"])
def test_the_order_of_joined_matrices_is_found(order: str, dtype: torch.dtype) -> None:
    target = Target(with_mlps(lambda: Joined(order)).to(dtype))
    assert {neurons.layout for neurons in neurons_of(target)} == {order}
    mlp, x = target.anatomy.layers[0].mlp, torch.randn(2, 5, 32, dtype=dtype)
    kept = torch.tensor([3, 7, 30, 63])
    (narrow,) = sliced_mlps(target, neurons_of(target), [kept] * 4, SkipSet.of(4, [], [1, 2, 3]))[0].values()
    mlp.last.register_forward_pre_hook(lambda m, given: given[0] * torch.zeros(64).index_fill(0, kept, 1.0).to(dtype))
    with torch.inference_mode():
        torch.testing.assert_close(narrow(x), mlp(x))


def test_an_unknown_order_of_joined_matrices_is_refused() -> None:
    with pytest.raises(UserError, match=r"its MLPs join two matrices in a way of their own"):
        neurons_of(Target(with_mlps(lambda: Joined("turned"))))


def with_mlps(make: Callable[[], nn.Module]) -> PreTrainedModel:
    """A tiny Llama with other MLPs."""
    model = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in model.model.layers:
            layer.mlp = make()
    return model.eval()


def test_looking_for_neurons_leaves_the_model_alone() -> None:
    model = small_model("gpt2")
    parts = [(name, type(part), *map(id, part.children())) for name, part in model.named_modules()]
    neurons_of(Target(model))
    assert [(name, type(part), *map(id, part.children())) for name, part in model.named_modules()] == parts
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_sliced_matrices_have_only_the_chosen_neurons() -> None:
    target = Target(tiny_model("llama"))
    sliced = sliced_mlps(target, neurons_of(target), [torch.tensor([1, 5, 6])] * 4, SkipSet.of(4, [], [3]))
    assert set(sliced) == {0, 1, 2}
    shapes = {
        name: tuple(m.weight.shape)
        for name, m in sliced[0]["mlp"].named_children()
        if isinstance(m, nn.Module) and hasattr(m, "weight")
    }
    assert shapes == {"gate_up": (6, 32), "down_proj": (32, 3)}
