"""Show a comparison: a table in a terminal, the same as Markdown, and a table for W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.display.fitted import Fitted
from selfdraft.tracking.display.table import board, certificate, interval, number
from selfdraft.tracking.numbers.comparison import PLAIN, by_weights, ranking
from selfdraft.tracking.numbers.lines import CONTENDERS

Result = Mapping[str, Any]
"""What `comparison.summarize_comparison` returns."""

# What `startup` holds of a contender: see `bench.Bench.startup`.
STARTUP = {
    "peak memory": "peak_memory_mb",
    "to load weights": "load_s",
    "to compile or pack layers": "compile_s",
    "to prepare its drafter": "prepare_s",
}
LESS_NEEDED = ("with\nprefill", "median by\nprompt")  # headings of columns that a narrow terminal does without
HEADER = (
    "| contender | tokens per forward | tokens/s | with prefill | speedup over all tokens [95 % CI] "
    "| median by prompt [95 % CI] | exact / tie / mismatch |"
)


def print_comparison(result: Result, console: Console) -> None:
    """Print the leaderboard, the speedups by family, and why each contender won or lost."""
    console.print()
    title = Text.assemble(("comparison", "bold cyan"), printable(f" · {result['model']} · {result['dataset']}"))
    title.append(
        f" ({result['prompts']:,} prompts, {result['turns']:,} turns; speedups over plain decoding, of all tokens)",
        "dim",
    )
    console.print(title)
    console.print(Fitted(_leaderboard(result), LESS_NEEDED))
    if len(_families(result)) > 1:
        console.print(_by_family(result))
    if any(found.get("startup") for found in result[CONTENDERS].values()):
        console.print(_startup(result))
    for line in _not_certified(result):
        console.print(line)
    for name in ranking(result):
        if why := result[CONTENDERS][name]["why"]:
            console.print(Text.assemble((printable(name), "bold"), f": {why}"))


def as_markdown(result: Result) -> str:
    """Return the leaderboard as Markdown tables, one for each class of weights; then families and what each needed."""
    rows, scored = [], _is_scored(result)
    groups = by_weights(result)
    for weights, names in groups.items():
        rows += [f"**{printable(weights)}**", ""] if len(groups) > 1 else []
        header = HEADER + (" score |" if scored else "")
        rows += [header, "|" + "---|" * (header.count("|") - 1)]
        for name in names:
            found = result[CONTENDERS][name]
            rows.append("| " + " | ".join([*_cells(name, found), *([_score(found)] if scored else [])]) + " |")
        rows += [""] if weights != list(groups)[-1] else []
    rows += [line for reason in _not_certified(result) for line in ("", reason)]
    families = _families(result)
    rows += [
        "",
        "| speedup by family | " + " | ".join(map(printable, families)) + " |",
        "|---" * (len(families) + 1) + "|",
    ]
    rows += ["| " + " | ".join([printable(name), *cells]) + " |" for name, cells in _speedups_by_family(result)]
    if any(found.get("startup") for found in result[CONTENDERS].values()):
        rows += ["", "| contender | " + " | ".join(STARTUP) + " |", "|---" * (len(STARTUP) + 1) + "|"]
        rows += [
            "| " + " | ".join([printable(name), *_startup_cells(result[CONTENDERS][name])]) + " |"
            for name in ranking(result)
        ]
    return "\n".join(rows) + "\n"


def rows_of(result: Result) -> tuple[list[str], list[list[Any]]]:
    """Return column names, and a row of plain values for each contender, the fastest first."""
    rows = []
    for name in ranking(result):
        found = result[CONTENDERS][name]
        total = found["speedup_total_interval"]
        row = {
            "contender": name,
            "tokens per forward": found["tokens_per_forward"],
            "tokens/s": found["decode_tokens_per_s"],
            "tokens/s with prefill": found["output_token_throughput"],
            "speedup": total["median"],
            "low": total["low"],
            "high": total["high"],
            "median": found["speedup"]["median"],
            **{verdict: found["lossless"][verdict] for verdict in ("exact", "tie", "mismatch")},
            **{key: found.get("startup", {}).get(key) for key in ("weights", *STARTUP.values())},
            "oracle speedup": (found.get("oracle") or {}).get("speedup"),
            "joules per token": found["energy"]["joules_per_token"]["drafter"],
            **({"score": found["score"]} if "score" in found else {}),
        }
        rows.append(row)
    return list(rows[0]), [list(row.values()) for row in rows]


def _leaderboard(result: Result) -> Table:
    scored = _is_scored(result)
    columns = ["tokens/\nforward", "tokens/s", "with\nprefill", "speedup\n[95 % CI]", "median by\nprompt"]
    table = board("contender", columns=[*columns, "exact/tie/\nmismatch", *(["score"] if scored else [])])
    groups = by_weights(result)
    for weights, names in groups.items():
        if len(groups) > 1:
            table.add_section()
            table.add_row(Text(printable(weights), "dim italic"))
        for place, name in enumerate(names):
            found = result[CONTENDERS][name]
            cells = [found["tokens_per_forward"], found["decode_tokens_per_s"], found["output_token_throughput"]]
            table.add_row(
                Text(printable(name), "bold" if place == 0 else ""),
                *(number(value, digits) for value, digits in zip(cells, (2, 1, 1), strict=True)),
                interval(found["speedup_total_interval"], None if name == PLAIN else result["prompts"]),
                number(found["speedup"]["median"], 2, "×"),
                Text(_verdicts(found), certificate(found["lossless"]).style),
                *([_score(found)] if scored else []),
            )
    return table


def _is_scored(result: Result) -> bool:
    return any("score" in found for found in result[CONTENDERS].values())


def _score(found: Mapping[str, Any]) -> str:
    """Return the share of right answers in percent."""
    share = found.get("score")
    return number(None if share is None else 100 * share, 0, " %")


def _not_certified(result: Result) -> list[str]:
    """Return a line for each contender whose texts nobody judged, with the reason."""
    reasons = {name: found.get("startup", {}).get("not_certified") for name, found in result[CONTENDERS].items()}
    return [f"{printable(name)} is not certified: {printable(reason)}" for name, reason in reasons.items() if reason]


def _startup(result: Result) -> Table:
    """Return a table of what each contender needed: memory while it decoded, and seconds before its first answer."""
    table = board("contender", columns=["\n".join(heading.rsplit(" ", 1)) for heading in STARTUP])
    for name in ranking(result):
        table.add_row(Text(printable(name)), *_startup_cells(result[CONTENDERS][name]))
    return table


def _startup_cells(found: Mapping[str, Any]) -> list[str]:
    startup = found.get("startup", {})
    units = {"peak_memory_mb": (0, " MB")}
    return [number(startup.get(key), *units.get(key, (1, " s"))) for key in STARTUP.values()]


def _by_family(result: Result) -> Table:
    table = board("speedup by family", columns=())
    for family in _families(result):
        table.add_column(Text(printable(family)), justify="right", max_width=11, overflow="fold")
    for name, cells in _speedups_by_family(result):
        table.add_row(Text(printable(name)), *cells)
    return table


def _speedups_by_family(result: Result) -> list[tuple[str, list[str]]]:
    """Return each contender's speedups by family, over all of its tokens; plain decoding's are all 1."""
    families = _families(result)
    return [
        (
            name,
            [number(result[CONTENDERS][name]["by_category"][family]["speedup_total"], 2, "×") for family in families],
        )
        for name in ranking(result)
        if name != PLAIN
    ]


def _families(result: Result) -> list[str]:
    return list(result[CONTENDERS][PLAIN]["by_category"])


def _cells(name: str, found: Mapping[str, Any]) -> list[str]:
    return [
        printable(name),
        number(found["tokens_per_forward"]),
        number(found["decode_tokens_per_s"], 1),
        number(found["output_token_throughput"], 1),
        interval(found["speedup_total_interval"], None if name == PLAIN else found["prompts"]),
        interval(found["speedup"]),
        _verdicts(found, " / "),
    ]


def _verdicts(found: Mapping[str, Any], between: str = "/") -> str:
    counts = [found["lossless"][verdict] for verdict in ("exact", "tie", "mismatch")]
    return between.join(map(str, counts)) if any(counts) else "not certified"
