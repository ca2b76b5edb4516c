"""The options that all recipes of fine-tuning have: texts, how long and how fast to train, and the size of a draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.options import Options, choice_name, option

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass
class RecipeConfig(Options):
    """Options that all recipes have.

    Training stops by `steps`, `minutes` or `patience`, whichever comes first.
    """

    config_group: ClassVar[str] = "finetune"
    name: str = choice_name("")
    data: list[str] = option(
        [],
        help="the texts to train on: folders of task=distill_data (the model's own answers, which drafts have to "
        "match), or datasets of texts; needed",
    )
    steps: int = option(300, at_least=1, help="training stops after this many steps")
    minutes: float | None = option(None, at_least=0.01, help="training stops after this many minutes; null: no limit")
    batch_size: int = option(4, at_least=1, help="rows of text in a step; fewer need less memory")
    accumulate: int = option(
        1,
        at_least=1,
        help="number of steps whose gradients are summed for one update; for larger batches than fit into memory",
    )
    length: int = option(256, at_least=16, help="tokens in a row; texts are packed one after another into rows")
    longest_prompt: int = option(128, at_least=1, help="longer prompts are cut to this many last tokens")
    answers_only: bool = option(False, help="true: learn from the answers only, not from the prompts")
    start: str | None = option(
        None, help="folder of an earlier training by this recipe, to begin with its weights; null: begin anew"
    )
    validation: float = option(
        0.1, at_least=0.001, at_most=0.9, help="share of the prompts that is not trained on but used for validation"
    )
    held_out: list[str] = option(
        [], help="folders of texts to validate on, as in data; data is then not divided, and all of it is trained on"
    )
    validate_every: int = option(
        50,
        at_least=1,
        help="number of steps between two validations; they count how many drafted tokens would be accepted",
    )
    patience: int = option(
        5, at_least=1, help="training stops after this many validations in a row without a better one"
    )
    block: int = option(4, at_least=1, help="number of tokens in a draft, as it is trained")
    rank: int = option(
        64,
        at_least=0,
        help="rank of the LoRA, the trained low-rank addition to each matrix; higher can learn more, and needs "
        "more memory",
    )
    alpha: float = option(64.0, at_least=0.001, help="the LoRA is multiplied by alpha / rank")
    vocabulary: int | None = option(
        None,
        at_least=2,
        help="draft from only this many token ids, the most frequent in the texts, to make drafting cheaper; null: all",
    )
    learning_rate: float = option(5e-4, at_least=0.0, help="highest learning rate, reached after the warmup")
    warmup: float = option(
        0.05, at_least=0.0, at_most=1.0, help="share of the steps, at the beginning, in which the learning rate rises"
    )
    remember: bool = option(
        True,
        help="true: keep the model's outputs for each text in memory, so that later epochs need not compute them "
        "again; false where memory is short",
    )
    precision: str = option(
        "32-true",
        choices=PRECISIONS,
        help="precision of the training: 32-true (float32) or bf16-mixed (bfloat16 products, faster on a GPU); "
        "weights are kept in float32",
    )

    def refuse_missing_layers(self, layers: int) -> None:
        """Check the layers that the options name against a model of `layers` layers, before it is loaded.

        Raises:
            UserError: the model does not have one of them.
        """
