"""Note which experts a mixture-of-experts model chooses for each token, and make another forward take the same ones.

Certificates need this. A router takes the experts with the largest scores. If two scores are closer than rounding, two
right forwards may take different experts, and the outputs of these differ by far more than rounding. Such a *tie of
routing* is not a fault. To see whether two forwards differ for another reason, one is made to take the experts of the
other.

Shapes: n tokens, k experts of a token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXPERTS, WEIGHTS = "top_k_index", "top_k_weights"  # what transformers gives to a layer's experts


@dataclass
class Routing:
    """The experts of every token.

    Attributes:
        chosen: by layer with experts, (n, k) ids and (n, k) weights of the experts.
    """

    chosen: list[tuple[Tensor, Tensor]]

    def first(self, tokens: int) -> Routing:
        """Return the routing of the first tokens of the text."""
        return Routing([(experts[:tokens], weights[:tokens]) for experts, weights in self.chosen])


@dataclass
class Forced:
    """How often a forward was made to take other experts.

    Attributes:
        decisions: tokens times layers with experts. changed: how many of these would have been others.
    """

    decisions: int = 0
    changed: int = 0

    @property
    def share(self) -> float:
        """Return the share of the decisions that were changed."""
        return self.changed / max(self.decisions, 1)


def mixtures(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the parts that run a layer's experts, in the order of the layers."""
    return [part for module in modules for part in module.modules() if _takes_choices(part)]


class Notes:
    """Notes which experts forwards choose inside a `with` statement."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        """Take the parts that run experts (see `mixtures`)."""
        self._parts, self._hooks = parts, list[Any]()
        self._new: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]
        self._kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]

    def __enter__(self) -> Notes:
        for new, part in zip(self._new, self._parts, strict=True):

            def note(part: nn.Module, args: Any, kwargs: Any, new: list[tuple[Tensor, Tensor]] = new) -> None:
                given = inspect.signature(part.forward).bind(*args, **kwargs).arguments
                new.append((given[EXPERTS].flatten(0, -2), given[WEIGHTS].flatten(0, -2)))

            self._hooks.append(part.register_forward_pre_hook(note, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def keep(self, rows: Sequence[int] | None = None) -> None:
        """Keep what forwards since the last call have chosen.

        Args:
            rows: which of their tokens are the next ones of the text; None: all.
        """
        for new, kept in zip(self._new, self._kept, strict=True):
            if new:
                experts, weights = (torch.cat(each) for each in zip(*new, strict=True))
                kept.append((experts, weights) if rows is None else (experts[list(rows)], weights[list(rows)]))
                new.clear()

    def routing(self) -> Routing:
        """Return the routing of the tokens that were kept."""
        return Routing([(torch.cat([e for e, _ in kept]), torch.cat([w for _, w in kept])) for kept in self._kept])


@contextmanager
def forced(parts: Sequence[nn.Module], routing: Routing, found: Forced) -> Iterator[None]:
    """Make forwards of a text take the experts that another forward of it took, where they would take others.

    Args:
        parts: run the experts (see `mixtures`). routing: the experts to take, and their weights.
        found: counts the choices, and how many were changed.
    """
    hooks = []
    for part, (experts, weights) in zip(parts, routing.chosen, strict=True):

        def give(part: nn.Module, args: Any, kwargs: Any, experts: Tensor = experts, weights: Tensor = weights) -> Any:
            given = inspect.signature(part.forward).bind(*args, **kwargs)
            own, own_weights = given.arguments[EXPERTS], given.arguments[WEIGHTS]
            other = (own.flatten(0, -2).sort(-1).values != experts.sort(-1).values).any(-1)
            found.decisions += len(other)
            found.changed += int(other.sum())
            other = other.view(*own.shape[:-1], 1)
            given.arguments[EXPERTS] = torch.where(other, experts.view(own.shape), own)
            given.arguments[WEIGHTS] = torch.where(other, weights.view(own.shape).to(own_weights.dtype), own_weights)
            return given.args, given.kwargs

        hooks.append(part.register_forward_pre_hook(give, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _takes_choices(part: nn.Module) -> bool:
    try:
        names = inspect.signature(part.forward).parameters
    except ValueError:  # functions in C have none
        return False
    return EXPERTS in names and WEIGHTS in names
