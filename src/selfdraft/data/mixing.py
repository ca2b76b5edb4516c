"""A mixture of sources of prompts and plain texts, by weight, without the prompts of held-out families."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded_name
from selfdraft.data.prompts import INVENTED, Prompt, to_invent
from selfdraft.data.sources import load_bundled, load_humaneval, load_jsonl

DATASET = "dataset"  # the source that is the run's own dataset
TEXT = "text:"  # begins the name of a file of plain texts
PACKAGED = {"bundled": load_bundled, "humaneval": load_humaneval}
HOW = (
    f"a source is {DATASET}, {INVENTED}, {', '.join(PACKAGED)}, a file of prompts, or {TEXT}<file of plain texts>, "
    'with a weight after it if that is not 1, e.g. "prompts.jsonl 2"'
)


@dataclass(frozen=True)
class Source:
    """One entry of `distill.sources`: the name of a source, and its share relative to the other sources."""

    name: str
    weight: float

    @staticmethod
    def parse(entry: str) -> Source:
        """Return the source of an entry "NAME" or "NAME WEIGHT".

        Raises:
            UserError: there is no name, or the weight is not positive.
        """
        words = entry.rsplit(maxsplit=1)
        weight = 1.0
        if len(words) == 2:
            with suppress(ValueError):  # a file name with a space in it has no weight after it
                entry, weight = words[0], float(words[1])
        if not entry.strip() or not 0 < weight < math.inf:
            raise UserError(f"distill.sources: {entry!r:.80} with weight {weight:g} cannot be used: {HOW}")
        return Source(entry.strip(), weight)


@dataclass(frozen=True)
class Mixture:
    """What a run writes: answers to `prompts`, and `texts` as they are, by id; `counts`: how many of each source."""

    prompts: list[Prompt]
    texts: dict[str, str]
    counts: dict[str, int]


def refuse_unknown(prompts: Iterable[Prompt], held_out: Collection[str]) -> None:
    """Refuse a held-out name that no prompt has as its family or category, because a slip would hold out nothing.

    Raises:
        UserError: there is such a name; the message has the names that there are.
    """
    present = {name for prompt in prompts for name in (prompt.family, prompt.category)}
    if unknown := [name for name in held_out if name not in present]:
        raise UserError(
            f"distill.held_out: no prompt has the family or category {', '.join(unknown)}; present are "
            f"{', '.join(sorted(present))}"
        )


def without(prompts: Sequence[Prompt], held_out: Collection[str]) -> list[Prompt]:
    """Return the prompts whose family and category are not among `held_out`."""
    return [prompt for prompt in prompts if prompt.family not in held_out and prompt.category not in held_out]


def mixed(
    entries: Sequence[str], dataset: Sequence[Prompt], *, total: int | None, held_out: Collection[str], seed: int
) -> Mixture:
    """Mix sources by their weights.

    Args:
        entries: see `Source.parse`. dataset: the prompts of the source `dataset`.
        total: number of prompts and plain texts in all; a source that has too few gives all that it has. None: as many
            as possible without changing the shares.
        held_out: families or categories of which no prompt is taken.
        seed: chooses the prompts of each source that does not give all of its own.

    Raises:
        UserError: a source cannot be read, is named twice or has no prompts left, no source has a held-out family, or
            `total` is needed but None.
    """
    sources = [Source.parse(entry) for entry in entries]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"distill.sources names {max(names, key=names.count)!r:.80} twice: give it a weight instead")
    found = {name: _read(name, dataset) for name in names if name != INVENTED}
    refuse_unknown(chain.from_iterable(found.values()), held_out)
    there = {name: without(prompts, held_out) for name, prompts in found.items()}
    for name, prompts in there.items():
        if not prompts:
            raise UserError(f"distill.sources: {name} has no prompts besides those of distill.held_out")
    if total is not None:
        scale = total / sum(source.weight for source in sources)
    elif there:
        scale = min(len(there[source.name]) / source.weight for source in sources if source.name in there)
    else:
        raise UserError("distill.prompts is needed: the model would invent prompts without end")
    prompts, texts, counts = list[Prompt](), dict[str, str](), dict[str, int]()
    stems = [Path(name).stem for name in names]
    for place, source in enumerate(sources):
        wanted = max(round(scale * source.weight), 1)
        if source.name == INVENTED:
            chosen = to_invent(wanted, seed)
        else:
            every = there[source.name]
            picked = random.Random(f"{seed}/{source.name}").sample(range(len(every)), min(wanted, len(every)))
            chosen = [every[number] for number in sorted(picked)]
            if source.name != DATASET:  # files may use the same ids, and folders the same names of files
                stem = stems[place] if stems.count(stems[place]) == 1 else f"{stems[place]} {place + 1}"
                chosen = [replace(prompt, id=f"{stem}/{prompt.id}") for prompt in chosen]
        counts[source.name] = len(chosen)
        if source.name.startswith(TEXT):
            texts |= {prompt.id: prompt.turns[0] for prompt in chosen}
        else:
            prompts += chosen
    return Mixture(prompts, texts, counts)


def _read(name: str, dataset: Sequence[Prompt]) -> Sequence[Prompt]:
    if name == DATASET:
        return dataset
    if name in PACKAGED:
        return PACKAGED[name]()
    return load_jsonl(expanded_name(name.removeprefix(TEXT), "distill.sources"))
