"""What every drafter is: `propose` a tree, `observe` what became of it.

A drafter knows nothing of caches, masks, timing or acceptance. What it remembers about a request stands in
``context.memory``, so one drafter serves any number of requests at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from selfdraft.core.options import Options
from selfdraft.core.tree import TokenTree
from selfdraft.models.target import Target


@dataclass
class Context:
    """One request, as its drafter sees it.

    Attributes:
        row: the cache row that the request lives in.
        tokens: prompt and emitted tokens; the last one is the root of the next step's tree.
        prompt_length: how many of them are the prompt.
        room: the deepest node that could still be emitted before the length limit; drafting deeper is wasted.
        rng: the request's own generator, so that its draft does not depend on what else runs.
        memory: the drafter's own.
    """

    row: int
    tokens: list[int]
    prompt_length: int
    room: int
    rng: np.random.Generator
    memory: Any = None


@dataclass(frozen=True)
class Draft:
    """A proposal: the tree, and where it came from (for records and viewers)."""

    tree: TokenTree
    source: str = ""


@dataclass(frozen=True)
class Step:
    """What became of a draft.

    Attributes:
        draft: as proposed (cut to what could still be emitted).
        logits: (n + 1, V) on the target's device, after the root and after each node.
        predictions: (n + 1,) int64 on the CPU, their argmax.
        path: indices of the accepted nodes.
        emitted: the tokens that the step added: the accepted ones and the bonus, up to a stop.
    """

    draft: Draft
    logits: Tensor
    predictions: Tensor
    path: tuple[int, ...]
    emitted: tuple[int, ...]


@dataclass
class DrafterConfig(Options):
    """Base of every drafter's options, which stand in its own file."""

    group: ClassVar[str] = "drafter"
    name: str = "none"


class Drafter(ABC):
    """Base class. A new drafter is a file beside this one, a YAML in conf/drafter and a line in drafters/__init__.

    Attributes:
        Config: the class of its options; the schema of its YAML.
    """

    Config: ClassVar[type[DrafterConfig]]

    def __init__(self, target: Target, config: DrafterConfig) -> None:
        self.target, self.config = target, config

    def start(self, context: Context) -> None:  # noqa: B027  (optional)
        """A request begins: put what is to be remembered about it into ``context.memory``."""

    @abstractmethod
    def propose(self, context: Context) -> Draft:
        """The tree to verify next, at most ``context.room`` deep."""

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """One draft a context. Overridden by drafters that gain from running the model on all of them at once."""
        return [self.propose(context) for context in contexts]

    def observe(self, context: Context, step: Step) -> None:  # noqa: B027  (optional)
        """The step is done, and ``context.tokens`` holds what it emitted."""
