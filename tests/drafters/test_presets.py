"""Drafters by name: which options each has, and unknown names."""

from __future__ import annotations

from itertools import product

import pytest

from selfdraft.core.errors import UserError
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import PathDrafterConfig
from selfdraft.drafters.presets import configured, options_of

TAKE_PATHS = [name for name, proposal in PROPOSALS.items() if issubclass(proposal.Config, PathDrafterConfig)]


def test_proposals_and_paths_share_no_option() -> None:
    for proposal, path in product(TAKE_PATHS, PATHS):
        assert options_of(PROPOSALS[proposal].Config) & options_of(PATHS[path].Config) == set(), (proposal, path)


def test_proposals_that_take_a_path_are_listed() -> None:
    assert set(TAKE_PATHS) >= {"chain", "jacobi", "pool"}


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("swift", {"breadth": 2}, "'breadth'"),
        ("jacobi", {"path": "shortcut"}, "'shortcut'"),
        ("suffix", {"path": "swift"}, "drafter=suffix"),
        ("suffix", {"breadth": 2}, "breadth"),
        ("pool", {"path": "trained"}, "drafter.path.adapter"),
    ],
)
def test_an_unknown_name_gives_one_line_that_names_it(name: str, options: dict, named: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(name, **options)
    assert named in str(caught.value) and "\n" not in str(caught.value)
