"""Compare drafters with each other:  python scripts/paired.py FILE "pool" "pool sources=[suffix]" none [--per-family N]

Every drafter, given as its name and options, decodes each prompt in turn, in one process, with one model and one
measured cost curve; which drafter is first changes from prompt to prompt. So a drift of the machine's speed affects all
drafters alike. Separate runs against plain decoding do not ensure this, and it matters if drafters differ by a few
percent. The options of a drafter's path are given like its own, and ``path=`` names another path: "layer_skip
sparsity=0.3", "jacobi path=swift context_window=30".

FILE holds prompts as dataset=jsonl takes them, or is ``bundled``; their first turns are decoded greedily. For every
drafter, the ratio of its tokens per second to those of the first drafter is printed: the median over prompts and the
ratio over all tokens, with 95 % bootstrap intervals over prompts, and the median of each family. If ``none`` is among
the drafters, a line says why each of the others won or lost against it. The certificates compare the texts with plain
decoding; the exit status is 1 if there is a mismatch. ``guarded`` before a name adds the guard, which drafts only if
that pays: "guarded layer_skip sparsity=0.3".
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from selfdraft.app.errors import one_line_script
from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.core.statistics import paired_bootstrap
from selfdraft.data.prompts import select
from selfdraft.data.sources import load_bundled, load_jsonl
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import Drafter, DrafterConfig
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.presets import configured, drafter_for
from selfdraft.models.chat import Chat
from selfdraft.models.engines import AUTO as ENGINE_AUTO
from selfdraft.models.engines import ENGINES, use_engine
from selfdraft.models.loading import AUTO, DTYPES, fitting_dtype, load_embedded
from selfdraft.models.profiling import costs_on
from selfdraft.models.target import Target
from selfdraft.tracking.reason import reason

HEADER = (
    "| drafter | tokens per forward | tokens/s | times the first: median [95 % CI] | over all tokens [95 % CI] "
    "| exact / tie / mismatch |"
)
GUARDED = "guarded"
PLAIN, BUNDLED = "none", "bundled"


def drafter_of(spec: str, target: Target, costs: Costs) -> Drafter:
    """Return the drafter that a spec names."""
    drafter = drafter_for(target, config_of(spec), costs)
    return Guard(drafter) if spec.split()[0] == GUARDED else drafter


def config_of(spec: str) -> DrafterConfig:
    """Return the config of ``"[guarded] name option=value … path=name"``.

    Raises:
        UserError: there is no such drafter, path or option, or a value cannot be read or is out of its range.
    """
    words = spec.split()
    name, *options = words[words[:1] == [GUARDED] :] or [""]
    given: dict[str, Any] = {}
    for word in options:
        option, equals, value = word.partition("=")
        if not equals or option in ("", "name"):
            raise UserError(f"{spec!r:.80}: write option=value, not {word!r:.60}")
        try:
            given[option] = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index]
        except (YAMLError, OmegaConfBaseException, ValueError):
            raise UserError(f"{spec!r:.80}: the value of {option} cannot be read") from None
    path = given.pop("path", None)
    return configured(name, None if path is None else str(path), **given)


def measure(decoders: list[Decoder], prompts: list[list[int]], repeats: int = 1) -> list[list[Generation]]:
    """Decode every prompt with each drafter and keep the fastest of `repeats`; the first prompt warms up, uncounted."""
    runs: list[list[Generation]] = [[] for _ in decoders]
    for decoder in decoders:
        decoder.decode(prompts[0])
    for number, prompt in enumerate(prompts):
        tries: list[list[Generation]] = [[] for _ in decoders]
        for place in range(len(decoders) * repeats):
            which = (place + number) % len(decoders)
            tries[which].append(decoders[which].decode(prompt))
        for mine, found in zip(runs, tries, strict=True):
            mine.append(max(found, key=lambda run: rate([run])))
        print(f"{number + 1} of {len(prompts)}", file=sys.stderr)
    return runs


def rate(runs: list[Generation]) -> float:
    """Return the tokens per second over all runs: summed first, divided last."""
    return sum(run.counts.new_tokens for run in runs) / sum(run.clock.decode_s for run in runs)


def ratios(runs: list[Generation], first: list[Generation]) -> list[float]:
    """Return, for each prompt, the ratio of tokens per second to those of the first drafter."""
    return [rate([mine]) / rate([theirs]) for mine, theirs in zip(runs, first, strict=True)]


def by_family(spec: str, runs: list[Generation], first: list[Generation], families: list[str]) -> str:
    """Return a line of the table of medians; `families` has the family of every prompt."""
    found = np.array(ratios(runs, first))
    medians = [np.median(found[np.array(families) == family]) for family in dict.fromkeys(families)]
    return f"| {spec} | " + " | ".join(f"{median:.3f}" for median in medians) + " |"


def verdicts(certifier: Certifier, runs: list[Generation], plain: list[Generation]) -> Counter[str]:
    """Count the verdicts on the texts, compared with those of plain decoding."""
    pairs = zip(runs, plain, strict=True)
    return Counter(certifier.certify(run.prompt, run.output, alone.output).verdict for run, alone in pairs)


def row(spec: str, runs: list[Generation], first: list[Generation], found: Counter[str]) -> str:
    """Return a line of the table."""

    def overall(drawn: np.ndarray) -> float:
        return rate([runs[int(i)] for i in drawn]) / rate([first[int(i)] for i in drawn])

    median, total = (
        paired_bootstrap(ratios(runs, first), seed=0),
        paired_bootstrap(range(len(runs)), seed=0, statistic=overall),
    )
    forwards = sum(run.counts.target_forwards for run in runs)
    per_forward = sum(run.counts.new_tokens for run in runs) / forwards
    told = ["{:.3f} [{:.3f}, {:.3f}]".format(*interval) for interval in (median, total)]
    told.append(" / ".join(str(found[verdict]) for verdict in ("exact", "tie", "mismatch")))
    return f"| {spec} | {per_forward:.2f} | {rate(runs):.1f} | {' | '.join(told)} |"


def why(runs: list[Generation], plain: list[Generation]) -> str | None:
    """Return the line that says why a drafter won or lost against plain decoding."""
    depths = zip_longest(*(run.counts.acceptance_by_depth() for run in runs), fillvalue={})
    phases = runs[0].clock.seconds
    return reason(
        {
            "new_tokens": sum(run.counts.new_tokens for run in runs),
            "steps": sum(len(run.steps) for run in runs),
            "baseline_tokens_per_s": rate(plain),
            "phases_s": {phase: sum(run.clock.seconds[phase] for run in runs) for phase in phases},
            "acceptance_by_depth": [
                {name: sum(each.get(name, 0) for each in depth) for name in ("offered", "accepted")} for depth in depths
            ],
        }
    )


@one_line_script("paired")
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="prompts as dataset=jsonl takes them, or bundled: the package's own")
    parser.add_argument("drafters", nargs="+", metavar="DRAFTER", help='a name, or "name option=value …"')
    parser.add_argument("--per-family", type=int, default=8, help="prompts of each task family (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens, at most (default: 128)")
    parser.add_argument("--repeats", type=int, default=1, help="decode everything so often; the fastest counts (1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--engine", default=ENGINE_AUTO, choices=ENGINES, help="how layers run, as model.engine (auto)")
    parser.add_argument("--dtype", default=AUTO, choices=(AUTO, *DTYPES), help="of the model, as model.dtype (auto)")
    given = parser.parse_args(arguments)
    if min(given.per_family, given.tokens, given.repeats) < 1:
        raise UserError("--per-family, --tokens and --repeats: at least 1")
    for spec in given.drafters:  # before anything takes time
        config_of(spec)
    known = load_bundled() if str(given.file) == BUNDLED else load_jsonl(given.file)
    prompts = select(known, per_category=given.per_family)
    if given.device not in ("cpu", "cuda"):
        raise UserError(f"--device {given.device}: cpu or cuda")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible here; use --device cpu")
    device = torch.device(given.device)
    dtype = fitting_dtype(device) if given.dtype == AUTO else given.dtype
    loaded = load_embedded(dtype, device)
    target, chat, stopping = Target(loaded.model), Chat(loaded.tokenizer), Stopping(loaded.eos, given.tokens)
    engine = use_engine(target, given.engine, tell=lambda line: print(line, file=sys.stderr))
    costs = costs_on(target)
    decoders = [Decoder(target, drafter_of(spec, target, costs), stopping) for spec in given.drafters]
    ids = [chat.encode([("user", prompt.turns[0])]) for prompt in prompts]
    runs = measure(decoders, ids, given.repeats)
    timed = next((mine for spec, mine in zip(given.drafters, runs, strict=True) if spec == PLAIN), None)
    plain = Decoder(target, drafter_for(target, configured(PLAIN), costs), stopping)
    alone, certifier = timed or [plain.decode(prompt) for prompt in ids], Certifier(target)
    found = [verdicts(certifier, mine, alone) for mine in runs]
    where = f"{torch.get_num_threads()} threads" if given.device == "cpu" else torch.cuda.get_device_name()
    print(f"{len(prompts)} prompts, up to {given.tokens} tokens each, {dtype}, {where}; engine {engine}\n")
    print(HEADER + "\n" + "|---" * 6 + "|")
    for spec, mine, counted in zip(given.drafters, runs, found, strict=True):
        print(row(spec, mine, runs[0], counted))
    families = [prompt.family for prompt in prompts]
    names = list(dict.fromkeys(families))
    print("\n| median by family | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for spec, mine in zip(given.drafters, runs, strict=True):
        print(by_family(spec, mine, runs[0], families))
    if timed is not None:
        print()
        for spec, mine in zip(given.drafters, runs, strict=True):
            if spec != PLAIN:
                print(f"{spec}: {why(mine, timed)}")
    if any(counted["mismatch"] for counted in found):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
