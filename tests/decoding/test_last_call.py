"""`Drafting.last`: what a call accepted and how long it took, for all rows of its batch."""

from __future__ import annotations

import pytest
import torch

from selfdraft.core.counts import Counts
from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.decoding.last_call import LastCall
from selfdraft.decoding.record import Generation
from selfdraft.models.loading.tiny import tiny_model

PROMPT = torch.tensor([[5, 17, 3, 60, 44, 9, 5, 17, 3]])
BATCH = torch.tensor([[0] * 4 + [5, 17, 3, 60, 44], [5, 17, 3, 60, 44, 9, 5, 17, 3]])
MASK = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
GREEDY = {"do_sample": False, "pad_token_id": 0}


def generation(new_tokens: int, forwards: int, offered: list[int], accepted: list[int], **seconds: float) -> Generation:
    made = Generation([1], counts=Counts(new_tokens, forwards, offered, accepted))
    made.clock.seconds |= seconds
    return made


def test_it_is_the_sum_over_all_rows() -> None:
    first = generation(6, 3, [3, 2], [2, 1], prefill=1.0, draft=0.25, verify=2.0)
    second = generation(2, 1, [1, 1, 1], [1, 1, 0], prefill=0.5, verify=1.0, commit=0.125, other=0.5)
    last = LastCall.of([first, second])
    assert (last.rows, last.new_tokens, last.target_forwards) == (2, 8, 4)
    assert (last.offered, last.accepted) == ((4, 3, 1), (3, 2, 0))
    assert last.tokens_per_forward == 2.0
    assert last.acceptance == (3 / 4, 2 / 3, 0.0)
    assert last.seconds == {
        "prefill": 1.5, "draft": 0.25, "verify": 3.0, "commit": 0.125, "other": 0.5, "decode": 3.875,
    }  # fmt: skip
    assert str(last) == (
        "8 tokens in 4 forwards (2.00 per forward); accepted: 75% at depth 1, 67% at depth 2, 0% at depth 3; "
        "prefill 1.500 s, decode 3.875 s (draft 0.250 s, verify 3.000 s)"
    )
    assert first.counts.offered == [3, 2]  # the parts are not changed


def test_a_call_without_drafts_has_one_token_per_forward() -> None:
    drafting = Drafting("none")
    assert drafting.last is None
    tiny_model().generate(PROMPT, custom_generate=drafting, max_new_tokens=7, **GREEDY)
    last = drafting.last
    assert (last.rows, last.new_tokens, last.target_forwards, last.acceptance) == (1, 7, 7, ())
    assert last.tokens_per_forward == 1.0
    assert "accepted: nothing was drafted" in str(last)


def test_a_batch_is_counted_as_its_texts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drafting = tiny_model(), Drafting("jacobi", window=4, costs="flat")
    text = model.generate(BATCH, attention_mask=MASK, custom_generate=drafting, max_new_tokens=24, **GREEDY)
    last = drafting.last
    assert last.rows == 2 and last.new_tokens == text[:, 9:].numel() == 48
    # Every forward emits a bonus token and what was accepted; a token is accepted at each depth up to its own.
    assert last.new_tokens == last.target_forwards + sum(last.accepted)
    assert 1.0 < last.tokens_per_forward < 5.0
    assert all(0.0 <= share <= 1.0 for share in last.acceptance) and last.acceptance[0] > 0
    assert all(last.seconds[phase] > 0 for phase in ("prefill", "draft", "verify"))
    parts = sum(last.seconds[phase] for phase in ("draft", "verify", "commit", "other"))
    assert last.seconds["decode"] == pytest.approx(parts)


def test_it_is_of_the_last_call_only_and_none_after_one_that_failed() -> None:
    model, drafting = tiny_model(), Drafting("none")
    for count in (5, 3):
        model.generate(PROMPT, custom_generate=drafting, max_new_tokens=count, **GREEDY)
        assert drafting.last.new_tokens == count
    with pytest.raises(UserError):
        model.generate(PROMPT, custom_generate=drafting, max_new_tokens=3, return_dict_in_generate=True, **GREEDY)
    assert drafting.last is None
