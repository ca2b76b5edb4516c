"""Drafters that are written in one line."""

from __future__ import annotations

import pytest

from made import costs_for
from naming import naming
from selfdraft.core.errors import UserError
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.presets import configured
from selfdraft.drafters.specs import spec_of
from selfdraft.drafters.suffix import Suffix
from stub_target import StubTarget, cycle


def test_options_are_those_of_the_drafter_and_of_its_path() -> None:
    for text, config in {
        "pool sources=[suffix] edges=2": PoolConfig(sources=["suffix"], edges=2),
        "layer_skip sparsity=0.3 draft_length=2": configured("layer_skip", sparsity=0.3, draft_length=2),
        "layer_skip skip_attention=[1,2] siblings=true": configured("layer_skip", skip_attention=[1, 2], siblings=True),
        "guarded jacobi path=swift enough=1e-1 init=ngram": configured(
            "jacobi", path="swift", enough=0.1, init="ngram"
        ),
        "early_exit exit_layer=null": configured("early_exit"),
        "pool adapter=some/folder": configured("pool", adapter="some/folder"),
    }.items():
        spec = spec_of(text)
        assert (spec.config, spec.guarded) == (config, text.startswith("guarded ")), text


def test_the_word_guarded_adds_a_guard() -> None:
    target = StubTarget(cycle(5))
    guarded, free = (spec_of(text).drafter(target, costs_for(target)) for text in ("guarded suffix", "suffix"))
    assert isinstance(guarded, Guard) and type(guarded.inner) is type(free) is Suffix


def test_what_cannot_be_read_gives_one_clear_line() -> None:
    for text, said in {
        "polo": "there is no drafter 'polo'; choose one of none, ",
        "": "there is no drafter ''",
        "guarded": "there is no drafter ''",
        "pool sources=suffix": "drafter.sources='suffix': must be a list, each item text",
        "pool edgs=3": "drafter=pool with path full has no option 'edgs'; there are branches, ",
        "suffix edges=3": "drafter.edges: no such option; there are name, max_nodes, ",
        "pool edges": "write option=value, not 'edges'",
        "pool name=chain": "write option=value, not 'name=chain'",
        "pool edges=[": "the value of edges cannot be read",
        "pool edges=${": "the value of edges cannot be read",
        "pool edges=2026-99-99": "drafter.edges='2026-99-99': must be an integer",
        "pool path=nowhere": "there is no path 'nowhere'; choose one of full, ",
        "pool path=[full]": "there is no path ",
        "pool path=trained": "drafter.path.adapter is needed with the path trained",
        "suffix path=full": "drafter=suffix runs no part of the model: it takes no path",
        "layer_skip exit_layer=2": "drafter=layer_skip with path layer_skip has no option ",
        "pool edges=0": "drafter.edges=0: must be at least 1",
    }.items():
        with naming(text), pytest.raises(UserError) as refused:
            spec_of(text)
        assert str(refused.value).startswith(said)
