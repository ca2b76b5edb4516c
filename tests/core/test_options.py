"""Options: ranges are declared with their defaults, and a value outside gives one clear line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, option


@dataclass
class Some(Options):
    config_group: ClassVar[str] = "drafter"
    window: int = option(8, at_least=1, help="…")
    share: float = option(0.2, at_least=0.0, below=1.0, help="…")
    sure: float = option(0.0, at_least=0.0, at_most=1.0, help="…")
    mode: str = option("fused", choices=("fused", "literal"), help="…")
    skip: list[int] | None = option(None, at_least=0, help="…")
    some: list[int] = option([1, 2], at_least=0, at_most=9, help="…")
    free: str = "anything"


@dataclass
class Unlimited(Options):
    config_group: ClassVar[str] = "drafter"
    free: int = 0
    share: float = 0.0


@dataclass
class Ungrouped(Options):
    size: int = option(1, at_least=1, help="…")


def test_a_value_outside_a_limit_names_option_value_and_range() -> None:
    for given, message in [
        ({"window": 0}, "drafter.window=0: must be at least 1"),
        ({"share": -0.1}, "drafter.share=-0.1: must be at least 0.0"),
        ({"share": 1.0}, "drafter.share=1.0: must be below 1.0"),
        ({"sure": 1.5}, "drafter.sure=1.5: must be at most 1.0"),
        ({"mode": "fast"}, "drafter.mode=fast: choose one of fused, literal"),
        ({"skip": [3, -1]}, "drafter.skip=-1: must be at least 0"),
        ({"skip": (3, -1)}, "drafter.skip=-1: must be at least 0"),
        ({"some": [1, 10]}, "drafter.some=10: must be at most 9"),
    ]:
        with naming(given, message):
            with pytest.raises(UserError) as caught:
                Some(**given)
            assert str(caught.value) == message


def test_bounds_and_missing_values_are_accepted() -> None:
    for given in [
        {},
        {"window": 1},
        {"share": 0.0},
        {"share": 0.999},
        {"sure": 0.0},
        {"sure": 1.0},
        {"mode": "literal"},
        {"skip": None},
        {"skip": []},
        {"skip": [0]},
        {"free": ""},
    ]:
        with naming(given):
            made = Some(**given)
            assert all(getattr(made, name) == value for name, value in given.items())


@pytest.mark.parametrize("name", ["share", "sure"])
def test_nan_is_outside_every_range(name: str) -> None:
    # `drafter.sparsity=nan` is a float to Hydra, and every comparison with it is false.
    with pytest.raises(UserError, match=f"drafter.{name}=nan"):
        Some(**{name: float("nan")})


def test_without_a_group_only_the_option_is_named() -> None:
    with pytest.raises(UserError, match=r"^size=0: must be at least 1$"):
        Ungrouped(size=0)


def test_default_lists_are_not_shared() -> None:
    first, second = Some(), Some()
    first.some.append(3)
    assert second.some == [1, 2]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**5000], ids=["one more", "one less", "5,000 digits"])
def test_integers_beyond_int64_are_refused(value: int) -> None:
    with pytest.raises(UserError, match=r"^drafter\.free: must be an integer of at most 64 bits$"):
        Unlimited(free=value)
    assert Unlimited(free=2**63 - 1).free == 2**63 - 1


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinite_numbers_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"drafter\.share=.*: must be finite"):
        Unlimited(share=value)
