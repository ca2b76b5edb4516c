import io

import pytest

from example_lines import evaluation, line
from selfdraft.app.terminal.console import PlainConsole
from selfdraft.tracking.display.table import print_result
from selfdraft.tracking.numbers.lines import LEFT_OUT
from selfdraft.tracking.numbers.summary import summarize

LABELS = {"task": "evaluate", "model": "tiny", "drafter": "jacobi", "dataset": "bundled", "seed": 0}


def shown(lines) -> str:
    console = PlainConsole(file=io.StringIO(), width=100)
    print_result(summarize(lines, **LABELS), console)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    return next(found.split() for found in text.splitlines() if found.split()[:1] == [name])


def test_all_numbers_fit_into_100_columns():
    lines = [
        line(f"{family}{number}", family=family, new_tokens=123456, target_forwards=61728, decode_s=100 + number,
             baseline_new_tokens=123456, baseline_decode_s=1000.0)
        for family in ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag") for number in range(9)
    ]  # fmt: skip
    text = shown(lines)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert row(text, "summarization")[:4] == ["summarization", "9", "1,111,104", "2.00"]
    assert row(text, "all")[-1] == "54/0/0"


def test_headline_and_rows_show_the_measures():
    text = shown(evaluation())
    assert "jacobi · tiny · bundled (3 prompts, 4 turns)" in text
    assert "speedup 1.65× over all tokens (95 % CI 1.10 to 4.00)   lossless: 3 exact, 1 tie" in text
    assert "median speedup by prompt 1.80×" in text
    assert "1.50 tokens per forward" in text
    assert row(text, "qa") == ["qa", "1", "90", "1.12", "10.0", "9.1", "1.10×", "[1", "prompt]", "0/1/0"]
    assert row(text, "all")[:6] == ["all", "3", "150", "1.50", "11.3", "6.8"]
    assert "28/90" in text  # accepted of offered at depth 1
    assert "3.00×" in text  # against transformers_greedy
    assert "140 MB" in text


def test_a_batch_shows_its_throughput_and_latency():
    console = PlainConsole(file=io.StringIO(), width=100)
    print_result(summarize([line(latency_s=1.25, baseline_latency_s=2.5)], **LABELS, batch_size=8), console)
    shown = " ".join(console.file.getvalue().split())
    assert "batch 8: 10.0 tokens/s, latency 1.25 s (p95 1.25 s); plain 5.0 tokens/s, 2.50 s (p95 2.50 s)" in shown


def test_the_speedup_of_one_prompt_has_no_interval():
    assert "speedup 2.00× over all tokens (1 prompt, so no interval)" in shown([line()])
    assert row(shown([line()]), "mt_bench")[-4:-1] == ["2.00×", "[1", "prompt]"]


def test_all_speedups_on_the_screen_are_the_same_ratio_of_rates():
    """The headline, the last column and the quotient of the two columns before it."""
    text = shown(evaluation())
    *_, ours, plain, speedup, _, _, _ = row(text, "all")
    assert speedup == "1.65×" and round(float(ours) / float(plain), 1) == 1.7
    assert f"speedup {speedup} over all tokens" in text
    result = summarize(evaluation(), **LABELS)
    assert result["speedup_total_interval"]["median"] == pytest.approx(result["speedup_total"])
    assert result["by_category"]["qa"]["speedup_total_interval"]["median"] == pytest.approx(90 / 9 / (90 / 9.9))


def test_a_mismatch_is_named():
    assert "1 mismatch" in shown([line(lossless={"verdict": "mismatch"})])


def test_a_table_without_drafts_or_times_is_printed():
    nothing = line(new_tokens=0, target_forwards=0, decode_s=0.0, acceptance_by_depth=[], phases_s={"draft": 0.0})
    text = shown([nothing])
    assert "speedup –" in text
    assert "depth" not in text


def test_turns_that_were_left_out_are_counted_and_measured_nowhere():
    left_out = {"id": "c", "turn": 1, "category": "rag", "family": "rag", LEFT_OUT: "too long"}
    lines = [*evaluation(), left_out]
    assert "left out: 1 turns that the model has no positions for" in shown(lines)
    assert "left out" not in shown(evaluation())
    with_it, without = summarize(lines, **LABELS), summarize(evaluation(), **LABELS)
    assert (with_it.pop("left_out"), without.pop("left_out")) == (1, 0)
    assert [c.pop("left_out") for c in with_it["by_category"].values()] == [0, 0, 1]
    assert [c.pop("left_out") for c in without["by_category"].values()] == [0, 0, 0]
    assert with_it == without


@pytest.mark.parametrize("name", ["[red]", "[/]"])
def test_names_are_not_read_as_markup(name):
    assert name in shown([line(family=name)])


def test_ties_decided_by_float32_are_shown():
    checked = {"margin": 0.0, "control": 1.0, "prefers": "drafter"}
    tie = line("d", lossless={"verdict": "tie", "control": 1.0, "float32": checked})
    assert "of the ties, float32 gives 0 to plain decoding, 1 to the drafter" in shown([*evaluation(), tie])
    assert "float32 gives" not in shown(evaluation())


def test_a_references_verdicts_are_shown():
    reference = {"new_tokens": 9, "decode_s": 3.0, "same_as_baseline": False, "lossless": {"verdict": "mismatch"}}
    assert row(shown([line(references={"stock": reference})]), "stock")[-1] == "0/0/1"


def test_measures_in_the_field_s_terms_are_two_lines():
    steps = [[[1, 2, 3], None, [0, 1], 9, "pool", None], *[[[], None, [], 9, "", None]] * 7]  # 10 tokens of 11
    note = {"sources": ["package-0"], "not_readable": ""}
    text = shown([line(steps=steps, joules=15.0, baseline_joules=20.0, energy=note)])
    assert "end to end: 6.7 tokens/s, per request 6.7 (p10 6.7, p90 6.7); 1.50 J/token (plain 2.00)" in text
    assert "oracle (every drafted depth accepted): 2.20×, 1.38 tokens a step; reached: 91%" in text
    without = shown([line()])
    assert "energy not readable" in without
    assert "oracle" not in without


def test_prompt_lengths_are_shown_if_there_are_several():
    assert "prompt tokens" not in shown(evaluation())
    text = shown([*evaluation(), line("d", prompt_ids=[1] * 300, decode_s=0.5)])
    assert "prompt tokens" in text
    assert row(text, "256-1023") == ["256-1023", "1", "10", "2.00", "20.0", "5.0", "4.00×"]
    assert row(text, "0-255")[:3] == ["0-255", "4", "150"]
