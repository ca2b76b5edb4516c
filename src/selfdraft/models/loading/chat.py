"""Turn a conversation into token ids with the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import lone_surrogate
from selfdraft.models.loading.rendering import render
from selfdraft.models.loading.tiny import TINY_TEMPLATE

MARK = "selfdraft marks the place"  # a message whose place is then looked for in the text that the template makes
NO_SYSTEM = "this model's chat template takes no system message: leave the system prompts out of the dataset"


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._takes_system = False  # not known before a system message comes

    def encode(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Return the ids of a conversation up to where the model's answer begins.

        Args:
            turns: (role, text) pairs, role `system`, `user` or `assistant`, the last one the user's.

        Raises:
            UserError: the chat template fails on them, takes no system message, or is stopped.
        """
        if self.tokenizer.chat_template is None:  # a base model: the texts, one after the other
            return self._ids("\n\n".join(text for _, text in turns), add_special_tokens=True)
        if not self._takes_system and any(role == "system" for role, _ in turns):
            self._refuse_without_system()
        messages = [{"role": role, "content": text} for role, text in turns]
        return self._ids(self._text(messages, answer=True))

    def _refuse_without_system(self) -> None:
        """Refuse a template that fails on a system message, or leaves it out, which nobody would notice."""
        try:
            text = self._text([{"role": "system", "content": MARK}, {"role": "user", "content": "Hi."}], answer=True)
        except UserError as error:
            raise UserError(f"{NO_SYSTEM} ({error})") from None
        if MARK not in text:
            raise UserError(f"{NO_SYSTEM} (it leaves such a message out)")
        self._takes_system = True

    def opening(self) -> list[int]:
        """Return the ids up to where a user's first message begins: the model then invents a question.

        This is how Magpie makes prompts (Xu et al. 2024, arXiv 2406.08464).

        Raises:
            UserError: there is no chat template, or it writes nothing before the message.
        """
        if self.tokenizer.chat_template is None:
            raise UserError("distill.invented: this model's tokenizer has no chat template to put a question into")
        whole = self._text([{"role": "user", "content": MARK}], answer=False)
        ids = self._ids(whole.partition(MARK)[0])
        if not ids:
            raise UserError("distill.invented: this model's chat template says nothing before a question")
        return ids

    def _text(self, messages: list[dict[str, str]], *, answer: bool) -> str:
        """Return the text that the template makes of a conversation; with `answer`, up to where the answer begins."""
        template = self.tokenizer.chat_template
        if template == TINY_TEMPLATE:  # our own, which needs no limits
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)
            assert isinstance(text, str)
            return text
        if isinstance(template, dict) and "default" not in template:
            raise UserError(f"of the model's chat templates ({', '.join(template)}) none is called default")
        template = template["default"] if isinstance(template, dict) else template
        if not isinstance(template, str):
            raise UserError(f"the model's chat template is no text, but {type(template).__name__}")
        return render(template, messages, self.tokenizer.special_tokens_map, answer=answer)

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if half := lone_surrogate(text):
            raise UserError(f"a text holds half of a character ({half}), which cannot be encoded: take it out")
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text
