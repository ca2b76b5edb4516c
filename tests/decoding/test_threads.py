"""One `Drafting` for several threads: they take turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from selfdraft.core.errors import UserError
from selfdraft.decoding import Drafting
from selfdraft.models.loading.tiny import tiny_model

GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
PROMPTS = [
    torch.randint(1, 96, (1, n), generator=torch.Generator().manual_seed(n)) for n in (3, 5, 8, 9, 14, 17, 20, 31)
]


class Fails(StoppingCriteria):
    """In the middle of an answer."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> bool:
        if input_ids.shape[1] > 12:
            raise ZeroDivisionError
        return False


def answer(model: PreTrainedModel, drafting: Drafting | None, prompt: Tensor, **options: object) -> list[int]:
    return model.generate(prompt, custom_generate=drafting, **GREEDY, **options)[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["prompt_lookup", "jacobi", "layer_skip"])
def test_four_threads_get_their_own_texts_even_after_an_exception(drafter: str) -> None:
    model, drafting = tiny_model(), Drafting(drafter)
    expected = [answer(model, None, prompt) for prompt in PROMPTS]

    def one(index: int) -> list[int] | str:
        if index == 3:
            try:
                return answer(model, drafting, PROMPTS[index], stopping_criteria=StoppingCriteriaList([Fails()]))
            except ZeroDivisionError:
                return "failed"
        return answer(model, drafting, PROMPTS[index])

    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(one, range(len(PROMPTS))))
    assert written == [*expected[:3], "failed", *expected[4:]]
    assert answer(model, drafting, PROMPTS[0]) == expected[0]


def test_a_nested_call_is_refused() -> None:
    model, drafting = tiny_model(), Drafting()

    class Asks(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> bool:
            answer(model, drafting, PROMPTS[0])
            return False

    with pytest.raises(UserError, match="in the middle of a call; use another one inside"):
        answer(model, drafting, PROMPTS[1], stopping_criteria=StoppingCriteriaList([Asks()]))
    assert answer(model, drafting, PROMPTS[1]) == answer(model, None, PROMPTS[1])
