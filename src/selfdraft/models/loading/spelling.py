"""Turn a prompt and an answer that were recorded as text back into token ids, and say where that is ambiguous.

The same text can be made of different tokens, and it does not show which ones a model wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate

HALF = "\ufffd"  # decoders write this for the bytes of a character that is not complete


@dataclass(frozen=True)
class Spelt:
    """The token ids of an answer's text.

    Attributes:
        warning: what is uncertain about them; empty if nothing is known to be.
        is_cut: whether the text ended within a character, which is left out.
    """

    ids: list[int]
    warning: str = ""
    is_cut: bool = False


class Speller:
    """Finds token ids for texts, and texts for token ids, special tokens included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt that is no conversation, with the special tokens that the tokenizer adds."""
        return self._ids(text, add_special_tokens=True)

    def answer(self, prompt: Sequence[int], text: str) -> Spelt:
        """Return ids of an answer's text, such as the tokenizer gives it after the prompt.

        Raises:
            UserError: the text holds half of a character, which cannot be encoded.
        """
        whole = text.rstrip(HALF)
        is_cut, alone = whole != text, self._ids(whole)
        together = self._ids(self.text(prompt) + whole)
        ids = together[len(prompt) :] if together[: len(prompt)] == list(prompt) else alone
        if self._said(prompt, ids) != whole:
            return Spelt(ids, "the tokenizer does not give this text back: give output_ids", is_cut)
        if ids != alone or together != [*prompt, *ids]:
            return Spelt(ids, "the tokens where prompt and text meet are a guess: give output_ids", is_cut)
        return Spelt(ids, "the text ends within a character, which is left out" if is_cut else "", is_cut)

    def respelt(self, prompt: Sequence[int], text: str, tokens: Sequence[int], token: int) -> list[int] | None:
        """Return an answer's text in ids that begin with `tokens` and `token`; None if that is not possible."""
        begin = [*tokens, token]
        text, said = text.rstrip(HALF), self._said(prompt, begin)
        if not said or not text.startswith(said) or said == self._said(prompt, tokens):
            return None
        ids = [*begin, *self._ids(text[len(said) :])]
        return ids if self._said(prompt, ids) == text else None

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def alone(self, token: int) -> str:
        """Return the text of one token as it stands within a text, so with a space before it where it has one.

        A token that holds a part of a character only is written as the vocabulary writes it.
        """
        text = self.text([token, token])[len(self.text([token])) :]  # the first token of a text may lose its space
        return str(self.tokenizer.convert_ids_to_tokens(token)) if HALF in text or not text else text

    def _said(self, prompt: Sequence[int], ids: Sequence[int]) -> str | None:
        """Return what ids add to the text of a prompt; None if they change it."""
        before, whole = self.text(prompt), self.text([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else None

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if half := lone_surrogate(text):
            raise UserError(f"a text holds half of a character ({half}), which cannot be encoded: take it out")
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
