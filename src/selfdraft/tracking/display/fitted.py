"""Tables that fit into a narrow terminal, because they leave out their less important columns there."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns: wider than any table, to measure how wide one would be


class Fitted:
    """A table that leaves out columns if the terminal is too narrow for all of them, and then says which.

    Without this, rich would cut the names in the first column into pieces of a few characters.
    """

    def __init__(self, table: Table, less_needed: Sequence[str]) -> None:
        """Take a table.

        Args:
            table: with all of its columns and rows.
            less_needed: headings of columns that may be left out, the first to go first.
        """
        self.table, self.less_needed = table, less_needed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, left_out = self.table, list[str]()
        for heading in self.less_needed:
            if Measurement.get(console, options.update(max_width=UNLIMITED), shown).maximum <= options.max_width:
                break
            left_out.append(heading)
            shown = copy(self.table)
            kept = [column for column in self.table.columns if column.header not in left_out]
            shown.columns = [replace(column, _index=place) for place, column in enumerate(kept)]
        yield shown
        if left_out:
            names = ", ".join(heading.replace("/\n", "/").replace("\n", " ") for heading in left_out)
            yield Text(f"(left out, because the terminal is narrow: {names})", "dim")
