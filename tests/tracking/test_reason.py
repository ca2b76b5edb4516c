"""The line that says why a drafter won or lost."""

from __future__ import annotations

import io
from typing import Any

from example_lines import line
from selfdraft.app.terminal.console import PlainConsole
from selfdraft.tracking.display.table import print_result
from selfdraft.tracking.numbers.reason import reason
from selfdraft.tracking.numbers.summary import summarize

LABELS = {"task": "evaluate", "model": "tiny", "drafter": "jacobi", "dataset": "bundled", "seed": 0}


def result(**changes: Any) -> dict[str, Any]:
    """10 tokens in 5 steps; with plain decoding a token takes 0.2 s."""
    return summarize([line(steps=[[]] * 5, **changes)], **LABELS)


def test_a_gain_is_explained_by_tokens_and_cost_of_a_step() -> None:
    # Drafting 0.1 s / 5 steps = 0.02 s is a tenth of a plain step, verifying 0.8 of one, the rest 0.1 s / 5.
    assert reason(result()) == (
        "why it won: a step writes 2.00 tokens (56% of the drafted depths are accepted) and costs 1.00 plain steps "
        "(drafting 0.10, verifying 0.80, the rest 0.10)"
    )


def test_a_loss_names_the_tokens_that_would_break_even() -> None:
    phases = {"prefill": 0.5, "draft": 2.0, "verify": 1.0, "commit": 0.0, "other": 0.0}
    line = reason(result(phases_s=phases))
    assert line is not None and line.startswith("why it lost: a step writes 2.00 tokens")
    assert "costs 3.00 plain steps (drafting 2.00, verifying 1.00, the rest 0.00)" in line
    assert line.endswith("is mostly drafting; it breaks even at 3.00 tokens a step, or if a step costs 2.00")
    phases |= {"draft": 0.1, "verify": 3.0}
    assert "what it costs more is mostly verifying a block;" in (reason(result(phases_s=phases)) or "")


def test_the_tokens_over_the_cost_are_the_speedup_over_all_tokens() -> None:
    measured = result(phases_s={"prefill": 0.1, "draft": 0.3, "verify": 1.1, "commit": 0.1, "other": 0.1}, decode_s=1.6)
    line = reason(measured)
    assert line is not None and "costs 1.60 plain steps" in line
    assert measured["speedup_total"] == 2.0 / 1.6


def test_without_drafts_or_times_nothing_is_explained() -> None:
    none = [{"offered": 0, "accepted": 0}]
    assert "no draft was found" in (reason(result(acceptance_by_depth=none)) or "")
    plain = summarize([line(steps=[[]] * 5, acceptance_by_depth=[])], **(LABELS | {"drafter": "none"}))
    assert reason(plain) is None
    assert reason(summarize([line()], **LABELS)) is None  # a run from before steps were recorded
    assert reason(result(baseline_decode_s=0.0)) is None
    assert reason(result(phases_s={"prefill": 0.5})) is None


def test_the_line_is_printed_below_the_headline() -> None:
    console = PlainConsole(file=io.StringIO(), width=100)
    print_result(result(), console)
    assert "why it won: a step writes 2.00 tokens" in console.file.getvalue()
