"""Families whose layers keep a state: verified as chains, with checkpoints, and lossless."""

from __future__ import annotations

import copy

import pytest
import torch

from hybrids import HYBRIDS, hybrid
from made import made
from selfdraft.core.errors import Unsupported, UserError
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.custom_generate import Drafting
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.engines.choice import use_engine
from selfdraft.models.families.chunks import chunked_layers, chunks_for
from selfdraft.models.families.state_cache import Row, checkpoint_bytes, keeps_state
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.stateful import MOST_OWED, StatefulTarget
from selfdraft.models.forward.targets import refuse_undrivable, target_of
from selfdraft.models.loading.small import small_model
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.measuring.memory import needed
from subjects import LENGTH, PROMPTS, stock_output

CPU = torch.device("cpu")
DRAFTERS: list[DrafterConfig] = [
    configured("none"),
    configured("prompt_lookup", costs="flat"),
    configured("suffix", costs="flat", max_nodes=12, branches=2, min_probability=0.0),
    configured("recycling", nodes=12),
    configured("pool", costs="flat", max_nodes=12),
    configured("jacobi", costs="flat", window=4),
    configured("jacobi", mode="literal", window=3, refine_steps=2),
    configured("chain", path="full", draft_length=3),
]

PARTS = ("layer_skip", "early_exit", "swift", "width_skip", "low_bit", "clasp", "sparse_kv", "dynamic_exit", "cascade")


@pytest.fixture(scope="module", params=HYBRIDS)
def target(request: pytest.FixtureRequest) -> StatefulTarget:
    return StatefulTarget(hybrid(request.param))


def texts(target: StatefulTarget, config: DrafterConfig, rows: int = 1) -> list[list[int]]:
    decoder = Decoder(target, made(target, config), Stopping(frozenset(), LENGTH), batch_size=rows)
    return [list(each.output) for each in decoder.answer([Request(prompt) for prompt in PROMPTS])]


def expected(target: StatefulTarget) -> list[list[int]]:
    return [stock_output(target.model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("config", DRAFTERS, ids=lambda config: config.label)
def test_every_text_is_that_of_transformers(target: StatefulTarget, config: DrafterConfig) -> None:
    assert texts(target, config) == expected(target)


def test_rows_of_a_batch_keep_their_own_states(target: StatefulTarget) -> None:
    assert texts(target, configured("pool", costs="flat", max_nodes=12), rows=3) == expected(target)


def test_logits_after_partly_accepted_drafts_are_those_of_the_whole_text(target: StatefulTarget) -> None:
    """Drafts of which none, some or all tokens are accepted, until many tokens are owed."""
    text = torch.randint(96, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        stock = target.model(torch.tensor([text]), use_cache=False).logits[0]
    target.allocate(2, 0)
    target.prefill(1, text[:1])
    at, replays = 1, target.replays
    for step in range(60):
        right = step % 4
        if at + right + 1 > len(text):
            break
        chain = [*text[at + 1 : at + 1 + right], 5, 6]
        (logits,) = target.forward([1], [text[at]], [TokenTree.chain(chain)])
        torch.testing.assert_close(logits[: right + 1], stock[at : at + 1 + right], atol=2e-3, rtol=2e-3)
        target.commit(1, range(right))
        at += right + 1
        assert target.cache.lengths[:2] == [0, at]
        assert at - target.cache.held[1].covered <= MOST_OWED + 4
    assert (target.replays > replays) is (target.model.config.model_type != "lfm2")
    target.cache.move(1, 0)
    assert target.cache.lengths[:2] == [at, 0]


def test_a_draft_forward_leaves_no_trace(target: StatefulTarget) -> None:
    target.allocate(1, 0)
    target.prefill(0, [3, 1, 4, 1, 5])
    (before,) = target.draft_forward(target.full, [0], 0, [9], [TokenTree.chain([2, 6])])
    target.draft_forward(target.full, [0], 0, [7], [TokenTree.empty()])
    (again,) = target.draft_forward(target.full, [0], 1, [8], [TokenTree.empty()])
    (once,) = target.draft_forward(target.full, [0], 0, [7], [TokenTree.chain([8])])
    torch.testing.assert_close(again[0], once[1], atol=1e-4, rtol=1e-4)
    (after,) = target.forward([0], [9], [TokenTree.chain([2, 6])])
    torch.testing.assert_close(before, after)


def test_certificates_are_exact(target: StatefulTarget) -> None:
    texts_of = texts(target, configured("pool", costs="flat"))
    found = Certifier(target).certify(PROMPTS[3], texts_of[3], texts_of[3])  # type: ignore[arg-type]
    assert found.verdict == "exact"


def test_trees_and_parts_of_the_model_are_refused_by_name(target: StatefulTarget) -> None:
    family = target.model.config.model_type
    target.allocate(1, 0)
    target.prefill(0, [1, 2])
    tree = TokenTree(torch.tensor([1, 2]), torch.tensor([-1, -1]), torch.ones(2, dtype=torch.bool))
    with pytest.raises(Unsupported, match=f"'{family}' keeps a state in its layers, so it verifies chains only"):
        target.forward([0], [3], [tree])
    for name in (*PARTS, "pseudo_tokens", "fused_jacobi"):
        with pytest.raises(Unsupported, match=f"'{family}' keeps a state in its layers, so it is run as a whole"):
            texts(target, configured(name))
    with pytest.raises(Unsupported):
        layered(target)
    for engine in ("native", "compiled"):
        with pytest.raises(Unsupported, match=f"model.engine={engine}: "):
            use_engine(target, engine)  # type: ignore[arg-type]
    assert use_engine(target, "auto").startswith("eager: a model that keeps a state in its layers")  # type: ignore[arg-type]


def test_generate_takes_them(target: StatefulTarget) -> None:
    model = target.model
    ids = torch.tensor([PROMPTS[3]])
    drafting = Drafting("pool", costs="flat")
    out = model.generate(ids, custom_generate=drafting, max_new_tokens=LENGTH, do_sample=False)
    assert drafting.last is not None and drafting._current(model) is not None
    assert out[0, ids.shape[1] :].tolist() == stock_output(model, PROMPTS[3])


def test_a_checkpoint_copies_the_states_only(target: StatefulTarget) -> None:
    target.allocate(1, 0)
    target.prefill(0, list(range(20)))
    few = checkpoint_bytes(target.cache.held[0])
    target.prefill(0, list(range(40)))
    assert checkpoint_bytes(target.cache.held[0]) == few > 0


def test_which_models_keep_a_state() -> None:
    assert all(keeps_state(hybrid(family).config) for family in HYBRIDS)
    assert not any(keeps_state(tiny_model(family).config) for family in FAMILIES)
    assert not keeps_state(None)
    assert isinstance(target_of(hybrid("lfm2")), StatefulTarget)
    refuse_undrivable(hybrid("falcon_h1"))
    with pytest.raises(Unsupported, match=r"^model\.attention=eager"):
        target_of(hybrid("lfm2"), attention="eager")


@pytest.mark.parametrize("family", HYBRIDS)
def test_memory_is_estimated(family: str) -> None:
    need = needed(hybrid(family), torch.float32, CPU, rows=1, packed=True, compiled=True, new_tokens=8, certify=False)
    assert need.weights > 0 and need.compiled == 0


def test_a_forward_that_differs_after_a_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hybrid("qwen3_next")
    monkeypatch.setattr(Row, "undo", lambda *_: None)
    with pytest.raises(UserError, match=r"'qwen3_next' .* goes on from a text one token at a time only"):
        StatefulTarget(model)


def test_a_hook_takes_effect_because_the_model_runs_as_a_whole() -> None:
    model = copy.deepcopy(hybrid("lfm2"))
    model.model.layers[1].register_forward_hook(lambda layer, given, out: out * 0.5)
    changed = StatefulTarget(model)
    found = texts(changed, configured("pool", costs="flat"))
    assert found == expected(changed) != expected(StatefulTarget(hybrid("lfm2")))


def test_a_family_that_takes_up_a_text_token_by_token_only_is_refused() -> None:
    with pytest.raises(UserError, match=r"'mamba' .* goes on from a text one token at a time only") as refused:
        target_of(hybrid("mamba"))
    assert "\n" not in str(refused.value)


def test_short_forwards_take_short_chunks_and_leave_the_model_as_it_was() -> None:
    """A chunk of 256 tokens takes as long for a draft of 3; a chunk of the draft's length computes the same."""
    model = small_model("falcon_h1")
    layers = chunked_layers(model)
    assert layers
    for layer in layers:
        layer.chunk_size = 64
    target = StatefulTarget(model, packed=False)
    seen: list[int] = []
    hooks = [each.register_forward_pre_hook(lambda layer, *_: seen.append(layer.chunk_size)) for each in layers]
    target.allocate(1, 0)
    target.prefill(0, list(range(1, 41)))
    (logits,) = target.forward([0], [7], [TokenTree.chain([1, 2])])
    for hook in hooks:
        hook.remove()
    assert seen == [64] * len(layers) + [8] * len(layers)
    assert {layer.chunk_size for layer in layers} == {64}
    expected = model(torch.tensor([[*range(1, 41), 7, 1, 2]])).logits[0, -3:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ZeroDivisionError), chunks_for(layers, 3):
        assert {layer.chunk_size for layer in layers} == {8}
        _ = 1 / 0
    assert {layer.chunk_size for layer in layers} == {64}
