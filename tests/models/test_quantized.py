"""Checkpoints that torchao or compressed-tensors quantized: the text of generate, or one clear line.

Both packages are no dependencies of ours; without them, these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

from made import made
from selfdraft.core.errors import UserError
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import configured
from selfdraft.models.engines.choice import use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import load_pretrained
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from subjects import stock_output

PROMPT, TOKENS = [5, 17, 3, 60, 42, 5, 17, 3], 10


def torchao_model(folder: Path) -> PreTrainedModel:
    """Return a tiny model with weights in 8 bits, read from a checkpoint of torchao."""
    quantization = pytest.importorskip("torchao.quantization")
    tiny_model().save_pretrained(folder / "plain")
    how = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    small = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=how, dtype=torch.float32)
    return reloaded(small, folder / "int8")


def compressed_model(folder: Path) -> PreTrainedModel:
    """Return one with weights in 8 bits, read from a checkpoint of compressed-tensors."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    model = tiny_model()
    bits = quantization.QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=bits)
    config = quantization.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.data.abs().amax(1, keepdim=True) / 127
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder / "packed")
    compressor.update_config(str(folder / "packed"))
    return reloaded(None, folder / "packed")


def reloaded(model: PreTrainedModel | None, folder: Path) -> PreTrainedModel:
    """Write a model, if one is given, and read the folder as a run does."""
    if model is not None:
        model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_pretrained(str(folder), "float32", torch.device("cpu")).model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return torchao_model(tmp_path_factory.mktemp("quantized"))


@pytest.mark.parametrize("name", ["none", "pool", "jacobi", "layer_skip", "early_exit", "sparse_kv"])
@pytest.mark.parametrize("make", [torchao_model, compressed_model])
def test_every_text_is_that_of_transformers(make: Callable[[Path], PreTrainedModel], name: str, tmp_path: Path) -> None:
    model = make(tmp_path)
    target = Target(model)
    decoder = Decoder(target, made(target, configured(name)), Stopping(frozenset(), TOKENS))
    output = decoder.decode(PROMPT).output
    assert output == stock_output(model, PROMPT, TOKENS)
    assert Certifier(target).by_stock(PROMPT, output).verdict == "exact"


def test_our_kernels_say_that_they_need_plain_matrices(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=r"model\.engine=native") as refused:
        use_engine(Target(model), "native")
    assert "\n" not in str(refused.value)
