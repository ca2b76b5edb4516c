"""Write prompts about texts that the model wrote: summaries, translations, questions.

Prompts that a small model invents are short, and its answers copy little from them. Summaries and translations do, and
a draft has to learn that from texts which are not those that it is tested on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError

ASKED = (
    "Summarize: {text}",
    "Translate to German: {text}",
    "List the main points of this text: {text}",
    "Answer in one sentence: what is this text about? {text}",
    "Translate to English: {text}",
    "Rewrite this text in simple words: {text}",
)
JOINED = 3  # texts of which one in three prompts is made, as retrieved passages are


def prompts_about(texts: list[str]) -> list[dict]:
    """Return prompts in Spec-Bench's schema, one for each text; every third is about several texts in a row."""
    prompts = []
    for at in range(len(texts)):
        joined = " ".join(texts[at : at + JOINED]) if at % 3 == 0 else texts[at]
        asked = ASKED[at % len(ASKED)].format(text=joined)
        prompts.append({"question_id": at, "category": "reread", "turns": [asked]})
    return prompts


@one_line_script("reread")
def main(arguments: list[str]) -> None:
    """Read texts.jsonl of a distill_data run, and write a file of prompts."""
    parser = argparse.ArgumentParser(description=__doc__, usage="python experiments/jump/reread.py RUN FILE")
    parser.add_argument("run", type=Path, help="folder of a task=distill_data run")
    parser.add_argument("file", type=Path, help="where the prompts go, in Spec-Bench's schema")
    given = parser.parse_args(arguments)
    if given.file.exists():
        raise UserError(f"{given.file} exists already: name another file")
    file = given.run / "texts.jsonl"
    try:
        answers = [json.loads(line)["text"].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} was not written by task=distill_data: a line has no text") from None
    prompts = prompts_about([answer for answer in answers if answer])
    given.file.write_text("".join(json.dumps(each) + "\n" for each in prompts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
