import json
import random

import pytest

from example_lines import evaluation, line
from selfdraft.tracking.numbers.summary import context_bucket, mismatches, speedup_of, summarize

LABELS = {"task": "evaluate", "model": "m", "drafter": "jacobi", "dataset": "d", "seed": 0}


@pytest.fixture(scope="module")
def result():
    return summarize(evaluation(), **LABELS, dtype="float32")


def test_labels_come_first_and_are_kept(result):
    assert {name: result[name] for name in (*LABELS, "dtype")} == LABELS | {"dtype": "float32"}
    json.dumps(result, allow_nan=False)


def test_counts_are_summed(result):
    assert (result["prompts"], result["turns"]) == (3, 4)
    assert (result["new_tokens"], result["target_forwards"]) == (150, 100)
    assert result["lossless"] == {"exact": 3, "tie": 1, "mismatch": 0}
    assert result["acceptance_by_depth"] == [
        {"offered": 5 + 5 + 70 + 10, "accepted": 4 + 4 + 10 + 10},
        {"offered": 4 + 4 + 10, "accepted": 1 + 1 + 9},
        {"offered": 9, "accepted": 8},
    ]
    assert result["phases_s"] == pytest.approx(
        {"prefill": 2, "draft": 0.4, "verify": 3.2, "commit": 0.24, "other": 0.16}
    )
    assert result["peak_memory_mb"] == 140.0


def test_ratios_are_ratios_of_sums(result):
    # The mean of the turns' own values would be (2 + 2 + 1.125 + 4) / 4 = 2.28 tokens per forward.
    assert result["tokens_per_forward"] == 1.5
    assert result["decode_tokens_per_s"] == pytest.approx(150 / 13.25)
    assert result["baseline_tokens_per_s"] == pytest.approx(150 / 21.9)
    assert result["speedup_total"] == pytest.approx((150 / 13.25) / (150 / 21.9))


def test_speedup_is_the_median_paired_ratio(result):
    # Turn by turn 2.0, 1.6, 1.1, 4.0.
    assert result["speedup"]["median"] == pytest.approx(1.8)
    assert 1.1 <= result["speedup"]["low"] <= 1.8 <= result["speedup"]["high"] <= 4.0


def test_a_pair_compares_rates_so_outputs_may_differ_in_length():
    assert speedup_of(line(new_tokens=30, decode_s=2.0, baseline_new_tokens=10, baseline_decode_s=1.0)) == 1.5


def test_families_have_the_same_measures(result):
    families = result["by_category"]
    assert list(families) == ["mt_bench", "qa", "rag"]
    assert families["mt_bench"]["turns"] == 2
    assert families["mt_bench"]["prompts"] == 1
    assert families["qa"]["tokens_per_forward"] == pytest.approx(90 / 80)
    assert families["qa"]["speedup"]["median"] == pytest.approx(1.1)
    assert families["rag"]["lossless"] == {"exact": 1, "tie": 0, "mismatch": 0}
    assert set(families["qa"]) == set(result) - {*LABELS, "dtype", "by_category", "by_context", "references"}


def test_references_are_compared_on_the_turns_they_decoded(result):
    assert list(result["references"]) == ["transformers_greedy"]
    reference = result["references"]["transformers_greedy"]
    assert reference["turns"] == 2
    assert reference["tokens_per_s"] == pytest.approx(3.0)
    assert reference["speedup_of_drafter"]["median"] == pytest.approx((10 / 3 + 8 / 3) / 2)
    assert reference["baseline_vs_reference"]["median"] == pytest.approx(5 / 3)


def test_the_result_does_not_depend_on_the_order_of_lines():
    lines = [line(f"p{number}", decode_s=1 + number / 7) for number in range(12)]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert summarize(lines, **LABELS) == summarize(shuffled, **LABELS)


def test_answers_too_short_to_time_count_but_are_not_paired():
    lines = [line("a"), line("b", new_tokens=0, target_forwards=0, decode_s=0.0, acceptance_by_depth=[])]
    result = summarize(lines, **LABELS)
    assert (result["prompts"], result["new_tokens"]) == (2, 10)
    assert result["speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    alone = summarize(lines[1:], **LABELS)
    assert alone["speedup"] == {"median": None, "low": None, "high": None}
    assert alone["tokens_per_forward"] is alone["decode_tokens_per_s"] is alone["speedup_total"] is None
    json.dumps(alone, allow_nan=False)


def test_throughput_and_latency_are_of_all_turns():
    lines = [line(f"p{number}", latency_s=float(number), baseline_latency_s=2.0 * number) for number in range(21)]
    result = summarize(lines, **LABELS, batch_size=4)
    assert result["batch_size"] == 4
    assert result["throughput"] == {"drafter": pytest.approx(10.0), "baseline": pytest.approx(5.0)}
    assert result["latency_s"] == {
        "drafter": {"median": 10.0, "p95": pytest.approx(19.0)},
        "baseline": {"median": 20.0, "p95": pytest.approx(38.0)},
    }


def test_no_lines_are_refused():
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([], **LABELS)


def test_ties_are_counted_by_the_side_that_float32_prefers():
    def tie(id, prefers, verdict="tie"):
        checked = {"margin": 0.0, "control": 1.0, "prefers": prefers}
        return line(id, lossless={"verdict": verdict, "control": 1.0, "float32": checked})

    lines = [tie("a", "drafter"), tie("b", "baseline"), tie("c", "drafter"), tie("d", "drafter", "mismatch"), line("e")]
    assert summarize(lines, **LABELS)["ties_by_float32"] == {"baseline": 1, "drafter": 2}


def test_every_mismatch_of_drafter_and_references_has_a_reason():
    wrong = {"verdict": "mismatch", "reason": "forward", "control": None}
    beside = {
        "stock": {"new_tokens": 9, "decode_s": 3.0, "same_as_baseline": False, "lossless": {"verdict": "mismatch"}},
        "lookup": {"new_tokens": 9, "decode_s": 3.0, "same_as_baseline": False, "lossless": {"verdict": "tie"}},
    }
    lines = [line("a", lossless=wrong), line("b", turn=1, references=beside), line("c")]
    assert mismatches(lines) == ["a/0 (forward)", "b/1 (token, plain decoding beside stock)"]
    result = summarize(lines, **LABELS)
    assert result["mismatch_reasons"] == {"forward": 1}
    assert result["references"]["stock"]["lossless"] == {"exact": 0, "tie": 0, "mismatch": 1}
    assert result["references"]["lookup"]["lossless"] == {"exact": 0, "tie": 1, "mismatch": 0}
    assert result["references"]["lookup"]["same_as_baseline"] == 0


def test_the_distance_from_the_stock_forward_is_that_of_the_worst_line():
    lines = [
        line(id, lossless={"verdict": "exact", "distance": distance, "ceiling": ceiling})
        for id, distance, ceiling in (("a", 0.02, 0.04), ("b", 0.03, 0.09))
    ]
    assert summarize(lines, **LABELS)["forward_distance"] == {"sigmas": 0.02, "ceiling": 0.04}
    assert summarize([line()], **LABELS)["forward_distance"] is None


def test_every_prompt_length_has_one_bucket():
    for tokens, name in [
        (1, "0-255"), (255, "0-255"), (256, "256-1023"), (1023, "256-1023"), (1024, "1024-4095"), (4095, "1024-4095"),
        (4096, "4096-16383"), (16383, "4096-16383"), (16384, "16384+"), (10**6, "16384+"),
    ]:  # fmt: skip
        assert context_bucket(tokens) == name


def test_measures_by_prompt_length_are_those_of_the_bucket_s_turns():
    long = [line(id, prompt_ids=[7] * 4096, new_tokens=30, decode_s=2.0, target_forwards=6) for id in "bc"]
    result = summarize([*long, line("a", prompt_ids=[7] * 255)], **LABELS, batch_size=4)
    assert list(result["by_context"]) == ["0-255", "4096-16383"]
    found = result["by_context"]["4096-16383"]
    assert (found["batch_size"], found["turns"], found["new_tokens"]) == (4, 2, 60)
    assert (found["tokens_per_forward"], found["decode_tokens_per_s"]) == (5.0, 15.0)
    assert found["baseline_tokens_per_s"] == 5.0
    assert found["speedup"]["median"] == found["speedup_total"] == 3.0
    assert result["by_context"]["0-255"]["speedup"]["median"] == 2.0
    left_out = {"id": "d", "turn": 0, "category": "c", "family": "c", "left_out": "too long"}
    assert summarize([line(), left_out], **LABELS)["by_context"]["0-255"]["turns"] == 1
