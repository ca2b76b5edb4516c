"""A model whose layers are partly on a disk writes what it does in memory, with every kind of draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hybrids import hybrid
from made import made
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured
from selfdraft.models.families.dispatch import device_of, is_placed, weights_of
from selfdraft.models.forward.target import Target
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import LoadedModel, Placement, StockModel, load_pretrained
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.paths.sparse import sparse_path

CPU = torch.device("cpu")
DRAFTERS = ("none", "jacobi", "pool", "lookahead", "recycling", "layer_skip", "early_exit", "swift", "clasp",
            "dynamic_exit", "sparse_kv", "sparse_jacobi", "cascade")  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text", "gpt_neox"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(request.param, seed=0, vocab_size=len(tiny_tokenizer()), max_positions=4096)
    return saved(model, tmp_path_factory.mktemp("checkpoint") / request.param)


def saved(model: StockModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> LoadedModel:
    return load_pretrained(str(checkpoint), "float32", CPU)


@pytest.fixture(scope="module")
def placed(checkpoint: Path, plain: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return partly_on_disk(checkpoint, plain, tmp_path_factory.mktemp("offloaded"))


def partly_on_disk(checkpoint: Path, plain: LoadedModel, folder: Path) -> LoadedModel:
    size = sum(p.numel() * 4 for p in plain.model.parameters())
    placement = Placement("auto", (f"cpu:{size * 6 // 10}",), str(folder))
    return load_pretrained(str(checkpoint), "float32", CPU, placement=placement)


def answer(loaded: LoadedModel, name: str) -> tuple[list[int], int]:
    target = target_of(loaded.model, packed=False, attention="sdpa")
    decoder = Decoder(target, made(target, configured(name)), Stopping(frozenset(), 24))
    found = decoder.decode(tiny_tokenizer().encode("again and again and again"))
    return found.output, found.counts.target_forwards


def test_layers_are_in_both_places_and_the_model_is_the_same(plain: LoadedModel, placed: LoadedModel) -> None:
    assert {str(place) for place in placed.model.hf_device_map.values()} == {"cpu", "disk"}
    assert any(p.device.type == "meta" for p in placed.model.parameters())
    assert device_of(placed.model) == CPU and is_placed(placed.model) and not is_placed(plain.model)
    assert fingerprint(placed.model) == fingerprint(plain.model)
    expected = dict(plain.model.named_parameters())
    for name, weight in weights_of(placed.model):
        assert torch.equal(weight, expected.pop(name))
    assert not expected


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_answer_and_every_step_is_the_same(name: str, plain: LoadedModel, placed: LoadedModel) -> None:
    assert answer(placed, name) == answer(plain, name)


def test_what_a_path_leaves_out_is_left_out(plain: LoadedModel, placed: LoadedModel) -> None:
    logits = []
    for loaded in (plain, placed):
        target = Target(loaded.model, packed=False)
        target.allocate(1, 16)
        target.prefill(0, [1, 2, 3])
        for skip in (SkipSet(), SkipSet(frozenset({1, 2})), SkipSet(frozenset(), frozenset({2, 3}))):
            logits.append(target.draft_forward(sparse_path(target, skip), [0], 0, [4], [TokenTree.chain([5])])[0])
    assert all(torch.equal(*pair) for pair in zip(logits[:3], logits[3:], strict=True))
    assert not any(torch.allclose(logits[0], each) for each in logits[1:3])


def test_a_wrong_amount_gives_one_clear_line(checkpoint: Path) -> None:
    for entry in ("gpu0:1GiB", "cpu"):
        with pytest.raises(UserError, match=r"model.max_memory=.*e.g. 0:60GiB"):
            load_pretrained(str(checkpoint), "float32", CPU, placement=Placement("auto", (entry,)))
    with pytest.raises(UserError, match=r"."):
        load_pretrained(str(checkpoint), "float32", CPU, placement=Placement("auto", ("cpu:some",)))


def test_a_family_whose_layers_keep_a_state_writes_the_same(tmp_path: Path) -> None:
    folder = saved(hybrid("lfm2", len(tiny_tokenizer())), tmp_path / "lfm2")
    plain = load_pretrained(str(folder), "float32", CPU)
    placed = partly_on_disk(folder, plain, tmp_path / "offloaded")
    assert "disk" in map(str, placed.model.hf_device_map.values())
    for name in ("none", "suffix"):
        assert answer(placed, name) == answer(plain, name)
