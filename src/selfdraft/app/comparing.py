"""A comparison from Python, without Hydra: the contenders, measures and table of task=compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from selfdraft.app.options.schema_score import ScoreConfig
from selfdraft.app.tasks.compare import contenders_of
from selfdraft.app.tasks.score import all_in_words, scores_of
from selfdraft.app.terminal.console import make_console
from selfdraft.core.errors import UserError
from selfdraft.core.scoring import reference_of
from selfdraft.data.prompts import Prompt
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.stopping import Stopping
from selfdraft.models.engines.choice import AUTO, use_engine
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import LoadedModel, StockModel, ends_of
from selfdraft.models.measuring.profiling import costs_on
from selfdraft.models.reference.others import OTHERS
from selfdraft.models.reference.stock import StockGenerate
from selfdraft.modules.bench import Bench
from selfdraft.modules.first_turns import Asked, compare_first_turns
from selfdraft.tracking.display.leaderboard import print_comparison, rows_of
from selfdraft.tracking.numbers.comparison import summarize_comparison
from selfdraft.tracking.numbers.lines import CONTENDERS


def compare(
    model: StockModel,
    tokenizer: Any,
    prompts: Sequence[str],
    contenders: Sequence[str] = ("none", "jacobi", "pool"),
    *,
    answers: Sequence[str] = (),
    max_new_tokens: int = 128,
    repeats: int = 1,
    engine: str = AUTO,
    quiet: bool = False,
) -> pd.DataFrame:
    """Let several contenders answer the same prompts greedily, in turn, and rank them.

    Args:
        model: of transformers, in eval mode. It stays as it is.
        tokenizer: its tokenizer; with a chat template, prompts are a user's messages.
        prompts: texts. Give several, as intervals are drawn over them.
        contenders: see `task.contenders`: drafters with their options, and transformers' decoders. Plain decoding,
            `none`, always takes part.
        answers: the right answer to each prompt, if the answers are to be scored. A number is compared with the final
            number of a text, another expression with the last one that the text boxes.
        max_new_tokens: tokens of an answer, at most.
        repeats: how often each contender decodes every prompt; medians count.
        engine: see `model.engine`.
        quiet: whether nothing is printed.

    Returns:
        A row for each contender, the fastest first: tokens per forward, tokens per second of decoding and with prefill,
        the speedup over all tokens with its 95 % interval, the median by prompt, and counts of the certificates.
        With `answers`, `score` is the share of right ones.

    Raises:
        UserError: a contender cannot be read or does not fit the model; a prompt is longer than the model allows; there
            is no prompt; there are not as many answers as prompts.
    """
    specs, references = contenders_of(list(contenders), "contenders")
    if other := [name for name in references if name in OTHERS]:
        raise UserError(f"{other[0]} is compared by task=compare, which starts its process")
    if not prompts:
        raise UserError("compare: give at least one prompt")
    if answers and len(answers) != len(prompts):
        raise UserError(f"compare: give one answer for each prompt; there are {len(answers)} for {len(prompts)}")
    console, chat, ends = make_console(quiet=quiet), Chat(tokenizer), ends_of(model, tokenizer)
    target = target_of(model)
    said = use_engine(target, engine, tell=console.print)
    costs, stopping = costs_on(target), Stopping(ends, max_new_tokens)
    bench = Bench(
        chat=chat,
        decoders={name: Decoder(target, spec.drafter(target, costs), stopping) for name, spec in specs.items()},
        certifier=Certifier(target),
        references={
            name: StockGenerate(LoadedModel(model, tokenizer, ends), name, max_new_tokens) for name in references
        },
        engine=said,
    )
    asked = [Asked(str(n), "prompts", chat.encode([("user", prompt)])) for n, prompt in enumerate(prompts, start=1)]

    def tell(done: int) -> None:
        console.print(f"{done} of {len(asked)} prompts", end="\r" if console.is_terminal else "\n")

    lines = compare_first_turns(bench, asked, repeats=repeats, tell=tell)
    label = str(getattr(model.config, "model_type", "model"))
    result = summarize_comparison(lines, seed=0, task="compare", model=label, dataset="your prompts", engine=said)
    scores = None
    if answers:
        known = [
            Prompt(one.id, one.family, (prompt,), reference=reference_of(answer))
            for one, prompt, answer in zip(asked, prompts, answers, strict=True)
        ]
        written = [{**line, "text": chat.decode(line["output_ids"])} for line in lines]
        scores = scores_of(written, known, chat.decode, ScoreConfig())
    for name, share in scores[1].items() if scores else ():
        result[CONTENDERS][name]["score"] = share
    print_comparison(result, console)
    if scores:
        console.print(all_in_words(*scores))
    columns, rows = rows_of(result)
    return pd.DataFrame(rows, columns=columns)
