"""Re-verify a finished run with transformers.generate only:  python scripts/check_lossless.py RUN_DIR

This uses no drafter, cache or loop of ours. It loads the model of the run's config.yaml with transformers, decodes
every prompt of prompts.jsonl greedily with `generate`, and compares the token ids. If they differ, it prints how
far our token is below the best one in the stock model's own logits. In float32 every prompt should agree; in bfloat16
near ties may not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.progress import track

from selfdraft.app.options.schemas import SCHEMAS, DecodingConfig, ModelConfig
from selfdraft.app.terminal.console import make_console
from selfdraft.app.terminal.errors import one_line_errors
from selfdraft.core.certificate import first_divergence
from selfdraft.core.errors import UserError
from selfdraft.models.reference.stock import StockGenerate
from selfdraft.tracking.files.plain import NotPlain, read_plain_yaml
from selfdraft.tracking.numbers.lines import read_measured


def model_of(run: dict) -> ModelConfig:
    """Return the run's model configuration."""
    known = {schema().name: schema for schema in SCHEMAS["model"]}
    options = run.get("model")
    if not isinstance(options, dict) or options.get("name") not in known:
        raise UserError(f"its model is none of {', '.join(known)}")
    return known[options["name"]].from_plain(options)


def configuration(path: Path) -> tuple[ModelConfig, DecodingConfig]:
    """Return the model and the decoding of a run's config.yaml.

    Raises:
        UserError: it has none, or the decoding is not plain greedy decoding.
    """
    try:
        run = read_plain_yaml(path)
        if not isinstance(run, dict) or not isinstance(run.get("decoding"), dict):
            raise NotPlain("it is no configuration of a run")
        if run["decoding"].get("name") != "greedy":
            raise UserError("only plain greedy runs can be compared with transformers.generate")
        return model_of(run), DecodingConfig.from_plain(run["decoding"])
    except (NotPlain, UserError) as error:
        raise UserError(f"{path}: {error}") from None


def margin(model: torch.nn.Module, prompt: list[int], output: list[int], ours: int) -> float:
    """Return the stock model's best logit minus that of our token, after `prompt` and `output`, by a plain forward."""
    logits = model(torch.tensor([[*prompt, *output]], device=model.device), logits_to_keep=1).logits[0, -1].float()
    return float(logits.max() - logits[ours])


@torch.inference_mode()
def check(folder: Path) -> int:
    """Print the differences and a summary; return 1 if there is a difference, else 0.

    Raises:
        UserError: the folder holds no finished greedy run.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "prompts.jsonl").is_file():
        raise UserError(f"{folder} holds no config.yaml and prompts.jsonl: give the folder of a run (hydra.run.dir)")
    model, decoding = configuration(folder / "config.yaml")
    if decoding.stop or decoding.min_new_tokens or decoding.repetition_penalty:
        raise UserError("only plain greedy runs can be compared with transformers.generate")
    lines = read_measured(folder)
    if not lines:
        raise UserError(f"{folder} holds no finished prompts: its prompts.jsonl has no complete line")
    loaded = model.load(torch.device("cpu"))
    stock = StockGenerate(loaded, "transformers_greedy", decoding.max_new_tokens)
    verdicts: Counter[str] = Counter()
    for line in track(lines, description="transformers.generate", console=make_console()):
        reference = stock.decode(line["prompt_ids"]).output
        index = first_divergence(line["output_ids"], reference)
        verdicts["same" if index is None else "different"] += 1
        if index is not None:
            where = f"{line['id']}, turn {line['turn'] + 1}: parts at token {index}"
            if index < len(line["output_ids"]):
                off = margin(loaded.model, line["prompt_ids"], reference[:index], line["output_ids"][index])
                where += f", where our token is {off:.4g} logits below the best"
            print(where)
    print(f"{verdicts['same']} of {len(lines)} outputs are those of transformers.generate, token for token")
    return int(verdicts["different"] > 0)


def main(arguments: list[str]) -> int:
    """Check the run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    given = parser.parse_args(arguments)
    with one_line_errors():
        return check(given.run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
