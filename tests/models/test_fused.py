"""Gated rows: the target's own bits at all other nodes, and at these rows what a plain dense forward computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from probed_rows import CANDIDATES, KINDS, PROMPT, begun, logits_through, without_lora
from selfdraft.core.errors import UserError
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.models.engines.choice import run_natively
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.reference.invariance import make_shape_invariant
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.fused import FusedRows, gated_places, untrained_rows
from selfdraft.models.trained.heads import ConfidenceHead, DraftHeads, MarkovHead, SamplerHead


def forward(target: Target, tree: TokenTree, rows: FusedRows | None) -> Tensor:
    """See `logits_through`."""
    return logits_through(target, tree, None if rows is None else rows.path)


def test_every_gated_row_knows_the_node_that_its_chain_follows() -> None:
    tree = TokenTree.merged([[5, 6], [7]]).probed(2, 0, [ROOT, 1])
    rows, followed, numbers = gated_places([TokenTree.empty(), tree], 9)
    assert rows == [13, 14, 15, 16] and followed == [9, 9, 11, 11] and numbers == [0, 1, 0, 1]


@pytest.mark.parametrize(("packed", "dtype"), KINDS)
def test_without_gated_rows_the_bits_are_those_of_the_target(packed: bool, dtype: torch.dtype) -> None:
    target = begun(packed, dtype)
    rows = FusedRows(target, untrained_rows(target, 3, noise=1.0))
    plain, fused = (forward(target, CANDIDATES, each) for each in (None, rows))
    assert torch.equal(plain, fused)


@pytest.mark.parametrize(("packed", "dtype"), KINDS)
def test_next_to_gated_rows_other_nodes_have_the_bits_without_lora_and_of_a_full_forward(
    packed: bool, dtype: torch.dtype
) -> None:
    target = begun(packed, dtype)
    tree = CANDIDATES.probed(3, 0)
    adapter = untrained_rows(target, 3, noise=1.0)
    with_it, without = (forward(target, tree, FusedRows(target, each)) for each in (adapter, without_lora(adapter)))
    ordinary = 2 + 2 * len(CANDIDATES)  # the other row, and this row's root and candidates
    assert torch.equal(with_it[:ordinary], without[:ordinary])
    assert bool((with_it[ordinary:] != without[ordinary:]).any(-1).all())  # and the LoRA does something
    assert torch.equal(with_it[:ordinary], forward(target, tree, None)[:ordinary])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_shape_invariant_target_rows_that_verify_have_the_bits_of_plain_decoding(dtype: torch.dtype) -> None:
    target = Target(tiny_model("llama", dtype=dtype))
    make_shape_invariant(target)
    target.allocate(1, 0)
    target.prefill(0, PROMPT[:-1])
    rows = FusedRows(target, untrained_rows(target, 2, noise=1.0))
    tree = TokenTree.chain([5, 6]).probed(2, 0, [1])
    fused = target.forward([0], [PROMPT[-1]], [tree], through=rows.path)[0]
    for at, token in enumerate([PROMPT[-1], 5, 6]):
        assert torch.equal(target.forward([0], [token], [TokenTree.empty()])[0][0], fused[at])
        target.commit(0, [])


@torch.inference_mode()
def dense(target: Target, adapter: Adapter, text: list[int], fed: list[int]) -> Tensor:
    """(V,) of the last gated row after a text: the stock model with hooks, no cache and no tree; 0: nothing fed."""
    model, hooks, enter, tensors = target.model, [], adapter.settings["first"], adapter.tensors
    embedded = target.anatomy.embed(torch.tensor(fed)) @ tensors["feed.weight"].T + tensors["feed.bias"]
    given = torch.where((torch.tensor(fed) != target.pad_id)[:, None], embedded, tensors["mask"][: len(fed)])

    def entered(_, inputs, options):
        states = (inputs[0] if inputs else options["hidden_states"]).clone()
        states[:, len(text) :] = states[:, len(text) - 1 : len(text)] + given
        return ((states, *inputs[1:]), options) if inputs else (inputs, {**options, "hidden_states": states})

    hooks.append(target.anatomy.layers[enter].register_forward_pre_hook(entered, with_kwargs=True))
    for index, layer in enumerate(target.anatomy.layers):
        for name, module in layer.named_modules():
            if (a := tensors.get(f"lora.{index}.{name}.A")) is None:
                continue
            b = tensors[f"lora.{index}.{name}.B"]

            def add(_, inputs, out, a=a, b=b):
                out[:, len(text) :] += 0.5 * inputs[0][:, len(text) :] @ a.T @ b.T

            hooks.append(module.register_forward_hook(add))
    logits = model(torch.tensor([text + [3] * len(fed)]), use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gated_row_s_logits_equal_those_of_a_dense_forward(family: str) -> None:
    target = begun(family=family)
    adapter = untrained_rows(target, 2, noise=0.3)
    adapter = replace(adapter, settings={**adapter.settings, "scale": 0.5})
    tree, nothing = CANDIDATES.probed(2, target.pad_id), target.pad_id
    tokens = tree.tokens.clone()
    fed = {ROOT: [nothing, nothing], 0: [31, 32], 2: [nothing, 33], 4: [34, nothing]}
    for node, given in fed.items():
        tokens[len(CANDIDATES) + 2 * (node + 1) :][:2] = torch.tensor(given)
    tree = TokenTree(tokens, tree.parents, tree.is_candidate)
    logits = target.forward([0], [PROMPT[-1]], [tree], through=FusedRows(target, adapter).path)[0]
    for node, path in ((ROOT, []), (0, [5]), (2, [5, 6, 7]), (4, [9])):
        for j in range(2):
            expected = dense(target, adapter, PROMPT + path, fed[node][: j + 1])
            at = 1 + len(CANDIDATES) + 2 * (node + 1) + j
            torch.testing.assert_close(logits[at], expected, rtol=1e-3, atol=1e-3)


def test_the_path_keeps_the_normed_states_that_the_head_reads() -> None:
    target = begun()
    rows = FusedRows(target, untrained_rows(target, 2, noise=0.5))
    states: list[list[Tensor]] = [[]]
    logits = target.forward([0], [PROMPT[-1]], [CANDIDATES.probed(2, 0)], through=rows.path, keep=states)[0]
    with torch.inference_mode():
        assert torch.allclose(target.head(rows.states_of(0, [3, 8])), logits[[3, 8]], atol=1e-5)
        assert torch.allclose(target.norm(states[0][0][-1]), rows.kept[0][: len(logits)], atol=1e-5)
    assert len(states[0][0]) == len(target.full.layers) + 1


def test_heads_add_the_token_before_and_survive_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = begun()
    heads = DraftHeads(SamplerHead(32, 48), MarkovHead(32, target.vocab_size, 4), ConfidenceHead(32, 8))
    hidden, previous = torch.randn(3, 32), torch.randn(3, 32)
    head = torch.nn.Linear(32, target.vocab_size)
    assert torch.equal(heads.logits(hidden, previous, head), head(hidden))  # at first they add nothing
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    said = heads.logits(hidden, previous, head)
    assert not torch.allclose(said, heads.logits(hidden, previous.roll(1, 0), head))
    base = untrained_rows(target, 2)
    replace(base, tensors={**base.tensors, **heads.tensors()}).write(tmp_path)
    rows = FusedRows(target, Adapter.read(tmp_path))
    assert torch.equal(rows.heads.logits(hidden, previous, head), said)
    level = rows.resampled(hidden[:1], 17, 3)[0][()]
    with torch.inference_mode():
        sure = heads.confidence(hidden[0], target.anatomy.embed(torch.tensor(17))).sigmoid()
    assert level[0][1] == pytest.approx(float(sure), rel=1e-4)
    assert sum(chance for _, chance in level) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"vocabulary": torch.zeros(3)}, "trained no gated rows"),
        ({"mask": torch.zeros(2, 48)}, "48 numbers each"),
        ({"feed.weight": torch.zeros(2, 2)}, "feed"),
        ({"sampler.inner.weight": torch.zeros(2, 2)}, "heads"),
        ({"markov.down.weight": torch.zeros(2, 32), "markov.up.weight": torch.zeros(7, 2)}, "heads"),
        ({"lora.9.mlp.down_proj.A": torch.zeros(2, 64)}, "layer 9, and this one"),
    ],
)
def test_an_adapter_of_another_recipe_or_model_is_refused(tensors: dict[str, Tensor], said: str) -> None:
    base = {} if "vocabulary" in tensors else {"mask": torch.zeros(2, 32)}
    with pytest.raises(UserError, match=rf"drafter.adapter=here.*{said}"):
        FusedRows(begun(), Adapter("some", {}, {**base, **tensors}), "here")


def test_gated_rows_are_no_path_of_their_own() -> None:
    target = begun()
    with pytest.raises(UserError, match="use drafter=fused_jacobi"):
        adapted_path(target, untrained_rows(target, 2))


def test_where_the_full_path_runs_at_once_rows_that_verify_have_its_bits_and_gated_rows_come_after() -> None:
    eager, native = begun(), begun()
    run_natively(native)
    native.allocate(2, 0)
    for row in range(2):
        native.prefill(row, PROMPT[: -1 - row])
    tree = TokenTree.merged([[5, 6], [9]]).probed(2, eager.pad_id, [ROOT, 1])
    tree = TokenTree(tree.tokens.where(tree.is_candidate, torch.tensor(31)), tree.parents, tree.is_candidate)
    said = []
    for target in (eager, native):
        rows = FusedRows(target, untrained_rows(target, 2, noise=0.5))
        roots = [PROMPT[-1], PROMPT[-2]]
        said.append(torch.stack(target.forward([0, 1], roots, [tree, tree], through=rows.path)))
        assert rows.kept[0].shape == (1 + len(tree), 32)
    torch.testing.assert_close(*said, rtol=1e-3, atol=1e-3)
    candidates = TokenTree.merged([[5, 6], [9]])
    plain = native.forward([0, 1], [PROMPT[-1], PROMPT[-2]], [candidates, candidates])
    assert torch.equal(torch.stack(plain), said[1][:, : 1 + len(candidates)])
