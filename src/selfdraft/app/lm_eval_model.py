"""The model `selfdraft` of lm-evaluation-harness: `hf`, with answers that are decoded with a drafter.

Everything but the decoding of answers is the harness's own model for transformers: loading, prompts, log-likelihoods by
the stock model, batches, and how answers are cut at stop strings. So the scores of the two models can be compared, and
are equal if decoding is lossless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from selfdraft.app.drafting import Drafting
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.specs import GUARDED, spec_of
from selfdraft.models.engines.choice import AUTO
from selfdraft.models.loading.embedded import smollm2_135m

EMBEDDED = "embedded"  # the name of the default model
DRAFTER = "pool"
ENDLESS = 1 << 30  # tokens: only stop strings are looked for


@register_model("selfdraft")
class SelfDraftLM(HFLM):
    """The harness's `hf` model, whose answers are decoded with a drafter.

    Attributes:
        drafter: the drafter with its options, or the artifact, as it was given.
        drafting: decodes the answers.
        counts: `answers`, `new_tokens` and `target_forwards` (after the prefill) of all answers so far.
    """

    def __init__(
        self,
        pretrained: Any = EMBEDDED,
        *,
        drafter: str | None = None,
        artifact: str | None = None,
        engine: str = AUTO,
        packed: bool = True,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: a folder or hub id, `embedded` for the default model, or a model that is loaded already.
            drafter: with its options, as a contender of task=compare is written; by default `pool`.
            artifact: the `drafter.yaml` that `task=calibrate` or `task=finetune` wrote, or its folder.
            engine, packed: see `Drafting`.
            options: of the harness's `hf` model, such as `dtype`, `device`, `peft` and `batch_size`.

        Raises:
            UserError: the drafter cannot be read, or an option does not go with drafts.
        """
        self.drafter = artifact or drafter or DRAFTER
        self.drafting = _drafting(drafter, artifact, engine=engine, packed=packed)
        self.counts: Counter[str] = Counter()
        if options.get("mixed_precision_dtype") is not None:
            raise UserError("mixed_precision_dtype does not go with drafts: give dtype, in which the whole model runs")
        if options.get("device") is None:  # the harness would take "cuda", whether there is one or not
            options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        if isinstance(pretrained, str) and pretrained == EMBEDDED:
            pretrained = str(smollm2_135m())
        super().__init__(pretrained=pretrained, **options)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness records of a model, and what the drafter accepted in this run."""
        return {**super().get_model_info(), "selfdraft": {"drafter": self.drafter, **self.counts, **self._rate}}

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Return prompts and answers; called by `generate_until` for each batch.

        Args:
            context: (B, L) ids, padded on the left. max_length: tokens of prompts and answers, at most.
            stop: texts that end an answer. The harness's own criteria for them keep state from token to token.
            options: of transformers' `generate`.

        Raises:
            UserError: an option of the task does not go with drafts, such as beams.
        """
        ends = _until(stop, self.tokenizer.decode, context.shape[1])

        def drafted(
            model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **more
        ) -> Tensor:
            criteria = [*stopping_criteria, *ends]
            return self.drafting(model, input_ids, logits_processor, criteria, generation_config, **more)

        written = super()._model_generate(context, max_length, [], custom_generate=drafted, **options)
        if (last := self.drafting.last) is not None:
            self.counts.update(answers=last.rows, new_tokens=last.new_tokens, target_forwards=last.target_forwards)
        return written

    @property
    def _rate(self) -> dict[str, float]:
        forwards = self.counts["target_forwards"]
        return {"tokens_per_forward": self.counts["new_tokens"] / forwards} if forwards else {}


def _drafting(drafter: str | None, artifact: str | None, *, engine: str, packed: bool) -> Drafting:
    """Return the object that decodes, for a drafter in one line or for an artifact."""
    if artifact is not None:
        if drafter is not None:
            raise UserError("give drafter or artifact, not both")
        return Drafting.from_artifact(artifact, engine=engine, packed=packed)
    spec = spec_of(drafter or DRAFTER)
    if spec.guarded:
        raise UserError(f"drafter={one_line(drafter)}: {GUARDED} drafters are for task=compare; leave the word out")
    drafting = Drafting(engine=engine, packed=packed)
    drafting.config = spec.config
    return drafting


def _until(stop: list[str], decode: Callable[..., str], prompt: int) -> list[Callable[..., Tensor]]:
    """Return a criterion of `generate` that ends an answer as soon as it has one of the texts; none without texts.

    Args:
        decode: the tokenizer's; special tokens count, because the harness gives the end of sequence as a text.
        prompt: L, the number of ids before an answer.
    """
    texts = tuple(text for text in stop if text)
    if not texts:
        return []
    rule = Stopping(frozenset(), ENDLESS, texts, lambda ids: decode(list(ids)))

    def ends(ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        answers = [row[prompt:].tolist() for row in ids]
        return torch.tensor([bool(rule.cut(answer[:-1], answer[-1:])[1]) for answer in answers])

    return [ends]
