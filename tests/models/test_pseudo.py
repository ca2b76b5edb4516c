"""Pseudo tokens: the target's own bits at all other nodes, and at probes what a plain dense forward computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from probed_rows import CANDIDATES, KINDS, PROMPT, begun, logits_through, without_lora
from selfdraft.core.errors import UserError
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.gated import Gate, GatedLinear
from selfdraft.models.trained.heads import SamplerHead
from selfdraft.models.trained.pseudo import PseudoTokens, pseudo_numbers, untrained


def forward(target: Target, tree: TokenTree, pseudo: PseudoTokens | None) -> Tensor:
    """See `logits_through`."""
    return logits_through(target, tree, None if pseudo is None else pseudo.path)


def test_probes_under_the_root_and_every_node_come_after_all_nodes() -> None:
    tree = TokenTree.merged([[5, 6], [7]]).probed(2, 0)
    assert tree.parents.tolist() == [ROOT, 0, ROOT, ROOT, 3, 0, 5, 1, 7, 2, 9]
    assert tree.is_candidate.tolist() == [True] * 3 + [False] * 8
    assert pseudo_numbers([tree], 13).tolist() == [[-1] * 4 + [0, 1] * 4 + [-1]]
    assert TokenTree.chain([5, 6]).probed(2, 0).first_branch().tolist() == [True, True] + [False] * 4 + [True, True]
    assert TokenTree.empty().probed(3, 0).is_chain


@pytest.mark.parametrize(("packed", "dtype"), KINDS)
def test_without_probes_the_bits_are_those_of_the_target(packed: bool, dtype: torch.dtype) -> None:
    target = begun(packed, dtype)
    pseudo = PseudoTokens(target, untrained(target, 3, noise=1.0))
    plain, gated = (forward(target, CANDIDATES, p) for p in (None, pseudo))
    assert torch.equal(plain, gated)


@pytest.mark.parametrize(("packed", "dtype"), KINDS)
def test_next_to_probes_other_nodes_have_the_bits_without_lora(packed: bool, dtype: torch.dtype) -> None:
    target = begun(packed, dtype)
    tree = CANDIDATES.probed(3, 0)
    adapter = untrained(target, 3, noise=1.0)
    with_it, without = (forward(target, tree, PseudoTokens(target, each)) for each in (adapter, without_lora(adapter)))
    ordinary = 2 + 2 * len(CANDIDATES)  # the other row, and this row's root and candidates
    assert torch.equal(with_it[:ordinary], without[:ordinary])
    assert bool((with_it[ordinary:] != without[ordinary:]).any(-1).all())  # and the LoRA does something


@torch.inference_mode()
def dense(target: Target, adapter: Adapter, text: list[int], probes: int) -> Tensor:
    """(V,) of the last of `probes` pseudo tokens after a text: the stock model with hooks, no cache and no tree."""
    model, hooks = target.model, []
    for index, layer in enumerate(target.anatomy.layers):
        for name, module in layer.named_modules():
            if (a := adapter.tensors.get(f"lora.{index}.{name}.A")) is None:
                continue
            b = adapter.tensors[f"lora.{index}.{name}.B"]

            def add(_, inputs, out, a=a, b=b):
                out[:, len(text) :] += 0.5 * inputs[0][:, len(text) :] @ a.T @ b.T

            hooks.append(module.register_forward_hook(add))
    embedded = torch.cat([target.anatomy.embed(torch.tensor(text)), adapter.tensors["pseudo"][:probes]])
    logits = model(inputs_embeds=embedded[None], use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probe_s_logits_equal_those_of_a_dense_forward(family: str) -> None:
    target = begun(family=family)
    adapter = replace(untrained(target, 2, noise=0.3), settings={"scale": 0.5})
    tree = CANDIDATES.probed(2, 0)
    logits = target.forward([0], [PROMPT[-1]], [tree], through=PseudoTokens(target, adapter).path)[0]
    for node, path in ((ROOT, []), (0, [5]), (2, [5, 6, 7]), (4, [9])):
        for j in range(2):
            expected = dense(target, adapter, PROMPT + path, j + 1)
            at = 1 + len(CANDIDATES) + 2 * (node + 1) + j
            torch.testing.assert_close(logits[at], expected, rtol=1e-3, atol=1e-3)


def test_lora_is_switched_off_again_even_after_an_exception() -> None:
    target = begun()
    pseudo = PseudoTokens(target, untrained(target, 1, noise=1.0))
    with pytest.raises(KeyError), pseudo.gate.open(torch.tensor([1]), 2, torch.device("cpu")):
        raise KeyError
    assert pseudo.gate.rows is None


def test_a_matrix_with_another_number_of_rows_adds_no_lora() -> None:
    """An expert gets some of the tokens: its second row is not the forward's second row."""
    base, gate = torch.nn.Linear(4, 3, bias=False), Gate()
    linear = GatedLinear(base, [(torch.ones(1, 4), torch.ones(3, 1))], 1.0, gate)
    x = torch.randn(1, 3, 4)
    with torch.inference_mode(), gate.open(torch.tensor([1]), 3, torch.device("cpu")):
        assert (linear(x) != base(x)).any(-1).tolist() == [[False, True, False]]
        assert torch.equal(linear(x[:, :2]), base(x[:, :2]))
        assert torch.equal(linear(x[0]), linear(x)[0])  # flattened, they are the same rows


def test_the_full_path_is_unchanged_and_packed_matrices_are_shared() -> None:
    target = begun()
    kept = target.full.layers
    pseudo = PseudoTokens(target, untrained(target, 1, noise=1.0))
    assert target.full.layers is kept and pseudo.path.layers[0] is not kept[0]
    assert pseudo.path.layers[0].mlp.down_proj.base is kept[0].mlp.down_proj
    assert PseudoTokens(target, untrained(target, 1)).path.layers == kept  # no LoRA, nothing of its own


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"vocabulary": torch.zeros(3)}, "trained no pseudo tokens"),
        ({"pseudo": torch.zeros(2, 48)}, "48 numbers each"),
        ({"lora.9.mlp.down_proj.A": torch.zeros(2, 64)}, "layer 9, and this one"),
        ({"lora.0.mlp.odd.A": torch.zeros(2, 64)}, "LoRA of 0.mlp.odd"),
        ({"lora.0.mlp.down_proj.A": torch.zeros(2, 64)}, "does not fit layer 0"),
        ({"lora.0.mlp.down_proj.A": torch.zeros(2, 9), "lora.0.mlp.down_proj.B": torch.zeros(32, 2)}, "not fit layer"),
        ({"sampler.inner.weight": torch.zeros(2, 2)}, "sampler"),
    ],
)
def test_an_adapter_of_another_recipe_is_refused(tensors: dict[str, Tensor], said: str) -> None:
    base = {} if "vocabulary" in tensors else {"pseudo": torch.zeros(2, 32)}
    with pytest.raises(UserError, match=rf"drafter.adapter=here.*{said}"):
        PseudoTokens(begun(), Adapter("some", {}, {**base, **tensors}), "here")


def test_a_sampler_starts_as_the_identity_and_gets_the_token_before() -> None:
    target = begun()
    head = SamplerHead(32)
    hidden, previous = torch.randn(3, 32), torch.randn(3, 32)
    assert torch.equal(head(hidden, previous), hidden)
    torch.nn.init.normal_(head.outer.weight)
    assert not torch.allclose(head(hidden, previous), head(hidden, previous.roll(1, 0)))

    sampler = {f"sampler.{name}": tensor for name, tensor in head.state_dict().items()}
    adapter = untrained(target, 3)
    pseudo = PseudoTokens(target, replace(adapter, tensors={**adapter.tensors, **sampler}))
    levels = pseudo.resampled(target.norm(hidden), 17, 4, branches=3)
    assert [len(level) for level in levels] == [1, 3, 3]
    likeliest = [(token,) for token, _ in levels[0][()][:3]]
    assert list(levels[1]) == likeliest
    assert {branch[:1] for branch in levels[2]} <= set(likeliest)
    for state, level in zip(hidden, levels, strict=True):
        for branch, best in level.items():
            with torch.inference_mode():
                adjusted = head(
                    target.anatomy.norm(state)[None], target.anatomy.embed(torch.tensor([(17, *branch)[-1]]))
                )
                logits, tokens = target.anatomy.head(adjusted)[0], [token for token, _ in best]
            assert tokens == logits.topk(4).indices.tolist()
            chances = torch.tensor([chance for _, chance in best])
            torch.testing.assert_close(chances, logits[tokens].softmax(-1), rtol=1e-4, atol=1e-5)
    reached = {
        (*b, t): levels[0][()][[t for t, _ in levels[0][()]].index(b[0])][1] * c
        for b, best in levels[1].items()
        for t, c in best
    }
    assert list(levels[2]) == sorted(reached, key=lambda branch: -reached[branch])[:3]
