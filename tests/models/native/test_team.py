"""Threads of the C++ that stay between calls: the same products in all calls, also at once, asleep and in a fork."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from selfdraft.models.kernels.native import build
from selfdraft.models.kernels.native.layers import NativeProduct
from selfdraft.models.kernels.native.stored import stored

pytestmark = pytest.mark.skipif(not build.has_compiler(), reason="there is no C++ compiler")
ASLEEP_S = 0.05  # helpers wait for two milliseconds before they sleep


@pytest.fixture(scope="module")
def given() -> tuple[Tensor, Tensor]:
    """A matrix and states."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(400, 64, generator=random), torch.randn(3, 64, generator=random)


def by(threads: int, given: tuple[Tensor, Tensor]) -> Tensor:
    """The product, by so many threads."""
    matrix, states = given
    return NativeProduct(stored(matrix), threads)(states)


def test_calls_with_changing_numbers_of_threads(given: tuple[Tensor, Tensor]) -> None:
    alone = by(1, given)
    for threads in [4, 2, 3, 1, 2, 4] * 30:
        assert torch.equal(by(threads, given), alone)


def test_helpers_that_sleep_are_woken(given: tuple[Tensor, Tensor]) -> None:
    for _ in range(5):
        assert torch.equal(by(3, given), by(1, given))
        time.sleep(ASLEEP_S)


def test_calls_at_the_same_time(given: tuple[Tensor, Tensor]) -> None:
    alone = by(1, given)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, alone) for out in pool.map(lambda _: by(2, given), range(200)))


def test_a_forked_process_has_helpers_of_its_own(given: tuple[Tensor, Tensor]) -> None:
    alone, product = by(1, given), NativeProduct(stored(given[0]), 2)
    assert torch.equal(product(given[1]), alone)  # the helpers of this process exist now
    child = os.fork()
    if not child:
        right = all(torch.equal(product(given[1]), alone) for _ in range(20))
        os._exit(0 if right else 1)
    for _ in range(500):  # a child that waits for its parent's threads would wait forever
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.02)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process did not end")
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(product(given[1]), alone)
