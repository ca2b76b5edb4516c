"""Converted graphs are kept across processes: found where they fit, never with weights of another time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lossless import LOSSLESS
from made import made
from selfdraft.core.tree import TokenTree
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.models.engines import graph, graph_cache
from selfdraft.models.engines import graph_key as graph_key_module
from selfdraft.models.engines.choice import compile_layers
from selfdraft.models.engines.graph import compiled
from selfdraft.models.engines.graph_cache import KeptGraph, graph_folder
from selfdraft.models.engines.graph_key import SMALL, Indescribable, graph_key
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

pytest.importorskip("openvino", reason="OpenVINO is not installed")
PROMPT = [5, 17, 3, 60, 42]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of graphs."""
    monkeypatch.setenv(graph_cache.PLACE, str(tmp_path / "graphs"))
    return tmp_path / "graphs"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every module that was traced; those read from the cache are not."""
    seen, converted = [], graph._converted

    def noted(module: nn.Module, *others: object) -> object:
        seen.append(type(module).__name__)
        return converted(module, *others)

    monkeypatch.setattr(graph, "_converted", noted)
    return seen


def small(family: str = "llama", **options: int) -> PreTrainedModel:
    return tiny_model(family, layers=1, **options)


def logits(target: Target) -> Tensor:
    """After a prompt, of a small tree."""
    target.allocate(1, 8)
    target.prefill(0, PROMPT)
    return target.forward([0], [5], [TokenTree.merged([[1, 2], [3]])])[0]


def compiled_target(model: PreTrainedModel) -> Target:
    target = Target(model)
    compile_layers(target)
    return target


def assert_right(model: PreTrainedModel) -> None:
    """The graphs of a new target compute what its eager layers do."""
    torch.testing.assert_close(logits(compiled_target(model)), logits(Target(model)), rtol=1e-4, atol=1e-4)


def text(target: Target) -> list[int]:
    return Decoder(target, made(target, LOSSLESS["none"][0]), Stopping(frozenset(), 12)).decode(PROMPT).output


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_second_target_reads_what_the_first_one_kept(family: str, folder: Path, traces: list[str]) -> None:
    model = small(family)
    first = text(compiled_target(model))
    assert len(traces) == 2 and len(list(folder.iterdir())) == 2  # the layers and the head
    assert text(compiled_target(model)) == first
    assert len(traces) == 2
    assert_right(model)
    assert all(len(file.read_bytes()) < 30_000 for file in folder.iterdir())  # no weights


def test_other_weights_of_the_same_shapes_are_the_live_ones(folder: Path, traces: list[str]) -> None:
    assert_right(small(seed=1))
    count = len(traces)
    assert_right(small(seed=2))
    model = small(seed=3)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(-3)
    assert_right(model)
    assert len(traces) == count == 2


def with_another_constant() -> PreTrainedModel:
    model = small()
    model.model.layers[0].self_attn.scaling *= 2
    return model


def with_a_shared_matrix() -> PreTrainedModel:
    model = small()
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    return model


def key(model: PreTrainedModel) -> str:
    return graph_key(model.model.layers, [torch.zeros(2, 3)], [[-1, 3]])


@pytest.mark.parametrize(
    "other",
    [
        lambda: small(rms_norm_eps=0.3),
        lambda: small(hidden_act="gelu"),
        lambda: small(kv_heads=1),
        lambda: small(dtype=torch.bfloat16),
        lambda: small("qwen3"),
        with_another_constant,
        with_a_shared_matrix,
    ],
    ids=["a norm's constant", "activation", "shapes", "dtype", "family", "a layer's own constant", "shared matrices"],
)
def test_what_a_graph_depends_on_changes_its_key(other: Callable[[], PreTrainedModel]) -> None:
    assert key(small(seed=1)) == key(small(seed=2)) != key(other())


def test_another_configuration_is_traced(folder: Path, traces: list[str]) -> None:
    compile_layers(Target(small()))
    assert_right(small(rms_norm_eps=0.3))
    assert traces.count("_Layers") == 2


def test_code_that_has_changed_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before, model = key(small()), small()
    monkeypatch.setattr(graph_key_module, "_code", lambda module: "another digest")
    assert key(model) != before


def test_matrices_that_are_shared_no_more_are_traced_anew(folder: Path) -> None:
    """The graph of shared ones names one of them twice."""
    compile_layers(Target(with_a_shared_matrix()))
    assert_right(small(seed=4))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


def of_another_module(file: Path) -> None:
    """Whole, but of a module with other outputs."""
    with torch.inference_mode():
        compiled(nn.Linear(8, 4), [torch.zeros(2, 8)], [[-1, 8]])
    (other,) = (each for each in file.parent.iterdir() if each != file)
    other.replace(file)


@pytest.mark.parametrize("damage", [cut, flip, of_another_module, lambda file: file.write_bytes(b"")])
def test_a_file_of_no_use_is_replaced(damage: Callable[[Path], None], folder: Path, traces: list[str]) -> None:
    module = nn.Linear(8, 8)
    compiled_linear(module)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    damage(file)
    traces.clear()
    for _ in range(2):
        x = torch.randn(3, 8)
        request = compiled_linear(module)
        request.infer([x.numpy()])
        torch.testing.assert_close(torch.from_numpy(request.get_output_tensor(0).data), module(x).detach())
    assert len(traces) == 1 and len(file.read_bytes()) > len(whole) / 2


def test_a_kept_graph_that_computes_something_else_is_found_out(
    folder: Path, traces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of patched functions, which no key knows of."""
    monkeypatch.setattr("selfdraft.models.engines.graph_cache.graph_key", lambda module, *_: type(module).__name__)
    compile_layers(Target(with_another_constant()))
    assert_right(small())
    assert traces == ["_Layers", "Linear", "_Layers"]


@pytest.mark.parametrize("place", ["a file/graphs", "", "/proc/none"])
def test_without_a_folder_graphs_are_traced(
    place: str, tmp_path: Path, traces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(graph_cache.PLACE, place)
    for _ in range(2):
        compiled_linear(nn.Linear(8, 8))
    assert traces == ["Linear", "Linear"]
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


def compiled_linear(module: nn.Module) -> Any:
    with torch.inference_mode():
        return compiled(module, [torch.zeros(2, 8)], [[-1, 8]])


def test_graphs_lie_in_the_cache_unless_another_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(tmp_path))
    monkeypatch.delenv(graph_cache.PLACE)
    assert graph_folder() == tmp_path / "graphs"


class Derived(nn.Module):
    """Computes a constant from its weight while it is traced: of at most `SMALL` bytes or of more."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.tensor(self.linear.weight.sum(1).tolist())


class Scaled(nn.Module):
    """Has a weight that is so small that it may be written into the graph."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.item()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_values_that_were_computed_from_weights_are_never_out_of_date(folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in (*map(Derived, (4, 4, 2 * SMALL, 2 * SMALL)), Scaled(2.0), Scaled(3.0), Scaled(2.0)):
            x = torch.randn(3, 8)
            request = compiled_linear(module)
            request.infer([x.numpy()])
            torch.testing.assert_close(torch.from_numpy(request.get_output_tensor(0).data), module(x).detach())


def test_what_a_key_cannot_describe_is_not_kept(folder: Path, traces: list[str]) -> None:
    hooked, odd = nn.Linear(8, 8), nn.Linear(8, 8)
    hooked.register_forward_hook(lambda module, given, out: out * 2)
    odd.something = object()
    for module in (hooked, odd):
        with pytest.raises(Indescribable):
            graph_key(module, [torch.zeros(2, 8)], [[-1, 8]])
        for _ in range(2):
            compiled_linear(module)
    assert len(traces) == 4 and not folder.exists()


def test_only_the_newest_files_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "KEPT", 2)
    for width in (1, 2, 3):
        with torch.inference_mode():
            compiled(nn.Linear(8, width), [torch.zeros(2, 8)], [[-1, 8]])
        os.utime(max(folder.iterdir(), key=lambda file: file.stat().st_mtime), (width, width))
    assert sorted(int(file.stat().st_mtime) for file in folder.iterdir()) == [2, 3]


def test_a_graph_that_cannot_be_kept_is_compiled(
    folder: Path, traces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: KeptGraph, model: object) -> object:
        raise RuntimeError

    monkeypatch.setattr(KeptGraph, "_filled", broken)
    compiled_linear(nn.Linear(8, 8)).infer([torch.zeros(2, 8).numpy()])
    assert traces == ["Linear", "Linear"]
