"""Tables in narrow terminals: names stay whole, and the columns that are left out are named."""

import io

import pytest
from rich.console import Console

from selfdraft.tracking.display.fitted import Fitted
from selfdraft.tracking.display.table import board

COLUMNS = ("tokens/\nforward", "with\nprefill", "median by\nprompt", "exact")
NAME = "transformers_greedy"


def lines(width: int, less_needed: tuple[str, ...] = COLUMNS[1:3]) -> list[str]:
    table = board("contender", columns=COLUMNS)
    table.add_row(NAME, "1.25", "165.2", "0.79×", "4/0/0")
    console = Console(file=io.StringIO(), width=width)
    console.print(Fitted(table, less_needed))
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_a_wide_terminal_has_all_columns() -> None:
    assert lines(80)[-1].split() == [NAME, "1.25", "165.2", "0.79×", "4/0/0"]


@pytest.mark.parametrize(
    ("width", "row", "names"),
    [
        (55, [NAME, "1.25", "0.79×", "4/0/0"], "with prefill"),
        (46, [NAME, "1.25", "4/0/0"], "with prefill, median by prompt"),
    ],
)
def test_a_narrow_one_leaves_out_no_more_than_it_has_to(width: int, row: list[str], names: str) -> None:
    shown = lines(width)
    assert row in [line.split() for line in shown]
    assert " ".join(shown).endswith(f"(left out, because the terminal is narrow: {names})")


def test_a_heading_over_two_lines_is_named_without_a_gap() -> None:
    assert "narrow: tokens/forward)" in " ".join(lines(55, ("tokens/\nforward",)))
