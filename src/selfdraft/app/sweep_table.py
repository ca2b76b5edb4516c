"""The table of a sweep: one row a job, kept in `sweep.csv` from the first job on and printed at the end.

pandas and rich's tables are imported where they are used: every run imports the launcher, and few of them are sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.tracking.atomic import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

# Column -> where the number stands in result.json.
METRICS: dict[str, tuple[str, ...]] = {
    "objective": ("objective",),
    "speedup": ("speedup", "median"),
    "speedup_low": ("speedup", "low"),
    "speedup_high": ("speedup", "high"),
    "tokens_per_forward": ("tokens_per_forward",),
    "decode_tokens_per_s": ("decode_tokens_per_s",),
    "baseline_tokens_per_s": ("baseline_tokens_per_s",),
    "exact": ("lossless", "exact"),
    "tie": ("lossless", "tie"),
    "mismatch": ("lossless", "mismatch"),
}
COUNTS = ("exact", "tie", "mismatch")


class SweepTable:
    """Rows by job number; `sweep.csv` is written anew at every change, so a kill loses nothing that was finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csv = folder / "sweep.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        self.keys: dict[str, None] = {}  # the overridden keys, in the order in which the user wrote them

    def add(self, number: int, overrides: Sequence[str], job_dir: str) -> None:
        """Announce a job, so that the table also tells what is still to come."""
        # What UTF-8 has no bytes for, half a character, is written as an escape: in the file, and in pandas' texts.
        texts = (override.encode("utf-8", "backslashreplace").decode() for override in overrides)
        settings = dict(map(split_override, texts))
        self.keys.update(dict.fromkeys(settings))
        self.rows[number] = {"job": number, **settings, "status": "pending", "job_dir": job_dir}

    def finish(self, number: int, status: str, result: Mapping[str, Any] | None = None) -> None:
        """Enter how a job ended and what it measured, and save."""
        self.rows[number] |= {"status": status, **{column: dig(result, path) for column, path in METRICS.items()}}
        write_text_atomic(self.csv, self.frame().to_csv(index=False))

    def frame(self) -> pd.DataFrame:
        """All jobs, best objective first (the objective is maximised), and those without a good end last."""
        import pandas as pd

        table = pd.DataFrame(self.rows.values(), columns=["job", *self.keys, "status", *METRICS, "job_dir"])
        table[list(METRICS)] = table[list(METRICS)].apply(pd.to_numeric, errors="coerce")
        table[list(COUNTS)] = table[list(COUNTS)].astype("Int64")  # 24 prompts, not 24.0, though some jobs have none
        # A job that failed may have measured a fine speedup, with a mismatch: that must not come out on top.
        ranked = table.assign(completed=table["status"] == "completed").sort_values(
            ["completed", "objective", "speedup", "job"], ascending=[False, False, False, True], na_position="last"
        )
        return ranked.drop(columns="completed")

    def show(self) -> None:
        """Print the table to the terminal: the keys that vary as columns, the ones that do not in the title."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from selfdraft.app.console import make_console

        frame = self.frame()
        varying = [key for key in self.keys if frame[key].nunique(dropna=False) > 1]
        fixed = " ".join(f"{key}={frame[key].iloc[0]}" for key in self.keys if key not in varying)
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, title_justify="left")
        table.title = f"Sweep of {len(frame)} jobs, best first: {fixed}".removesuffix(": ")
        for heading in ("job", *varying):
            table.add_column(heading.replace(".", ".\n"), overflow="fold")  # one name a line: they are long
        for heading in ("speedup [95 %]", "tok/fwd", "tok/s", "exact/tie/\nmismatch"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("status", min_width=9)
        for row in frame.to_dict("records"):
            cells = [row["job"], *(row[key] for key in varying), speedup_cell(row)]
            cells += [number(row["tokens_per_forward"]), number(row["decode_tokens_per_s"], 1)]
            cells += ["/".join(number(row[column], 0) for column in COUNTS), row["status"]]
            table.add_row(*(str(cell) for cell in cells))
        console = make_console()
        console.print(table)
        console.print(Text(str(self.csv), "dim"), soft_wrap=True)


def split_override(override: str) -> tuple[str, str]:
    """`+drafter.window=4` -> (`drafter.window`, `4`). Values keep their own text, commas, quotes and all."""
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def dig(tree: Any, path: Sequence[str]) -> Any:
    """`tree[path[0]][path[1]]…`, or None where a step is missing: not every task measures everything."""
    for step in path:
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def number(value: Any, digits: int = 2) -> str:
    """A number for the eye; a dash where there is none."""
    import pandas as pd

    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def speedup_cell(row: Mapping[str, Any]) -> str:
    """The median with its interval, where there is one."""
    median, low, high = (number(row[key]) for key in ("speedup", "speedup_low", "speedup_high"))
    return median if low == "–" else f"{median} [{low}, {high}]"
