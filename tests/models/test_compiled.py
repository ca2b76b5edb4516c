"""Layers as one compiled graph: the logits of the eager layers, and the text of `generate`."""

from __future__ import annotations

import gc
import itertools
import sys
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from engine_logits import CLOSE, assert_same_logits
from lossless import LOSSLESS
from made import SECONDS, SIZES, made
from random_adapters import ADAPTED
from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.engines import choice as engines
from selfdraft.models.engines.choice import compile_layers, use_engine
from selfdraft.models.forward import target as target_module
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.models.paths.sparse import sparse_path
from subjects import LENGTH, PROMPTS, subject

pytest.importorskip("openvino", reason="OpenVINO is not installed")


@cache
def compiled_target(family: str) -> Target:
    """Compiled once, because it takes seconds."""
    target = Target(subject(family, seed=2, mild=True).model)
    compile_layers(target)
    return target


def refusing(reason: str) -> Callable[..., object]:
    """An engine that cannot run here."""

    def refuse(*_: object) -> object:
        raise UserError(reason)

    return refuse


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_get_the_logits_of_the_eager_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PREFILL_CHUNK", 7)
    compiled = compiled_target(family)
    graph = next(iter(compiled.compiled.values()))
    assert_same_logits(Target(subject(family, seed=2, mild=True).model), compiled)
    assert graph._bound  # it was used


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_that_of_generate(family: str) -> None:
    """With drafters that read states, reuse layers, choose keys or run a part of the model, which stays eager."""
    it, target = subject(family, seed=2, mild=True), compiled_target(family)
    few = ["pool", "early_exit"]
    names = [*few, "none", "jacobi", "clasp", "sparse_kv", "swift", "pseudo_tokens"] if family == "llama" else few
    for name in names:
        drafter = made(target, LOSSLESS[name][0])
        decoder = Decoder(target, drafter, Stopping(frozenset(), LENGTH), batch_size=3)
        done = decoder.answer([Request(prompt, seed=i, key=i) for i, prompt in enumerate(PROMPTS)])
        assert [g.output for g in done] == it.expected, name


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="in float32 on a CPU only"):
        compile_layers(Target(tiny_model(dtype=torch.bfloat16)))
    with pytest.raises(UserError, match=r"model\.attention=eager is for layers that run one by one"):
        compile_layers(Target(tiny_model(), attention="eager"))
    target = Target(tiny_model())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(UserError, match=r"OpenVINO, which compiles layers, is not installed: pip install openvino"):
            compile_layers(target)
    assert not target.compiled


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(tiny_model())
    monkeypatch.setattr(Target, "_distance_from_stock_forward", lambda self, first: 1.0)
    with pytest.raises(UserError, match="give other logits than its own forward"):
        compile_layers(target)
    assert target.compiled == {}


def test_the_engine_says_why_it_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(tiny_model())
    assert use_engine(target, "eager") == "eager"
    assert use_engine(target, "auto", "layers are taken apart") == "eager: layers are taken apart"
    with pytest.raises(UserError, match=r"^model\.engine=compiled: layers are taken apart$"):
        use_engine(target, "compiled", "layers are taken apart")
    monkeypatch.setattr(engines, "run_natively", refusing("no compiler"))
    with monkeypatch.context() as patch:
        patch.setattr(engines, "available", lambda device: 1000)
        assert use_engine(target, "auto").startswith("eager: no compiler; making a graph needs ")
    assert target.compiled == {}
    told: list[str] = []
    assert use_engine(target, "auto", tell=told.append).startswith("compiled by OpenVINO, in ")
    assert told == ["compiling the layers into one graph (model.engine=eager does without)"]
    assert len(target.compiled) == 1


@pytest.mark.slow
def test_one_head_of_keys_is_compiled_as_well() -> None:
    model = tiny_model("llama", kv_heads=1)
    targets = [Target(model), Target(model)]
    compile_layers(targets[1])
    eager, compiled = (logits_of(target) for target in targets)
    torch.testing.assert_close(compiled, eager, **CLOSE)


def logits_of(target: Target) -> torch.Tensor:
    """After a prompt, of a small tree."""
    target.allocate(1, 8)
    target.prefill(0, PROMPTS[0])
    return target.forward([0], [5], [TokenTree.merged([[1, 2], [3]])])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *itertools.product(["llama"], ["layer_skip", "early_exit", "low_bit", "pool+early_exit"]),
        *itertools.product(["gemma3_text"], ["layer_skip", "low_bit"]),
    ],
)
def test_a_path_that_stays_is_compiled_too(name: str, family: str) -> None:
    """Its drafts are those of the eager path, and with its graph gone they are computed one by one again."""
    it = subject(family, seed=2, mild=True)
    eager, target = Target(it.model), compiled_target(family)
    for config in LOSSLESS[name][-2:]:
        answers = []
        for each in (eager, target):
            decoder = Decoder(each, made(each, config), Stopping(frozenset(), LENGTH), batch_size=2)
            answers.append(decoder.answer([Request(prompt, seed=i) for i, prompt in enumerate(PROMPTS)]))
        assert [g.output for g in answers[1]] == it.expected
        drafted = [[g.counts.acceptance_by_depth() for g in done] for done in answers]
        assert drafted[0] == drafted[1]  # a path of other layers would be right elsewhere
    assert len(target.compiled) > 1
    assert all(graph._bound for graph in target.compiled.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("layer_skip by a vocabulary", [True, False, True]),  # a graph of all its layers, of which none is the model's
        ("layer_skip with the feature", [False, True, True]),  # of those before the feature and of those after it
        ("early_exit with the feature", [False, True, True]),
        ("jump", [True, False, True]),  # it has no leading layers
    ],
)
def test_a_trained_path_is_compiled_too(case: str, parts: list[bool], tmp_path: Path) -> None:
    """Its drafts are those of the eager path, token by token; the graphs have the place of its layers."""
    it = subject("llama", seed=2, mild=True)
    targets, prompts = (Target(it.model), compiled_target("llama")), range(3)
    config, drafted = ADAPTED[case].written(targets[0], tmp_path), []
    for target in targets:
        drafter = made(target, config)
        done = Decoder(target, drafter, Stopping(frozenset(), LENGTH), batch_size=2).answer(
            [Request(PROMPTS[i], seed=i) for i in prompts]
        )
        assert [g.output for g in done] == it.expected[: len(prompts)]
        drafted.append([g.steps for g in done])
    assert drafted[1] == drafted[0]
    path = drafter.policy.typical
    graphs = path.graphs(target)
    assert [graph is not None for graph in graphs] == parts
    if config.reuse:  # then verification runs the model's later layers apart
        graphs = *graphs, target.full.part(path.leading, len(target.full.layers)).graphs(target)[0]
        assert graphs[-1] is not None
    assert all(graph._bound for graph in graphs if graph is not None)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
def test_the_path_is_compiled_with_which_a_search_over_prompts_has_ended(
    warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next prompt, once and outside every clock; from then on its own costs decide."""
    it, target = subject("llama", seed=2, mild=True), compiled_target("llama")
    before, told, asked = set(target.compiled), [], []
    monkeypatch.setattr(target, "tell", lambda line: told.append((line, ticks[0])))

    def measure(path) -> CostCurve:
        asked.append(path and path.graphs(target)[0])
        return CostCurve(SIZES, SECONDS if path is None else tuple(second / 4 for second in SECONDS))

    options = {"context_window": 3, "max_candidates": 2, "draft_length": 4, "length": "gain", "siblings": False}
    costs = Costs(measure, lambda path: (path.shape, path.graphs(target)))
    drafter = drafter_for(target, configured("swift", warm=warm, **options), costs)
    decoder = Decoder(target, Guard(drafter), Stopping(frozenset(), LENGTH))
    ticks = [0]
    for prompt, expected in zip(PROMPTS, it.expected, strict=True):
        assert decoder.decode(prompt).output == expected
        ticks[0] += 1
    new = [target.compiled[key] for key in target.compiled if key not in before]
    assert [at for _, at in told] == ([1] if warm else [])
    assert len(new) == warm and all(graph._bound for graph in new)
    assert [graph for graph in asked if graph in new] == new
    assert not warm or told[0][0] == "SWIFT's search has ended: compiling 4 layers that draft"


@pytest.mark.slow
def test_costs_are_those_of_the_engine_that_runs_a_path() -> None:
    """Of paths of one shape, one may be compiled; and one whose states are reused is compiled in two parts."""
    target = compiled_target("llama")
    costs = costs_on(target, CostCurve(SIZES, SECONDS))
    config = {"skip_attention": [2], "skip_mlp": [2], "siblings": False}
    eager = costs.of(sparse_path(target, SkipSet.of(4, [2], [2])))
    drafter = drafter_for(target, configured("layer_skip", reuse=True, bonus="auto", **config), costs)
    path = drafter.policy.typical
    assert path.skip == SkipSet.of(4, [2], [2]) and drafter._path is not eager
    whole, *halves = path.graphs(target)
    assert whole is None and all(half._bound for half in halves)


@pytest.mark.slow
def test_a_graph_keeps_the_layers_by_whose_identities_it_is_found() -> None:
    """Otherwise another path's layers might be given the identities of those that are gone, and run as its graph."""
    target = Target(tiny_model())
    compile_layers(target)
    drafter = made(target, LOSSLESS["layer_skip"][3])
    layers = [weakref.ref(layer) for layer in drafter.policy.typical.layers]
    assert len(target.compiled) == 2
    del drafter
    gc.collect()
    assert all(layer() is not None for layer in layers)
    assert all(key == tuple(map(id, graph.of)) for key, graph in target.compiled.items())


def test_a_path_that_cannot_be_compiled_stays_eager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, told = Target(tiny_model()), []
    compile_layers(target)
    target.tell = told.append
    monkeypatch.setattr(engines, "CompiledLayers", None)
    assert made(target, LOSSLESS["layer_skip"][0]).policy.typical.layers
    assert len(target.compiled) == 1
    assert "they run one by one" in told[-1]
    path = made(target, ADAPTED["layer_skip"].written(target, tmp_path)).policy.typical
    assert all(list(layer.parameters()) for layer in path.layers)  # no place is left to a graph that there is not
    assert len(target.compiled) == 1 and len(told) == 4  # the reason once for each
