import pytest
import torch

from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.tiny import tiny_model


def test_the_same_model_has_one_fingerprint_in_any_dtype() -> None:
    prints = {fingerprint(tiny_model("llama", dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)}
    assert len(prints) == 1
    assert len(prints.pop()) == 16


@pytest.mark.parametrize("other", [{"seed": 1}, {"layers": 5}, {"family": "qwen3"}])
def test_another_model_has_another_fingerprint(other: dict) -> None:
    assert fingerprint(tiny_model(**{"family": "llama", **other})) != fingerprint(tiny_model("llama"))


def test_a_fine_tuned_model_has_another_fingerprint() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.05)
    assert fingerprint(model) != before
