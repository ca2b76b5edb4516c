"""The bytes that a forward reads, counted by hand for a tiny model, and the memory's bandwidth."""

import pytest
import torch

from selfdraft.models.engines.choice import COMPILED, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.weights import INT8
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.floor import bandwidth, coded_bytes, traffic


def by_hand(target: Target) -> tuple[int, int]:
    """Matrices' and other numbers of a tiny Llama's layers, final norm and head."""
    config = target.model.config
    wide, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    matrices = config.num_hidden_layers * (2 * wide * queries + 2 * wide * keys + 3 * wide * inner)
    return matrices + config.vocab_size * wide, config.num_hidden_layers * 2 * wide + wide


def test_bytes_are_those_of_the_weights_and_of_the_context_s_keys_and_values() -> None:
    target = Target(tiny_model("llama"))
    target.allocate(1, 32)
    target.prefill(0, list(range(1, 21)))
    config, read = target.model.config, traffic(target, 20)
    assert read.weights == 4 * sum(by_hand(target))
    assert read.cache == 4 * config.num_hidden_layers * 2 * 20 * config.num_key_value_heads * config.head_dim
    assert read.total == read.weights + read.cache


def test_a_graph_with_few_bits_reads_codes_and_scales() -> None:
    pytest.importorskip("openvino")
    target = Target(tiny_model("llama"))
    use_engine(target, COMPILED, weights=INT8)
    matrices, others = by_hand(target)
    assert traffic(target, 0).weights == matrices + 4 * matrices // 32 + 4 * others


def test_codes_of_four_bits_have_a_scale_and_a_zero_in_each_group() -> None:
    assert coded_bytes(torch.zeros(3, 64), 4) == 3 * 32 + 3 * 2 * 8
    assert coded_bytes(torch.zeros(64), 4) == coded_bytes(torch.zeros(2, 32)[:, :16], 8) * 2 == 256


def test_a_bandwidth_is_bytes_per_second() -> None:
    assert bandwidth(torch.device("cpu"), numbers=1000, rounds=2) > 0
