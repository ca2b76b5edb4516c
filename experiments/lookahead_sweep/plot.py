"""Plot a sweep over W, N and G:  python experiments/lookahead_sweep/plot.py SWEEP_CSV [PNG]

Left: tokens per forward, which a device with computing power to spare would turn into speed. Right: speedup here.
Also prints the table in Markdown. The picture lands beside the CSV unless a path is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError

W, N, G = "drafter.window", "drafter.ngram", "drafter.guesses"
SHOWN = {"tokens_per_forward": "tokens per forward", "speedup": "speedup over plain decoding (median)"}
MARKERS, LINES = "osD^v*", ("-", "--", ":", "-.")


def markdown(frame: pd.DataFrame) -> str:
    """One row a setting, best first."""
    rows = ["| W | N | G | tokens per forward | speedup [95 % CI] | exact / tie / mismatch |", "|" + "---|" * 6]
    for r in frame.sort_values("tokens_per_forward", ascending=False).to_dict("records"):
        speedup = f"{r['speedup']:.2f} [{r['speedup_low']:.2f}, {r['speedup_high']:.2f}]"
        verdicts = f"{r['exact']:.0f} / {r['tie']:.0f} / {r['mismatch']:.0f}"
        rows.append(f"| {r[W]} | {r[N]} | {r[G]} | {r['tokens_per_forward']:.2f} | {speedup} | {verdicts} |")
    return "\n".join(rows)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Against G, a colour for each N, a line style and marker for each W."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for (column, label), ax in zip(SHOWN.items(), axes, strict=True):
        for i, (n, of_n) in enumerate(frame.groupby(N)):
            for j, (w, line) in enumerate(of_n.groupby(W)):
                line = line.sort_values(G)
                style = {"color": f"C{i}", "marker": MARKERS[j % len(MARKERS)], "linestyle": LINES[j % len(LINES)]}
                ax.plot(line[G], line[column], label=f"N={n} W={w}", **style)
        ax.set(xlabel="G: guesses a step", ylabel=label)
        ax.axhline(1.0, color="grey", linewidth=0.8)
    axes[1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


@one_line_script("plot")
def main(arguments: list[str]) -> None:
    """Read, plot, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, metavar="SWEEP_CSV", help="sweep.csv of the sweep")
    parser.add_argument("png", type=Path, nargs="?", help="the picture (default: beside the CSV)")
    given = parser.parse_args(arguments)
    try:
        frame = pd.read_csv(given.csv)
        frame = frame[frame["status"] == "completed"]
        table = markdown(frame)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{given.csv} is no table of this sweep ({error}): give its sweep.csv") from None
    path = given.png or given.csv.with_suffix(".png")
    plot(frame, path)
    print(table)
    print(f"\nplot: {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
