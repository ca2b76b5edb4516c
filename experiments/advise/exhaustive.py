"""How far is the drafter that task=advise names from the best of all, each of which decodes the same prompts?

    python experiments/advise/exhaustive.py [--prompts 20] [--tokens 64] [--model smollm2_135m] [OVERRIDES ...]

1. The advice, as task=advise finds it: its time is what a user waits.
2. The check: every candidate of the advice, in the sizes that were predicted best, and further drafters decode all
   prompts, in turn with plain decoding.

The advice's speedup is taken from the check, in which all drafters meet the same state of the machine. So its distance
from the best holds nothing of the drift between the two runs. A table of all follows, with what was predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from selfdraft.app.main import conf_folder
from selfdraft.app.options.schema_tasks import CANDIDATES
from selfdraft.app.options.schemas import Config, register_schemas
from selfdraft.app.options.typed_config import to_config
from selfdraft.app.runs.build import build_bench, settled, use_threads
from selfdraft.app.tasks.advise import found_by, result_of
from selfdraft.app.tasks.auto import advice_of
from selfdraft.app.terminal.errors import one_line_script
from selfdraft.app.terminal.help import register_help
from selfdraft.core.errors import UserError
from selfdraft.drafters.specs import Spec, spec_of
from selfdraft.modules.advisor import Advisor, asked_by, spread
from selfdraft.modules.bench import BASELINE
from selfdraft.tracking.display.advice import accepted_share
from selfdraft.tracking.numbers.comparison import ranking
from selfdraft.tracking.numbers.lines import CONTENDERS

MORE = ("swift", "clasp", "dynamic_exit", "cascade", "jacobi costs=flat", "pool sources=[suffix]")  # only in the check
CLOSE = 0.05  # the advised drafter should be within this of the best


def composed(overrides: list[str]) -> Config:
    """Return the configuration of task=advise with these overrides."""
    register_schemas()
    register_help(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return to_config(settled(compose("config", ["task=advise", "logger=none", *overrides])))


def minutes(begun: float) -> str:
    """Return the time since `begun`, in minutes."""
    return f"{(time.perf_counter() - begun) / 60:.1f} minutes"


def tell(what: str, done: int, total: int) -> None:
    """Print how far the work has come."""
    print(f"{what}: {done} of {total}", file=sys.stderr)


def checked(advisor: Advisor, more: list[str]) -> dict[str, Spec]:
    """Return the drafters of the check by their line: every candidate that can be used here, in its best size."""
    names = [forecast.name for forecast in advisor.forecasts.values()]
    names += [name for name in (*advisor.tried, *more) if name not in names]
    return {name: spec_of(name) for name in names}


def table(result: dict, predicted: dict[str, float], advised: str) -> list[str]:
    """Return the check as a Markdown table."""
    found = result[CONTENDERS]
    best = found[ranking(result)[0]]["speedup_total"]
    rows = [
        "| drafter | predicted | measured [95 % CI] | of the best | tokens per forward | accepted |",
        "|---|---|---|---|---|---|",
    ]
    for name in ranking(result):
        one, bounds = found[name], found[name]["speedup_total_interval"]
        share, expected = accepted_share(one), predicted.get(name)
        cells = [
            f"**{name}**" if name == advised else name,
            "–" if expected is None else f"{expected:.2f}×",
            f"{one['speedup_total']:.2f}× [{bounds['low']:.2f}, {bounds['high']:.2f}]",
            f"{one['speedup_total'] / best:.0%}",
            f"{one['tokens_per_forward']:.2f}",
            "–" if share is None else f"{share:.0%}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


@one_line_script("exhaustive")
def main(arguments: list[str]) -> None:
    """Print the advice, the table of the check, and how far the advice is from the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="prompts that all decode (default: 20)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: 64)")
    parser.add_argument("--model", default="smollm2_135m", help="choice of the group model (default: smollm2_135m)")
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES), help="those of the advice")
    parser.add_argument("--more", nargs="*", default=list(MORE), help="further drafters of the check")
    parser.add_argument("--confirmed", type=int, default=3, help="drafters that the advice confirms (default: 3)")
    parser.add_argument("--file", type=Path, help="JSON file to write the numbers to")
    parser.add_argument("overrides", nargs="*", help="further overrides, e.g. hardware.threads=2")
    given = parser.parse_args(arguments)
    if min(given.prompts, given.tokens, given.confirmed) < 1:
        raise UserError("--prompts, --tokens and --confirmed: at least 1")
    config = composed([f"model={given.model}", f"decoding.max_new_tokens={given.tokens}", *given.overrides])
    specs = {name: spec_of(name) for name in given.candidates}
    use_threads(config.hardware)
    begun = time.perf_counter()
    bench = build_bench(config, torch.device(config.hardware.torch_device), [], {BASELINE: spec_of(BASELINE)})
    prompts = asked_by(bench.chat, spread(config.dataset.load(), given.prompts))
    labels = {"task": "advise", "model": config.model.label, "dataset": config.dataset.name, "seed": config.seed}
    advisor = Advisor(bench, specs, prompts, labels, tell)
    found_by(advisor, tried=6, confirmed=given.confirmed)
    advice = advice_of(result_of(advisor), "task=advise")
    waited = minutes(begun)
    print(f"advice, after {waited}: {advice}", flush=True)
    begun = time.perf_counter()
    check = Advisor(bench, specs, prompts, labels, tell)
    result = check.confirm(checked(advisor, given.more))
    print(f"check: {len(prompts)} prompts, {given.tokens} tokens, {minutes(begun)}; engine: {bench.engine}\n")
    predicted = {forecast.name: forecast.speedup for forecast in advisor.forecasts.values()}
    print("\n".join(table(result, predicted, advice.drafter)))
    speeds = {name: one["speedup_total"] for name, one in result[CONTENDERS].items()}
    best = ranking(result)[0]
    share = 1 - speeds[advice.drafter] / speeds[best]
    verdict = "within" if share <= CLOSE else "NOT within"
    print(f"\n{advice.drafter} is {share:.1%} behind {best}: {verdict} {CLOSE:.0%} of the best")
    both = [name for name in predicted if name in speeds]
    errors = [abs(predicted[name] / speeds[name] - 1) for name in both]
    print(f"predictions of {len(errors)} drafters were off by {sum(errors) / max(len(errors), 1):.1%} on average")
    for name, reason in {**advisor.left_out, **check.left_out}.items():
        print(f"left out: {name}: {reason}")
    if advisor.crowded or check.crowded:
        print("warning: other programs kept this machine busy meanwhile: repeat this on a quiet one")
    for line in (wrong := [*advisor.wrong(), *check.wrong()]):
        print(f"NOT LOSSLESS: {line}")
    if given.file is not None:
        numbers = {"advice": advice.__dict__, "waited": waited, "predicted": predicted, "measured": speeds}
        given.file.write_text(
            json.dumps(
                {**numbers, "behind": share, "wrong": wrong, "crowded": advisor.crowded or check.crowded}, indent=1
            ),
            encoding="utf-8",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
