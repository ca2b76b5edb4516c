"""The table of a sweep: one row per job, written to `sweep.csv` from the first job on and printed at the end.

pandas and rich's tables are imported only where they are used, because every run imports this module with the launcher
and few runs are sweeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdraft.core.messages import harmless
from selfdraft.tracking.files.atomic import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

# Column -> keys that lead to its number in result.json.
METRICS: dict[str, tuple[str, ...]] = {
    "objective": ("objective",),
    "speedup": ("speedup_total_interval", "median"),
    "speedup_low": ("speedup_total_interval", "low"),
    "speedup_high": ("speedup_total_interval", "high"),
    "tokens_per_forward": ("tokens_per_forward",),
    "decode_tokens_per_s": ("decode_tokens_per_s",),
    "baseline_tokens_per_s": ("baseline_tokens_per_s",),
    "exact": ("lossless", "exact"),
    "tie": ("lossless", "tie"),
    "mismatch": ("lossless", "mismatch"),
}
ABOUT = ("status", "reason", "seconds")
COUNTS = ("exact", "tie", "mismatch")
PICTURE = "sweep.png"  # in the sweep's folder; pictures by other objectives have their names


class SweepTable:
    """Rows by job number; `sweep.csv` is rewritten after every job, so a killed sweep keeps all finished jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csv = folder / "sweep.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        self.keys: dict[str, None] = {}  # the overridden keys, in the order in which the user wrote them
        self.metrics = dict(METRICS)
        self.objectives = ["objective"]

    def rank_by(self, objectives: Sequence[str]) -> None:
        """Draw the jobs by these keys of result.json, such as `peak_memory_mb`, and give each a column."""
        self.objectives = list(objectives)
        self.metrics |= {name: tuple(name.split("/")) for name in objectives if name not in METRICS}

    def add(self, number: int, overrides: Sequence[str], job_dir: str) -> None:
        """Add a pending job, so that the table also shows the jobs that are still to run."""
        # A lone surrogate has no bytes in UTF-8: it is written as an escape, for the file and for pandas.
        texts = (override.encode("utf-8", "backslashreplace").decode() for override in overrides)
        settings = dict(map(split_override, texts))
        self.keys.update(dict.fromkeys(settings))
        self.rows[number] = {"job": number, **settings, "status": "pending", "job_dir": job_dir}

    def finish(
        self,
        number: int,
        status: str,
        result: Mapping[str, Any] | None = None,
        reason: str = "",
        seconds: float = 0.0,
    ) -> None:
        """Enter how a job ended (see `enter`), and save the table."""
        self.enter(number, status, result, reason, seconds)
        self.save()

    def enter(
        self, number: int, status: str, result: Mapping[str, Any] | None, reason: str = "", seconds: float = 0.0
    ) -> None:
        """Enter a job's status and its results, why it failed and how long it took in seconds."""
        about = {"status": status, "reason": reason, "seconds": round(seconds, 2)}
        self.rows[number] |= {**about, **{column: dig(result, path) for column, path in self.metrics.items()}}

    def save(self) -> None:
        """Write sweep.csv."""
        write_text_atomic(self.csv, self.frame().to_csv(index=False))

    def frame(self) -> pd.DataFrame:
        """Return all jobs, the highest objective first, and those that were not completed last."""
        import pandas as pd

        table = pd.DataFrame(self.rows.values(), columns=["job", *self.keys, *ABOUT, *self.metrics, "job_dir"])
        table[list(self.metrics)] = table[list(self.metrics)].apply(pd.to_numeric, errors="coerce")
        table[list(COUNTS)] = table[list(COUNTS)].astype("Int64")  # 24 prompts, not 24.0, even if some jobs have none
        # A job that failed because of a mismatch may have a high speedup: it must not be ranked first.
        ranked = table.assign(completed=table["status"] == "completed").sort_values(
            ["completed", "objective", "speedup", "job"], ascending=[False, False, False, True], na_position="last"
        )
        return ranked.drop(columns="completed")

    def show(self) -> None:
        """Print the table to the terminal: keys that vary between jobs as columns, the others in the title."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from selfdraft.app.terminal.console import make_console
        from selfdraft.tracking.display.fitted import Fitted

        frame = self.frame()
        varying = [key for key in self.keys if frame[key].nunique(dropna=False) > 1]
        fixed = " ".join(f"{key}={frame[key].iloc[0]}" for key in self.keys if key not in varying)
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, title_justify="left")
        table.title = f"Sweep of {len(frame)} jobs, best first: {fixed}".removesuffix(": ")
        for heading in ("job", *varying):
            table.add_column(heading.replace(".", ".\n"), overflow="fold")  # a line per part of the key: keys are long
        for heading in ("speedup [95 %]", "tok/fwd", "tok/s", "exact/tie/\nmismatch"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("status", min_width=9, overflow="fold")
        for row in frame.to_dict("records"):
            cells = [row["job"], *(row[key] for key in varying), speedup_cell(row)]
            cells += [number(row["tokens_per_forward"]), number(row["decode_tokens_per_s"], 1)]
            cells += ["/".join(number(row[column], 0) for column in COUNTS), status_cell(row)]
            table.add_row(*(str(cell) for cell in cells))
        console = make_console()
        console.print(Fitted(table, ("tok/s", "tok/fwd")))
        console.print(Text(str(self.csv), "dim"), soft_wrap=True)
        with harmless("the sweep's picture was not drawn"):
            for picture in self.draw():
                console.print(Text(str(picture), "dim"), soft_wrap=True)

    def draw(self) -> list[Path]:
        """Draw the completed jobs by each objective; return the pictures that there are."""
        from selfdraft.tracking.display.sweep_picture import plot_sweep

        drawn = []
        for name in self.objectives:
            rows = [row for row in self.rows.values() if row["status"] == "completed" and is_number(row.get(name))]
            path = self.folder / (PICTURE if name == "objective" else f"{Path(PICTURE).stem}_{slug(name)}.png")
            settings = [{key: str(row.get(key, "–")) for key in self.keys} for row in rows]
            if plot_sweep(path, settings, [float(row[name]) for row in rows], name):
                drawn.append(path)
        return drawn


def is_number(value: Any) -> bool:
    """Return whether a value of result.json is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def slug(name: str) -> str:
    """Return a key of result.json as a part of a file's name."""
    return re.sub(r"\W+", "_", name)


def split_override(override: str) -> tuple[str, str]:
    """Return key and value: `+drafter.window=4` -> (`drafter.window`, `4`). Values keep their commas and quotes."""
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def dig(tree: Any, path: Sequence[str]) -> Any:
    """Return `tree[path[0]][path[1]]…`, or None if a key is missing, because not every task measures everything."""
    for step in path:
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def number(value: Any, digits: int = 2) -> str:
    """Return a number as text, with `digits` decimals; a dash if there is none."""
    import pandas as pd

    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def status_cell(row: Mapping[str, Any]) -> str:
    """Return a job's status as text, and why it failed."""
    reason = row["reason"]
    return f"{row['status']}: {reason}" if isinstance(reason, str) and reason else row["status"]


def speedup_cell(row: Mapping[str, Any]) -> str:
    """Return the speedup over all tokens as text, with its interval if there is one."""
    median, low, high = (number(row[key]) for key in ("speedup", "speedup_low", "speedup_high"))
    return median if low == "–" else f"{median} [{low}, {high}]"
