"""Try model families, and write the table of those that work:  python scripts/families.py [FAMILY ...] [--out FILE]

A family is a model type that transformers has a causal language model for. Each is made with small sizes and random
weights in float32, and decodes a few prompts greedily with one drafter of every kind. The text must be that of
transformers' own `generate`. A family that is refused, cannot be made small or crashes is a row of the table, too: each
is tried in a forked process. Without names, all families are tried. The exit
status is 1 if a text is wrong or a drafter crashes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from rich.progress import track
from transformers import PreTrainedModel

from selfdraft.app.terminal.console import make_console
from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.errors import UserError
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.loading.small import WINDOW, NoText, TooLarge, families, small_model
from selfdraft.models.loading.tiny import FAMILIES
from selfdraft.models.reference.stock import StockGenerate
from selfdraft.tracking.files.atomic import write_text_atomic

ROOT = Path(__file__).parents[1]
SECONDS = 180  # for one family
NEW_TOKENS = 10
PROMPTS = [[5, 17, 3, 60, 42], [7, 33, 81, 2, 14, 27, 55, 90, 1, 68, 12, 44, 9, 23, 71, 38, 2, 14, 27]]
DRAFTERS: dict[str, Callable[[], DrafterConfig]] = {
    "jacobi": lambda: configured("jacobi", window=4, refine_steps=2),
    "pool": lambda: configured("pool", costs="flat", max_nodes=12),
    "layer_skip": lambda: configured("layer_skip", sparsity=0.3, draft_length=3),
    "swift": lambda: configured("swift", draft_length=3, context_window=8, min_confidence=0.0),
    "early_exit": lambda: configured("early_exit", exit_layer=3, bonus="keep", draft_length=3),
    "width_skip": lambda: configured("width_skip"),
    "sparse_kv": lambda: configured("sparse_kv", sink=1, recent=4),
    "pseudo_tokens": lambda: configured("pseudo_tokens", branches=2, nodes=8, costs="flat"),
}
COLUMNS = ["plain", *DRAFTERS, "batch", "bfloat16"]
WHICH = """\
A family is in the table if transformers' `AutoModelForCausalLM` has a class for it: a model that writes on from a text.
These are left out:

- encoder-decoders without such a class (T5, M2M-100): what they write depends on an input that an encoder reads,
- encoders without one (DistilBERT, DeBERTa): they fill gaps in a text, and write none,
- models of images and sound for which transformers has another kind of class only (LLaVA, Qwen2-VL).

Three kinds are in the table with a part of what they can do:

- Encoder-decoders with such a class (BART, mBART, Marian, Pegasus, Whisper). That class is the decoder by itself, so
  only the decoder was tried: no encoder runs, and attention to one is left out. The whole encoder-decoder, such as
  `BartForConditionalGeneration`, is refused, and so is a checkpoint whose configuration has `is_encoder_decoder=true`.
- Encoders with such a class (BERT, ELECTRA). They were tried with `is_decoder=true`: a token sees only those before it.
  A checkpoint without that is refused, because its tokens see later ones, too.
- Models with such a class that also read images or sound (Gemma 3, Llama 4). They were tried on text.
"""


@dataclass
class Row:
    """What was found of one family.

    Attributes:
        kind: `driven`, `refused` or `not tried`.
        reason: of a refusal, or why it was not tried; empty for a driven family.
        cells: by column, its tokens per forward, or what is wrong with it.
        within: whether its layers run within the model's own forward.
    """

    family: str
    kind: str = "driven"
    reason: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    within: bool = False


def tried(family: str) -> Row:
    """Try one family with every drafter."""
    model: PreTrainedModel | None = None
    try:
        model = small_model(family)
        stock = StockGenerate(LoadedModel(model, None, frozenset()), "transformers_greedy", NEW_TOKENS)
        expected = [stock.decode(prompt).output for prompt in PROMPTS]
    except UserError as refusal:
        return Row(family, "refused", short(str(refusal)))
    except (NoText, TooLarge) as error:
        return Row(family, "not tried", str(error))
    except Exception as error:  # transformers' own, which say nothing about us
        try:
            if model is not None:
                target_of(model)
        except UserError as refusal:
            return Row(family, "refused", short(str(refusal)))
        return Row(family, "not tried", f"{type(error).__name__}: {first_line(error)}")
    try:
        target = target_of(model)
    except UserError as refusal:
        return Row(family, "refused", short(str(refusal)))
    row = Row(family, within=target.whole is not None or isinstance(target, StatefulTarget))
    ways: dict[str, Callable[[], str]] = {
        name: partial(cell, target, config, expected)
        for name, config in {"plain": lambda: configured("none"), **DRAFTERS}.items()
    }
    ways["batch"] = partial(cell, target, DRAFTERS["pool"], expected, rows=len(PROMPTS))
    ways["bfloat16"] = partial(cell_in_bfloat16, family)
    for name, way in ways.items():
        try:
            row.cells[name] = way()
        except UserError as refusal:
            row.cells[name] = f"refused: {refusal}"
        except Exception as error:
            row.cells[name] = f"**{type(error).__name__}**: {first_line(error)}"
    return row


def decoded(target: Target, config: DrafterConfig, rows: int = 1) -> list[Generation]:
    """Return the answers of a drafter to all prompts, `rows` of them at once."""
    costs = Costs(lambda path: CostCurve((1, 64), (1.0, 1.5)))
    drafter, stopping = drafter_for(target, config, costs), Stopping(frozenset(), NEW_TOKENS)
    return Decoder(target, drafter, stopping, batch_size=rows).answer([Request(prompt) for prompt in PROMPTS])


def cell(target: Target, config: Callable[[], DrafterConfig], expected: list[list[int]], rows: int = 1) -> str:
    """Return the tokens per forward of a drafter, or that a text is not the expected one."""
    runs = decoded(target, config(), rows)
    return per_forward(runs) if [run.output for run in runs] == expected else "**differs**"


def cell_in_bfloat16(family: str) -> str:
    """Return the tokens per forward of the pool on the family's model in bfloat16, or that a text is no tie."""
    target = target_of(small_model(family, torch.bfloat16))
    runs, certifier = decoded(target, DRAFTERS["pool"]()), Certifier(target)
    pairs = zip(PROMPTS, runs, strict=True)
    verdicts = {certifier.by_stock_with_ties(prompt, run.output).verdict for prompt, run in pairs}
    return "**differs**" if "mismatch" in verdicts else per_forward(runs)


def per_forward(runs: list[Generation]) -> str:
    """Return the tokens per forward of the target, for a cell."""
    tokens, forwards = (sum(getattr(run.counts, n) for run in runs) for n in ("new_tokens", "target_forwards"))
    return f"{tokens / forwards:.2f}"


def short(refusal: str) -> str:
    """Return the reason in the message that refuses a family."""
    return refusal.partition("is not supported: ")[2].partition("; supported are")[0] or refusal


def first_line(error: BaseException) -> str:
    """Return the first line with text of an exception's message, for a cell of the table."""
    return next((line for line in str(error).splitlines() if line.strip()), "").replace("|", "/")[:90]


def in_its_own_process(family: str) -> Row:
    """Try a family in a forked process, which may crash or take too long."""

    def work(end: Connection) -> None:
        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        end.send(tried(family))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return ours.recv()
        return Row(family, "not tried", f"it took more than {SECONDS} seconds")
    except EOFError:
        process.join()
        return Row(family, "not tried", f"the process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def page(rows: list[Row], command: str) -> str:
    """Return the page."""
    driven, refused, missed = ([r for r in rows if r.kind == kind] for kind in ("driven", "refused", "not tried"))
    cells = [cell for row in driven for cell in row.cells.values()]
    right = sum(cell[0].isdigit() for cell in cells)
    wrong = sum(cell.startswith("**") for cell in cells)
    names, notes = COLUMNS, []
    lines = [
        "# Model families",
        "",
        f"```bash\n{command}    # writes this page\n```",
        "",
        f"Which of transformers' causal language models work with SelfDraft? Of {len(rows)} families (model types), "
        f"**{len(driven)} work**, {len(refused)} are refused with a reason, and {len(missed)} were not tried, because "
        "they write no text by themselves, or no small model of them could be made or run. To try your own model: "
        "`python run.py task=doctor model=hf model.path=<folder>`.",
        "",
        "Each family was tried with a random model of four small layers. Windows and chunks of its attention, if it "
        f"has any, have {WINDOW} tokens, and an indexer chooses as many keys: transformers {transformers.__version__}, "
        f"torch {torch.__version__.partition('+')[0]}, float32 on a CPU.",
        "",
        "## Which families these are",
        "",
        *WHICH.splitlines(),
        "",
        "## Families that work",
        "",
        "Each column is a drafter. A number means that it works: every output is, token for token, that of "
        "transformers' own greedy `generate`. The number is the tokens per forward of the target, over "
        f"{len(PROMPTS)} prompts of {NEW_TOKENS} new tokens: above 1, drafts were accepted. It says nothing about "
        "speed, because the models are random.",
        "",
        "- `batch` is `pool` with all prompts at once.",
        "- `bfloat16` is `pool` on the model in that dtype. There texts may differ after a tie that a float32 copy "
        "confirms.",
        "- *Italics*: the nine families of the test suite, which are also run with sampling and every option.",
        "- °: layers of the family run within the model's own forward. It takes `model.engine=eager` only, and no "
        "training.",
        "- **differs**: the text is wrong. *refused*: the note below the table says why.",
        "",
        f"Of {len(cells)} cells, {right} are right, {wrong} are wrong and {len(cells) - right - wrong} are refused.",
        "",
        "| family | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in driven:
        told = []
        for name in names:
            cell = row.cells[name]
            if cell.startswith("refused: "):
                reason = re.sub(r"model family '[^']*'", "model family …", cell.removeprefix("refused: "))
                notes += [reason] * (reason not in notes)
                cell = f"refused ({notes.index(reason) + 1})"
            told.append(cell)
        label = f"*{row.family}*" if row.family in FAMILIES else f"{row.family}{' °' * row.within}"
        lines.append(f"| {label} | " + " | ".join(told) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    for title, some in (("Refused", refused), ("Not tried", missed)):
        lines += ["", f"## {title}", "", "| families | reason |", "|---|---|"]
        for reason in dict.fromkeys(row.reason for row in some):
            lines.append(f"| {', '.join(row.family for row in some if row.reason == reason)} | {reason} |")
    return "\n".join(lines).strip() + "\n"


def refuse_unwritable(file: Path) -> None:
    """Check that a file can be written, before anything takes time.

    Raises:
        UserError: it is a folder, or its folder does not exist.
    """
    if file.is_dir():
        raise UserError(f"--out {file}: there is a folder where a file is needed")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: the folder {file.parent} does not exist")


@one_line_script("families")
def main(arguments: list[str]) -> None:
    """Try the families, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model types of transformers (default: all)")
    default = ROOT / "docs" / "families.md"
    parser.add_argument("--out", type=Path, default=default, metavar="FILE", help="default: docs/families.md")
    given = parser.parse_args(arguments)
    known = families()
    if unknown := [name for name in given.families if name not in known]:
        raise UserError(f"there is no family {unknown[0]!r} in transformers {transformers.__version__}")
    refuse_unwritable(given.out)
    names, console = given.families or known, make_console()
    rows = [in_its_own_process(name) for name in track(names, description="families", console=console)]
    command = " ".join(["python scripts/families.py", *given.families])
    write_text_atomic(given.out, page(rows, command))
    wrong = [row.family for row in rows if any(cell.startswith("**") for cell in row.cells.values())]
    console.print(f"{sum(row.kind == 'driven' for row in rows)} of {len(rows)} families are driven: {given.out}")
    if wrong:
        console.print(f"with wrong texts or errors: {', '.join(wrong)}")
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
