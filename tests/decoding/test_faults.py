"""Faults planted in the verification: the certificate finds every one, without a reference text.

Most of them act on the autoregressive baseline and on drafts alike: compared with one another, both texts are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import faults
from faults import EVERYWHERE, IN_DRAFTS, Fault
from made import made
from selfdraft.core.certificate import Certificate
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.models.families.rotary import Rotary
from selfdraft.models.forward import target as target_module
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model

PROMPT = [64, 12, 9, 64, 12, 31, 64, 12, 9, 64, 12, 31, 64, 12]  # repetitions for lookups to find
LENGTH = 28
DTYPES = (torch.float32, torch.bfloat16)
CONFIGS = {"none": DrafterConfig(), "pool": PoolConfig(costs="flat", max_nodes=12, min_probability=0.0)}


def named(fault: Fault) -> str:
    return fault.__name__


@cache
def target(dtype: torch.dtype, family: str = "llama") -> Target:
    return Target(tiny_model(family, dtype=dtype))


def decoder(target: Target, config: DrafterConfig, batch_size: int = 1) -> Decoder:
    drafter = made(target, config)
    return Decoder(target, drafter, Stopping(frozenset(), LENGTH), batch_size=batch_size)


def certified(target: Target, config: DrafterConfig) -> Certificate:
    """The certificate of a drafter's text, by our own baseline, as an evaluation makes it."""
    output, baseline = (decoder(target, c).decode(PROMPT).output for c in (config, DrafterConfig()))
    return Certifier(target).certify(PROMPT, output, baseline)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_without_a_fault_the_certificate_is_clean(name: str, dtype: torch.dtype) -> None:
    certificate = certified(target(dtype), CONFIGS[name])
    assert certificate.verdict in ("exact", "tie") and certificate.reason is None
    assert 0 < certificate.distance < certificate.ceiling
    if dtype == torch.float32:
        assert certificate.verdict == "exact" and certificate.ceiling < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fault", [*EVERYWHERE, *IN_DRAFTS], ids=named)
def test_every_fault_is_found(fault: Fault, name: str, dtype: torch.dtype) -> None:
    subject = target(dtype)
    with fault(subject):
        certificate = certified(subject, CONFIGS[name])
    assert certificate.verdict == "mismatch" and certificate.reason in ("forward", "control", "stock")


def test_no_fault_outlives_its_context() -> None:
    subject = target(torch.float32)
    for fault in (*EVERYWHERE, *IN_DRAFTS):
        with fault(subject):
            pass
    assert certified(subject, CONFIGS["pool"]).verdict == "exact"


@pytest.mark.parametrize("fault", EVERYWHERE[::3], ids=named)
def test_comparing_with_our_own_baseline_misses_the_fault(fault: Fault) -> None:
    """What the tests above would be worth if the stock forward had no part in them."""
    subject = target(torch.float32)
    with fault(subject):
        first, second = (decoder(subject, DrafterConfig()).decode(PROMPT).output for _ in range(2))
        assert first == second
        assert Certifier(subject).compare(PROMPT, first, second).verdict == "exact"
        assert Certifier(subject).certify(PROMPT, first, second).verdict == "mismatch"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fault_in_batches_changes_the_text(dtype: torch.dtype) -> None:
    """Our forwards of one row are right: the stock model alone says that the second row's tokens are not its choice."""
    subject = target(dtype)
    requests = [Request(PROMPT, key=0), Request([5, 17, 3, 60, 42], key=1)]
    with faults.neighbours_row(subject):
        _, wrong = decoder(subject, DrafterConfig(), batch_size=2).answer(requests)
        certificate = Certifier(subject, batch_size=2).certify(wrong.prompt, wrong.output, wrong.output)
    assert (certificate.verdict, certificate.reason) == ("mismatch", "stock")
    _, right = decoder(subject, DrafterConfig(), batch_size=2).answer(requests)
    assert Certifier(subject, batch_size=2).certify(right.prompt, right.output, right.output).verdict == "exact"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(
    "fault", [faults.wrong_rotary, faults.stale_key, faults.siblings_seen], ids=lambda f: f.__name__
)
def test_faults_are_found_in_other_families(fault: Fault, family: str) -> None:
    subject = target(torch.bfloat16, family)
    assert certified(subject, CONFIGS["pool"]).verdict != "mismatch"
    with fault(subject):
        assert certified(subject, CONFIGS["pool"]).verdict == "mismatch"


# Rotary positions that depend on the length of the text, as they were once treated: the table of a whole block was that
# of its furthest token, and keys of before stayed. What one forward says of such a text is not what `generate` does.
LIMIT = 24
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": LIMIT,
    "factor": 4.0,
}
LONG = {
    "phi3": lambda: tiny_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=LIMIT),
    "llama": lambda: tiny_model("llama", rope_parameters=LONGROPE),
    "dynamic": lambda: tiny_model(
        "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}, max_positions=LIMIT
    ),
}


@contextmanager
def table_of_the_block(target: Target) -> Iterator[None]:
    right, own = Rotary.__call__, target.rotary

    def by_block(self: Rotary, hidden: Tensor, positions: Tensor, kind: str, _: Tensor | None = None):
        return right(self, hidden, positions, kind)

    with patch.object(Rotary, "__call__", by_block), patch.object(own, "recomputed_past", None):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 2], ids=["crossed while decoding", "crossed by the prompt"])
@pytest.mark.parametrize("name", LONG)
def test_a_table_of_the_wrong_length_is_found(name: str, prompt: list[int]) -> None:
    with patch.object(target_module, "PREFILL_CHUNK", 16):
        subject = Target(LONG[name]())
        stopping = Stopping(frozenset(), LENGTH, past_positions=True)
        for config in CONFIGS.values():
            drafter = Decoder(subject, made(subject, config), stopping)
            right = drafter.decode(prompt).output
            certificate = Certifier(subject).certify(prompt, right, right)
            assert (certificate.verdict, certificate.reason) == ("exact", None)
            with table_of_the_block(subject):
                wrong = drafter.decode(prompt).output
                assert Certifier(subject).certify(prompt, wrong, wrong).verdict == "mismatch"
