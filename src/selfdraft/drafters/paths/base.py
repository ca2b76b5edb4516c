"""The interface of path policies, which say which part of the model a request runs to draft.

A *path* is a part of the model that can be run, such as its first layers. A *policy* makes paths and chooses one for
every draft: always the same, or another one as the text goes on.

A new policy is a file beside this one, a YAML in conf/drafter/path and a line in paths/__init__ (CONTRIBUTING.md has an
example). A part that needs more than its layers run in a row is also a subclass of `models.forward.path.Path`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from selfdraft.core.costs import Costs
from selfdraft.core.options import Options, choice_name
from selfdraft.drafters.step import Context, Step
from selfdraft.models.forward.path import Path
from selfdraft.models.forward.protocol import TargetProtocol

UNTRAINED = 0.7  # prior probability that the target without a few sublayers knows the next token
UNLIMITED = 10_000  # tokens of a draft; in effect, no limit


@dataclass
class PathConfig(Options):
    """Base class of the options of every path; each path's file defines its own."""

    config_group: ClassVar[str] = "drafter.path"
    name: str = choice_name("full")

    def refuse_missing_layers(self, layers: int) -> None:
        """Check the layers that the options name against a model of `layers` layers, before it is loaded.

        Raises:
            UserError: the model does not have one of them.
        """


@dataclass(frozen=True)
class Use:
    """How the drafter uses its path.

    Attributes:
        longest: the most tokens that it drafts with the path before a verification.
        warm: whether it keeps its state between requests.
        reuse: whether verification goes on from the states after the path's leading layers.
    """

    longest: int = 1
    warm: bool = False
    reuse: bool = False


class PathPolicy(ABC):
    """Base class.

    Attributes:
        Config: the class of its options; the schema of its YAML.
        typical: a path whose cost is taken for that of any of its paths.
        prior: prior probability that a path knows the next token where lookups name none.
        tree_parallel, tensor_parallel: see `Drafter`.
        said: a line about the path for the user, said once; None for none.
    """

    Config: ClassVar[type[PathConfig]]
    prior: ClassVar[float] = UNTRAINED
    tree_parallel: ClassVar[bool] = True
    tensor_parallel: ClassVar[bool] = True
    typical: Path
    said: str | None = None

    def __init__(self, target: TargetProtocol, config: PathConfig, costs: Costs, use: Use) -> None:
        self.target, self.config, self.costs, self.use = target, config, costs, use

    def start(self, context: Context) -> None:  # noqa: B027  (optional)
        """Begin a request: make the policy's state for it."""

    @abstractmethod
    def path(self, context: Context) -> Path:
        """Return the path of the request's next draft; called once a draft. Requests with one path draft together."""

    def longest(self, context: Context) -> int:
        """Return the most tokens that the next draft should have; 0 to draft nothing."""
        return UNLIMITED

    def wants_states(self, context: Context) -> bool:
        """Return whether `observe` wants the hidden states of the next verification."""
        return False

    def observe(self, context: Context, step: Step) -> None:  # noqa: B027  (optional)
        """Learn from a finished step."""

    def explore(self, context: Context) -> None:  # noqa: B027  (optional)
        """Search for a better path. Called after `observe`; a guard may skip it."""

    def settle(self) -> bool:
        """Compile a path that stays from now on, see `Drafter.settle`; return whether paths now have other costs."""
        return False


class FixedPath(PathPolicy):
    """Base class of policies with one path, `typical`, for all requests."""

    def path(self, context: Context) -> Path:
        """Return the path."""
        return self.typical
