"""The interface of every drafter: `propose` a tree, then `observe` which nodes were accepted.

A drafter is a way to propose tokens (this file's `Drafter`) and, if it runs a part of the model for that, a path policy
(`paths.base`), which says which part. Neither knows anything about caches, masks, timing or acceptance. They keep their
state for each request in a dictionary by context, so one drafter serves any number of requests at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from selfdraft.core.costs import Costs
from selfdraft.core.options import Options, choice_name
from selfdraft.drafters.paths.base import PathConfig, PathPolicy
from selfdraft.drafters.step import Context, Draft, Step
from selfdraft.models.forward.protocol import TargetProtocol

COSTS = ("measured", "flat")  # a draft's size is chosen by the target's costs, or as if tokens cost nothing
COSTS_HELP = "measured (draft as many tokens as pay by the measured cost of a forward) or flat (draft all of them)"


@dataclass
class DrafterConfig(Options):
    """Base class of every drafter's options. Each drafter's file defines its own."""

    config_group: ClassVar[str] = "drafter"
    name: str = choice_name("none")

    @property
    def label(self) -> str:
        """Return the name that results are shown under."""
        return self.name

    @property
    def state(self) -> str:
        """Return whether state is kept between requests: `warm`, `cold` (it could be, but is not) or `none`."""
        warm = getattr(self, "warm", None)
        return "none" if warm is None else "warm" if warm else "cold"


@dataclass
class PathDrafterConfig(DrafterConfig):
    """Base class of the options of drafters that run a part of the model. `path` says which part, with its own options.

    Attributes:
        presets: names of the drafters that are this way to propose with a path, by the path's name.
    """

    presets: ClassVar[dict[str, str]] = {}
    path: PathConfig = field(default_factory=PathConfig)

    @property
    def label(self) -> str:
        """Return the preset's name, if this way to propose has one with this path."""
        return self.presets.get(self.path.name, f"{self.name}+{self.path.name}")

    @property
    def longest(self) -> int:
        """Return the most tokens that are drafted with the path before a verification."""
        raise NotImplementedError

    @property
    def reuses(self) -> bool:
        """Return whether verification goes on from what the path's leading layers computed."""
        return bool(getattr(self, "reuse", False))


class Drafter(ABC):
    """Base class. A subclass needs only `propose`; the other methods have defaults.

    A new way to propose is a file beside this one, a YAML in conf/drafter, and a line each in drafters/__init__ and
    drafters/presets. CONTRIBUTING.md has a whole example. The loop calls, for each request: `start` once, then in every
    step `propose`, `observe` and `explore`.

    Attributes:
        Config: the class of its options; the schema of its YAML.
        tree_parallel: whether it works when several processes verify shares of one tree. Such a drafter may read the
            cache and the results of the verification only through `draft_forward` and `Step`.
        tensor_parallel: whether it works if each process has only a part of every matrix. A drafter with matrices of
            its own does not.
        best: how many of the target's most probable tokens at every node `observe` wants (`Step.best`). They are
            transferred together with the verdict: fetching them from the logits would make the host wait for the
            device again.
        distributions: whether `observe` wants the target's distributions when sampling (`Step.distributions`).
        said: a line for the user about what it drafts with, said once; None for none.
        costs: what forwards cost on this machine. Ask in `__init__` and `settle` only, see `Costs`.
    """

    Config: ClassVar[type[DrafterConfig]]
    tree_parallel: ClassVar[bool] = True
    tensor_parallel: ClassVar[bool] = True
    best: int = 0
    distributions: bool = True
    said: str | None = None

    def __init__(self, target: TargetProtocol, config: DrafterConfig, costs: Costs) -> None:
        self.target, self.config, self.costs = target, config, costs

    def start(self, context: Context) -> None:  # noqa: B027  (optional)
        """Begin a request: make the drafter's state for it."""

    @abstractmethod
    def propose(self, context: Context) -> Draft:
        """Return the tree to verify next, at most ``context.room`` deep."""

    def propose_batch(self, contexts: Sequence[Context]) -> list[Draft]:
        """Return one draft per context. Override this where running the model on all of them at once saves time."""
        return [self.propose(context) for context in contexts]

    def observe(self, context: Context, step: Step) -> None:  # noqa: B027  (optional)
        """Learn from a finished step; ``context.tokens`` already holds the tokens that it emitted."""

    def explore(self, context: Context) -> None:  # noqa: B027  (optional)
        """Do work that only helps later drafts, such as a search. Called after `observe`; a guard may skip it."""

    def settle(self) -> None:  # noqa: B027  (optional)
        """Do work that takes seconds and helps all later requests, such as compiling a path that stays from now on.

        Called before a request while no other one is decoded, and not timed. The target's cache may be overwritten.
        """

    def diagnostics(self, context: Context) -> dict[str, list[int]]:
        """Return named histograms about the drafting of a request that has ended.

        A histogram is ``[number of 0s, number of 1s, …]``, so that it can be summed over requests. It does not contain
        the last step, which `observe` does not see.
        """
        return {}

    def iterates(self, context: Context) -> list[tuple[int, int, list[int]]]:
        """Return how the blocks of an ended request were refined, for the viewer; empty if none are refined.

        Returns:
            For each pass over a block: the block's number, the place in the text (prompt included) of its first token,
            and the tokens that the pass was given.
        """
        return []


class PathDrafter(Drafter):
    """Base class of drafters that run a part of the model. A subclass that overrides a method also calls this class's.

    Attributes:
        policy: says which part a request runs now.
    """

    def __init__(self, target: TargetProtocol, config: PathDrafterConfig, costs: Costs, policy: PathPolicy) -> None:
        super().__init__(target, config, costs)
        self.policy, self.said = policy, policy.said

    def start(self, context: Context) -> None:
        """Begin the request's path."""
        self.policy.start(context)

    def observe(self, context: Context, step: Step) -> None:
        """Let the policy learn from the step."""
        self.policy.observe(context, step)

    def explore(self, context: Context) -> None:
        """Let the policy search."""
        self.policy.explore(context)

    def settle(self) -> None:
        """Let the policy settle; if its paths now have other costs, ask for them."""
        if self.policy.settle():
            self.ask_costs()

    def ask_costs(self) -> None:
        """Ask for the costs of the policy's typical path, for drafters whose decisions depend on them."""

    def finished(self, context: Context, draft: Draft) -> Draft:
        """Return the draft. If the policy wants the hidden states of its verification, the draft asks for them."""
        return replace(draft, wants_states=True) if self.policy.wants_states(context) else draft
