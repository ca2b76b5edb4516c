"""Which drafters are predicted, and what is predicted of paths on texts of a tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lossless import LOSSLESS
from made import costs_for, measure_once
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.none import NoDrafter
from selfdraft.drafters.specs import Spec, spec_of
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.modules.first_turns import Asked
from selfdraft.modules.forecast import Forecaster, is_exact, is_replayable
from selfdraft.modules.path_forecast import is_traceable, sizes_of
from stub_target import StubTarget, cycle

PROMPTS = [Asked("a", "x", [5, 17, 3, 60, 42]), Asked("b", "y", [62, 12, 62, 12])]


@pytest.fixture(scope="module", autouse=True)
def quick_costs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_once(patch)
        yield


def plain(target, length: int = 24) -> Decoder:
    drafter = NoDrafter(target, DrafterConfig(), costs_for(target))
    return Decoder(target, drafter, Stopping(frozenset(), length), rule=NextToken())


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)  # sublayers add little: sparse drafts are right now and then
    return Forecaster(plain(Target(model)), PROMPTS)


def test_what_is_predicted_runs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    target = StubTarget(cycle(5))
    forecaster = Forecaster(plain(target), PROMPTS, tell=told.append)
    assert told == [1, 2] and [list(r.prompt) for r in forecaster.recordings] == [p.ids for p in PROMPTS]
    monkeypatch.delattr(StubTarget, "forward")
    monkeypatch.delattr(StubTarget, "draft_forward")
    kinds: dict[str, set[bool]] = {}
    for name, configs in LOSSLESS.items():
        for config in configs:
            spec = Spec(config)
            kinds.setdefault(name, set()).add(is_replayable(spec) or is_traceable(spec))
            if is_replayable(spec):
                found = forecaster.of(name, spec)
                assert found is not None and found.speedup > 0 and found.tokens_per_forward >= 1
    for name in ("prompt_lookup", "suffix", "recycling", "lookahead"):
        assert kinds[name] == {True}
    for name in ("swift", "clasp", "dynamic_exit", "sparse_kv", "pseudo_tokens", "cascade", "sparse_jacobi"):
        assert kinds[name] == {False}
    assert kinds["jacobi"] == {True, False}  # literal mode refines by forwards


def test_a_drafter_that_is_always_right_is_predicted_to_be_fast() -> None:
    forecaster = Forecaster(plain(StubTarget(cycle(5))), PROMPTS)
    found = forecaster.of("suffix costs=flat", spec_of("suffix costs=flat"))
    assert found is not None and found.exact and found.tokens_per_forward > 2


def test_which_replays_are_exact() -> None:
    for name, exact in {
        "suffix": True,
        "prompt_lookup": True,
        "pool sources=[suffix]": True,
        "pool": False,
        "jacobi": False,
        "recycling": False,
        "lookahead": False,
    }.items():
        assert is_exact(spec_of(name)) == exact and is_replayable(spec_of(name))


def test_only_plain_chains_on_lasting_paths_are_traced() -> None:
    for name, traced in {
        "layer_skip": True,
        "early_exit": True,
        "width_skip": True,
        "low_bit": True,
        "swift": False,
        "layer_skip siblings=true": False,
        "layer_skip length=gain": False,
        "guarded layer_skip": False,
        "cascade": False,
        "pool": False,
    }.items():
        assert is_traceable(spec_of(name)) == traced, name


def test_sizes_that_are_not_given_are_chosen() -> None:
    def sizes(name: str, layers: int = 30) -> list[str]:
        return [size.removeprefix(f"{name} ") for size in sizes_of(name, spec_of(name), layers)]

    assert sizes("layer_skip") == ["sparsity=0.1", "sparsity=0.25", "sparsity=0.5"]
    assert sizes("early_exit") == ["exit_layer=15", "exit_layer=24"]
    assert sizes("early_exit", 2) == ["exit_layer=1"]
    assert sizes("width_skip draft_length=3") == ["ratio=0.75", "ratio=0.5"]
    for name in ("layer_skip sparsity=0.3", "layer_skip skip_mlp=[1]", "early_exit exit_layer=7", "low_bit bits=8"):
        assert sizes_of(name, spec_of(name), 30) == [name]


def test_the_best_way_to_draft_with_a_path_is_named(forecaster: Forecaster) -> None:
    whole = "layer_skip sparsity=0.0 draft_length=3 min_confidence=0.0"
    found = forecaster.of(whole, spec_of(whole))
    assert found is not None and found.name == whole
    assert found.tokens_per_forward == 4  # all layers draft: always right
    assert found.speedup <= 1.1  # it costs as much as it gains
    sparse = forecaster.of("layer_skip", spec_of("layer_skip"))
    assert sparse is not None and " sparsity=" in sparse.name and " draft_length=" in sparse.name
    given = forecaster.of("early_exit draft_length=3", spec_of("early_exit draft_length=3"))
    assert given is not None and given.name.split()[2].startswith("exit_layer=")
    assert given.name.count("draft_length=") == 1 and spec_of(given.name).config.draft_length == 3
    width = forecaster.of("width_skip", spec_of("width_skip"))
    assert width is not None and width.name.startswith("width_skip ratio=")


def test_a_path_that_does_not_fit_the_model_is_refused(forecaster: Forecaster) -> None:
    with pytest.raises(UserError, match="this model has 4 layers"):
        forecaster.of("early_exit exit_layer=9", spec_of("early_exit exit_layer=9"))
    with pytest.raises(UserError, match="pay only where layers are compiled"):
        forecaster.of("low_bit", spec_of("low_bit"))
