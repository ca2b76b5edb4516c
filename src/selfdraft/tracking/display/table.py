"""Print a result in a terminal: all columns where it has 100, the important ones where it has 80."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from selfdraft.core.messages import printable
from selfdraft.tracking.display.fitted import Fitted
from selfdraft.tracking.numbers.reason import reason
from selfdraft.tracking.numbers.summary import FEW_OFFERS

Result = Mapping[str, Any]
"""What `summary.summarize` returns."""

_BAR = 16
_DEPTHS_SHOWN = 16
_NOTHING = "–"

LESS_NEEDED = ("new\ntokens", "plain\ndecoding")  # headings of columns that a narrow terminal does without


def print_result(result: Result, console: Console) -> None:
    """Print the headline, the table by family, acceptance by depth, and the seconds of each phase."""
    console.print()
    console.print(_headline(result))
    if why := reason(result):
        console.print(Text(why))
    console.print(Fitted(_families(result), LESS_NEEDED))
    if len(result["by_context"]) > 1:
        console.print(Fitted(_contexts(result), LESS_NEEDED))
    if any(result["ties_by_float32"].values()):
        sides = result["ties_by_float32"]
        console.print(
            f"of the ties, float32 gives {sides['baseline']} to plain decoding, {sides['drafter']} to the drafter"
        )
    if result.get("left_out"):
        console.print(f"left out: {result['left_out']:,} turns that the model has no positions for")
    details = Table.grid(padding=(0, 4))
    details.add_row(*[part for part in (_acceptance(result), _phases(result)) if part is not None])
    console.print(details)
    guard = result.get("guard") or {"stood_down": 0}
    if guard["stood_down"]:
        console.print(f"the guard paused drafting in {guard['stood_down']:,} of {guard['steps']:,} steps")
    if result["references"]:
        console.print(Fitted(_references(result), ("turns", "its tok/s")))


def board(*names: str, columns: Sequence[str]) -> Table:
    """Return an empty table with columns of names, which may be folded, and columns of numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, max_width=30 if len(names) == 1 else 22, overflow="fold", vertical="bottom")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def certificate(lossless: Mapping[str, int]) -> Text:
    """Return the verdicts in words, in the colour of the worst one."""
    worst = next((name for name in ("mismatch", "tie") if lossless[name]), "exact")
    parts = [f"{lossless[name]} {name}" for name in ("exact", "sampled", "tie", "mismatch") if lossless.get(name)]
    return Text(", ".join(parts) or _NOTHING, {"exact": "green", "tie": "yellow", "mismatch": "bold red"}[worst])


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Return `value` with `digits` decimals and its unit; a dash if nothing could be measured."""
    return _NOTHING if value is None else f"{value:,.{digits}f}{unit}"


def interval(bounds: Mapping[str, float | None], prompts: int | None = None) -> str:
    """Return a speedup as `1.52× [1.31, 1.78]`, or as `1.52× [1 prompt]` if it is that of one of the `prompts`."""
    if bounds["median"] is None or bounds["low"] == bounds["high"]:
        return number(bounds["median"], 2, "×") + " [1 prompt]" * (prompts == 1 and bounds["median"] is not None)
    return f"{bounds['median']:.2f}× [{bounds['low']:.2f}, {bounds['high']:.2f}]"


def _headline(result: Result) -> RenderableType:
    title = Text.assemble((result["drafter"], "bold cyan"), printable(f" · {result['model']} · {result['dataset']}"))
    turns = f", {result['turns']:,} turns" if result["turns"] != result["prompts"] else ""
    title.append(f" ({result['prompts']:,} prompts{turns})", "dim")
    bounds = result["speedup_total_interval"]
    faster = bounds["low"] is not None and bounds["low"] > 1
    slower = bounds["high"] is not None and bounds["high"] < 1
    numbers = Text.assemble(
        "speedup ",
        (number(bounds["median"], 2, "×"), "bold green" if faster else "bold red" if slower else "bold"),
        (_certainty(bounds, result["prompts"]), "dim"),
        "   lossless: ",
        certificate(result["lossless"]),
    )
    median = f"   (median speedup by prompt {number(result['speedup']['median'], 2, '×')})"
    drafted = Text.assemble((number(result["tokens_per_forward"]), "bold"), " tokens per forward", (median, "dim"))
    return Group(title, numbers, drafted, _serving(result), _field_terms(result))


def _certainty(bounds: Mapping[str, float | None], prompts: int) -> str:
    """Return the interval of the speedup in brackets, or that it is of one prompt."""
    if prompts == 1:
        return " over all tokens (1 prompt, so no interval)"
    return f" over all tokens (95 % CI {number(bounds['low'])} to {number(bounds['high'])})"


def _serving(result: Result) -> Text:
    """Return the measures of a server, throughput and latency, with the drafter and for plain decoding."""
    rates, latencies = result["throughput"], result["latency_s"]
    parts = []
    for name, rate, latency in (("drafter", "", "latency "), ("baseline", "plain ", "")):
        median, p95 = (number(latencies[name][key], 2, " s") for key in ("median", "p95"))
        parts.append(f"{rate}{number(rates[name], 1)} tokens/s, {latency}{median} (p95 {p95})")
    return Text(f"batch {result.get('batch_size', 1)}: " + "; ".join(parts), "dim")


def _field_terms(result: Result) -> Text:
    """Return output tokens per second, joules per token, and what perfect drafts would have reached."""
    per_request, energy = result["e2e_output_token_throughput"] or {}, result["energy"]["joules_per_token"]
    p10, p50, p90 = (number(per_request.get(name), 1) for name in ("p10", "p50", "p90"))
    joules = f"{number(energy['drafter'])} J/token (plain {number(energy['baseline'])})"
    lines = [
        f"end to end: {number(result['output_token_throughput'], 1)} tokens/s, per request {p50} "
        f"(p10 {p10}, p90 {p90}); {'energy not readable' if energy['drafter'] is None else joules}"
    ]
    if oracle := result["oracle"]:
        lines.append(
            f"oracle (every drafted depth accepted): {number(oracle['speedup'], 2, '×')}, "
            f"{number(oracle['tokens_per_step'])} tokens a step; reached: {oracle['reached']:.0%}"
        )
    return Text("\n".join(lines), "dim")


def _families(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("family", max_width=18, no_wrap=True, vertical="bottom")
    for name in (
        "prompts",
        "new\ntokens",
        "tokens/\nforward",
        "tokens/s",
        "plain\ndecoding",
        "speedup\n[95 % CI]",
        "exact/tie/\nmismatch",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    families = result["by_category"]
    for name, measures in families.items():
        table.add_row(Text(printable(name)), *_family_cells(measures), end_section=name == list(families)[-1])
    if len(families) != 1:
        table.add_row("all", *_family_cells(result), style="bold")
    return table


def _contexts(result: Result) -> Table:
    """Return the table by prompt length."""
    columns = ("turns", "new\ntokens", "tokens/\nforward", "tokens/s", "plain\ndecoding", "speedup\n[95 % CI]")
    table = board("prompt tokens", columns=columns)
    for name, measures in result["by_context"].items():
        table.add_row(name, f"{measures['turns']:,}", *_rate_cells(measures))
    return table


def _family_cells(measures: Result) -> list[RenderableType]:
    return [f"{measures['prompts']:,}", *_rate_cells(measures), _verdicts(measures["lossless"])]


def _rate_cells(measures: Result) -> list[str]:
    return [
        f"{measures['new_tokens']:,}",
        number(measures["tokens_per_forward"]),
        number(measures["decode_tokens_per_s"], 1),
        number(measures["baseline_tokens_per_s"], 1),
        interval(measures["speedup_total_interval"], measures.get("prompts")),
    ]


def _verdicts(lossless: Mapping[str, int]) -> Text:
    """Return the verdicts as `7/1/0`, in the colour of the worst one."""
    text = "/".join(str(lossless[name]) for name in ("exact", "tie", "mismatch"))
    return Text(text, certificate(lossless).style)


def _small_table(title: str) -> Table:
    return Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", show_header=False)


def _bar(share: float, style: str) -> Text:
    filled = round(share * _BAR)
    return Text.assemble(("━" * filled, style), ("┈" * (_BAR - filled), "dim"))


def _acceptance(result: Result) -> Table | None:
    depths = result["acceptance_by_depth"]
    if not any(counts["offered"] for counts in depths):
        return None
    table = _small_table("accepted of offered, by draft depth")
    table.add_column(justify="right")
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for depth, counts in enumerate(depths[:_DEPTHS_SHOWN], start=1):
        share = counts["accepted"] / counts["offered"] if counts["offered"] else 0.0
        of_offered = Text(f"{counts['accepted']:,}/{counts['offered']:,}", "dim")
        is_known = counts["offered"] >= FEW_OFFERS
        style = "" if is_known else "dim"
        table.add_row(str(depth), _bar(share, "green" if is_known else "dim"), Text(f"{share:.0%}", style), of_offered)
    if len(depths) > _DEPTHS_SHOWN:
        table.add_row("…", Text(f"{len(depths) - _DEPTHS_SHOWN} deeper", "dim"), "", "")
    return table


def _phases(result: Result) -> Table | None:
    total = sum(result["phases_s"].values())
    if total <= 0:
        return None
    table = _small_table("where the drafter's seconds went")
    table.add_column(no_wrap=True)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for name, seconds in result["phases_s"].items():
        share = seconds / total
        table.add_row(name, _bar(share, "cyan"), f"{share:.0%}", Text(number(seconds, 1, " s"), "dim"))
    table.add_row(Text("peak memory", "dim"), "", "", Text(number(result["peak_memory_mb"], 0, " MB"), "dim"))
    return table


def _references(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("against")
    for name in ("turns", "its tok/s", "drafter is\n(median)", "plain is\n(median)", "exact/tie/\nmismatch"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, reference in result["references"].items():
        table.add_row(
            Text(printable(name)),
            f"{reference['turns']:,}",
            number(reference["tokens_per_s"], 1),
            interval(reference["speedup_of_drafter"]),
            interval(reference["baseline_vs_reference"]),
            _verdicts(reference["lossless"]),
        )
    return table
