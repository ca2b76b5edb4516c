"""`selfdraft.compare`, without Hydra."""

from __future__ import annotations

import pytest

import selfdraft
from selfdraft.core.errors import UserError
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer


def test_it_returns_a_row_for_each_contender_and_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_positions=512)
    prompts = ["One and one and one?", "Why?"]
    options = {"max_new_tokens": 10, "engine": "eager"}
    frame = selfdraft.compare(model, tokenizer, prompts, ["suffix costs=flat", "transformers_greedy"], **options)
    assert set(frame["contender"]) == {"none", "suffix costs=flat", "transformers_greedy"}
    assert frame["tokens/s"].is_monotonic_decreasing
    assert frame["exact"].tolist() == [2, 2, 2] and frame["mismatch"].sum() == 0
    plain = frame.set_index("contender").loc["none"]
    assert (plain["tokens per forward"], plain["speedup"], plain["median"]) == (1.0, 1.0, 1.0)
    said = capsys.readouterr().out
    assert "suffix costs=flat" in said and "exact/tie/" in said
    selfdraft.compare(model, tokenizer, prompts[:1], ["suffix costs=flat"], quiet=True, **options)
    assert capsys.readouterr().out == ""


def test_answers_are_scored() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_positions=512)
    options = {"max_new_tokens": 4, "engine": "eager", "quiet": True}
    frame = selfdraft.compare(model, tokenizer, ["a", "b"], ["suffix costs=flat"], answers=["7", r"\pi"], **options)
    assert frame["score"].tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="give one answer for each prompt; there are 1 for 2"):
        selfdraft.compare(model, tokenizer, ["a", "b"], ["suffix"], answers=["7"], **options)


def test_wrong_arguments_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_positions=40)
    for prompts, contenders, said in [
        ([], ["pool"], "give at least one prompt"),
        (["a"], ["llama_cpp"], "llama_cpp is compared by task=compare"),
        (["a"], ["polo"], "there is no drafter 'polo'"),
        (["a" * 50], ["pool costs=flat"], "prompt 1 has .* tokens, but this model has 40 positions"),
    ]:
        with pytest.raises(UserError, match=said):
            selfdraft.compare(model, tokenizer, prompts, contenders, engine="eager")
