"""From a conversation to token ids, with the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from selfdraft.core.errors import UserError


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation up to where the model's answer begins.

        Args:
            turns: (role, text) pairs, role `user` or `assistant`, the last one the user's.
        """
        if self.tokenizer.chat_template is None:  # a base model: its texts, one after the other
            return self.tokenizer("\n\n".join(text for _, text in turns))["input_ids"]
        messages = [{"role": role, "content": text} for role, text in turns]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def opening(self) -> list[int]:
        """Ids up to where a user's first message begins: what a model goes on with is a question of its own making.

        Magpie's way to prompts (Xu et al. 2024, arXiv 2406.08464).

        Raises:
            UserError: there is no chat template, or it says nothing before the message.
        """
        if self.tokenizer.chat_template is None:
            raise UserError("distill.invented: this model's tokenizer has no chat template that a question stands in")
        mark = "selfdraft marks the place"
        whole = self.tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        ids = self.tokenizer(whole.partition(mark)[0], add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError("distill.invented: this model's chat template says nothing before a question")
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)
