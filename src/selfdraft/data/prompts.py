"""Prompts, and the choice of a run's prompts: by family, a number of each, up to a limit."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdraft.core.errors import UserError
from selfdraft.core.scoring import Reference

UNCATEGORIZED = "uncategorized"
MT_BENCH = "mt_bench"
INVENTED = "invented"
# Spec-Bench files list MT-bench under these eight names, yet report it as one of six equal tasks.
MT_BENCH_CATEGORIES = frozenset(
    {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
)


@dataclass(frozen=True)
class Prompt:
    """One conversation to answer.

    Attributes:
        id: unique among the prompts of one source.
        turns: the user's messages in order, at least one; the answers go in between. A message is empty only if the
            model is to invent the prompt.
        history: (role, text) pairs that come before the first turn, role `system`, `user` or `assistant`.
        reference: what the answer to the last turn is compared with; None if there is nothing.
        is_mt_bench: whether MT-bench's eight categories are counted as one family; false for datasets that use the same
            names for families of their own.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    history: tuple[tuple[str, str], ...] = ()
    reference: Reference | None = None
    is_mt_bench: bool = True

    @property
    def family(self) -> str:
        """The task under which this prompt is counted: `mt_bench` for its eight categories, otherwise the category."""
        return MT_BENCH if self.is_mt_bench and self.category in MT_BENCH_CATEGORIES else self.category

    @property
    def beginning(self) -> list[tuple[str, str]]:
        """The conversation up to the first turn, as (role, text) pairs."""
        return [*self.history, ("user", self.turns[0])]


def to_invent(count: int, seed: int) -> list[Prompt]:
    """Return `count` prompts of one turn that the model is to invent."""
    return [Prompt(f"{INVENTED} {seed}.{number}", INVENTED, ("",)) for number in range(count)]


def sampled(prompt: Prompt, samples: int) -> list[Prompt]:
    """Return one prompt for each answer to it; the first has the prompt's id, the others also a number."""
    return [prompt, *(replace(prompt, id=f"{prompt.id}, sample {number}") for number in range(2, samples + 1))]


def select(
    prompts: Sequence[Prompt],
    *,
    categories: Sequence[str] = (),
    per_category: int | None = None,
    skip_per_category: int = 0,
    limit: int | None = None,
    seed: int | None = None,
    shuffle: int | None = None,
) -> list[Prompt]:
    """Choose prompts, in these steps:

    1. `categories`: keep the named families or categories (empty: all).
    2. `skip_per_category` = n: leave out the first n of each family, so that a run does not train on the prompts on
       which another one is evaluated.
    3. `per_category` = n: keep n of each family, the first ones or, given a `seed`, a random choice that depends only
       on the seed and that family's own prompts.
    4. `limit` = n: keep the first n of the rest.
    5. `shuffle`: shuffle them with this seed; without it they stay in the order of `prompts`.

    Raises:
        UserError: no prompt has a given category, a number is below one, or there is no prompt to choose from.
    """
    for name, value in (("per_category", per_category), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1, or null to take every prompt.")
    if not prompts:
        raise UserError("There is no prompt to choose from; give a source with at least one prompt.")

    chosen = _of_categories(prompts, categories)
    if skip_per_category:
        held_out = {prompt.id for prompt in _of_each_family(chosen, skip_per_category, None)}
        chosen = [prompt for prompt in chosen if prompt.id not in held_out]
        if not chosen:
            raise UserError(f"skip_per_category is {skip_per_category}; no family has more prompts than that.")
    if per_category is not None:
        chosen = _of_each_family(chosen, per_category, seed)
    chosen = chosen[:limit]
    if shuffle is not None:
        random.Random(shuffle).shuffle(chosen)
    return chosen


def _of_categories(prompts: Sequence[Prompt], names: Sequence[str]) -> list[Prompt]:
    present = {prompt.family for prompt in prompts} | {prompt.category for prompt in prompts}
    unknown = [name for name in names if name not in present]
    if unknown:
        raise UserError(f"No prompt has the category {', '.join(unknown)}; present are {', '.join(sorted(present))}.")
    return [prompt for prompt in prompts if not names or prompt.family in names or prompt.category in names]


def _of_each_family(prompts: list[Prompt], count: int, seed: int | None) -> list[Prompt]:
    positions: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        positions.setdefault(prompt.family, []).append(position)

    kept: list[int] = []
    for family, members in positions.items():
        if seed is not None and count < len(members):
            # Each family has its own generator, so that adding a family does not change the choice in the others.
            members = random.Random(f"{seed}/{family}").sample(members, count)
        kept.extend(members[:count])
    return [prompts[position] for position in sorted(kept)]
