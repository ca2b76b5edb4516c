"""Layers in C++: the logits of the eager layers, the text of `generate`, and the same bits in every tree."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from engine_logits import CLOSE, assert_same_logits
from lossless import LOSSLESS
from made import made
from random_adapters import ADAPTED
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.models.engines.choice import NATIVE, run_natively, use_engine
from selfdraft.models.forward import target as target_module
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.native import build
from selfdraft.models.kernels.native.engine import NativeEngine
from selfdraft.models.kernels.native.layers import NativeLayers, NativeProduct
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.reference.invariance import alike_in_trees, make_shape_invariant
from subjects import LENGTH, PROMPTS, subject

pytestmark = pytest.mark.skipif(not build.has_compiler(), reason="there is no C++ compiler")
OURS = ("llama", "mistral", "qwen2", "qwen3")  # the families of the Llama kind among those made tiny


@cache
def native_target(family: str) -> Target:
    """Stored once for all tests."""
    target = Target(subject(family, seed=2, mild=True).model)
    run_natively(target)
    return target


def test_every_family_is_run_or_refused_in_one_line() -> None:
    for family in FAMILIES:
        target = Target(subject(family, seed=2, mild=True).model)
        if family in OURS:
            assert use_engine(target, NATIVE).startswith("native: our C++ on ")
        else:
            with pytest.raises(UserError, match=r"^model\.engine=native: our C\+\+ ") as refusal:
                use_engine(target, NATIVE)
            assert "\n" not in str(refusal.value) and target.native is None and not target.compiled


@pytest.mark.parametrize("family", OURS)
def test_trees_get_the_logits_of_the_eager_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 7)
    assert_same_logits(Target(subject(family, seed=2, mild=True).model), native_target(family))


def test_no_layer_of_a_forward_is_called_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the full model, nor of paths without some sublayers, nor where the states between layers are kept."""
    target = native_target("llama")
    target.allocate(1, 32)
    target.prefill(0, PROMPTS[1])
    kind = type(target.full.layers[0])
    states: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", None)
        target.forward([0], [5], [TokenTree.chain([1, 2])], keep=[states])
        for skip in (SkipSet.of(4, [1], [2]), SkipSet.of(4, [1, 2], [1]), SkipSet.from_layer(4, 2)):
            target.draft_forward(sparse_path(target, skip), [0], 0, [5], [TokenTree.empty()])
    eager = Target(subject("llama", seed=2, mild=True).model)
    eager.allocate(1, 32)
    eager.prefill(0, PROMPTS[1])
    theirs: list[torch.Tensor] = []
    eager.forward([0], [5], [TokenTree.chain([1, 2])], keep=[theirs])
    torch.testing.assert_close(states[0], theirs[0], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("family", OURS)
def test_the_text_is_that_of_generate(family: str) -> None:
    """With every drafter, those that read states, reuse layers, choose keys or run a part of the model among them."""
    it, target = subject(family, seed=2, mild=True), native_target(family)
    for name in LOSSLESS if family == "llama" else ["pool", "early_exit", "clasp", "jacobi"]:
        for config in LOSSLESS[name][: 2 if family == "llama" else 1]:
            decoder = Decoder(target, made(target, config), Stopping(frozenset(), LENGTH), batch_size=3)
            done = decoder.answer([Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS)])
            assert [g.output for g in done] == it.expected, name


@pytest.mark.parametrize("family", OURS)
def test_a_token_has_the_same_bits_in_every_tree(family: str) -> None:
    assert alike_in_trees(native_target(family))


def test_shape_invariance_needs_no_padding_and_allows_trees() -> None:
    target = Target(subject("llama", seed=2, mild=True).model)
    assert use_engine(target, "auto", invariant=True).startswith("native")
    make_shape_invariant(target)
    assert (target.key_block, target.row_block, target.chains_only) == (1, 1, False)
    assert use_engine(Target(tiny_model("gemma2")), "auto", invariant=True).endswith("pads keys, and a graph does not")


def test_bits_that_depend_on_the_block_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(subject("llama", seed=2, mild=True).model)
    run_natively(target)
    call = NativeLayers.__call__

    def rounding_otherwise(self: NativeLayers, hidden: torch.Tensor, *more: object) -> torch.Tensor:
        return call(self, hidden, *more) * (1 + 2e-7 * (hidden.shape[1] > 1))

    monkeypatch.setattr(NativeLayers, "__call__", rounding_otherwise)
    with pytest.raises(UserError, match="tokens of a tree do not have the bits of tokens computed one by one"):
        make_shape_invariant(target)


def test_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of a family whose attributes have the names of Llama's."""
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    monkeypatch.setattr(attention, "scaling", attention.scaling * 1.01)
    target = Target(model)
    model.model.layers[2].mlp.act_fn = nn.Tanh()
    with pytest.raises(
        UserError, match=r"our C\+\+ has no layers of this kind: it computes something else than these layers"
    ):
        run_natively(target)
    assert target.native is None and not target.compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTED)
def test_a_trained_path_runs_with_matrices_of_its_own(name: str, tmp_path: Path) -> None:
    it, target = subject("llama", seed=2, mild=True), native_target("llama")
    drafter = made(target, ADAPTED[name].written(target, tmp_path))
    decoder = Decoder(target, drafter, Stopping(frozenset(), LENGTH), batch_size=2)
    done = decoder.answer([Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS)])
    assert [g.output for g in done] == it.expected
    path = drafter.policy.typical
    if path.vocabulary is not None:
        assert isinstance(path.head, NativeProduct)
        states = torch.randn(3, target.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        rows = target.anatomy.head.weight[path.vocabulary]
        torch.testing.assert_close(path.head(states), states @ rows.T, **CLOSE)


def test_a_matrix_is_stored_once_for_all_paths() -> None:
    target = native_target("llama")
    assert isinstance(target.native, NativeEngine)
    before = target.native.nbytes
    for skip in (SkipSet.of(4, [1], [2]), SkipSet.from_layer(4, 2)):
        path = sparse_path(target, skip)
        assert target.graph(path.layers, path.types) is not None
    assert target.native.nbytes == before


def forget() -> None:
    """Let the next call look for a compiler and a library again."""
    for known in (build.library, build.compiler, build._place):
        known.cache_clear()


def test_without_a_compiler_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            patch.delenv("CXX", raising=False)
            patch.setattr(build.importlib.util, "find_spec", lambda name: None)
            assert not build.has_compiler()
            with pytest.raises(UserError, match=r"^there is no C\+\+ compiler: install a C\+\+ compiler \("):
                run_natively(Target(tiny_model("llama")))
            (tmp_path / "broken").write_text("#!/bin/sh\necho 'x.cpp:1: error: no such header' >&2; exit 1\n")
            (tmp_path / "broken").chmod(0o755)
            build.compiler.cache_clear()
            patch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
            patch.setenv("CXX", "broken")
            with pytest.raises(UserError, match=r"failed: x\.cpp:1: error: no such header$"):
                build.compiled(tmp_path)
            build.compiler.cache_clear()
            patch.setenv("CXX", 'g++ "')
            with pytest.raises(UserError, match=r"^the environment's CXX is no command: no closing quotation$"):
                build.compiled(tmp_path)
    finally:
        forget()


def test_a_part_that_is_refused_is_not_run_by_another_path() -> None:
    """Its sublayers must not be left behind as known ones."""
    target = Target(subject("llama", seed=2, mild=True).model)
    run_natively(target)
    assert target.native is not None
    stock = list(tiny_model("llama", seed=9).model.layers)
    layers, types = [target.driven(layer, place) for place, layer in enumerate(stock)], target.full.types
    stock[2].mlp.act_fn = nn.Tanh()
    with pytest.raises(UserError, match="it computes something else than these layers"):
        target.native.add(layers, stock, types, next(iter(target.rotated)))
    assert target.graph(layers, types) is None
    assert target.graph(layers[:1], types[:1]) is None
    stock[2].mlp.act_fn = nn.SiLU()
    target.native.add(layers, stock, types, next(iter(target.rotated)))
    assert target.graph(layers, types) is not None


def test_a_damaged_library_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path))
    forget()
    try:
        place = build._place()
        place.parent.mkdir(mode=0o700)
        place.write_bytes(b"torn")
        place.chmod(0o600)
        original = build.compiled
        monkeypatch.setattr(build, "compiled", lambda folder: original(folder, "-O0"))
        assert build.library().selfdraft_product
        assert place.stat().st_size > 10_000
    finally:
        forget()


def test_a_library_that_others_may_write_to_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path))
    build._place.cache_clear()
    try:
        place = build._place()
        place.parent.mkdir(mode=0o700)
        place.write_bytes(b"not a library")
        place.chmod(0o600)
        assert build.is_built()
        place.chmod(0o622)
        assert not build.is_built()
        place.chmod(0o600)
        place.parent.chmod(0o777)
        assert not build.is_built()
    finally:
        build._place.cache_clear()
