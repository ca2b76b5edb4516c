"""Weights that come with SelfDraft: used for the model that they were trained for, and refused for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made import made
from random_adapters import ADAPTED
from selfdraft.core.errors import UserError
from selfdraft.drafters.chain import Chain
from selfdraft.drafters.paths import jump
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.paths.jump import JumpPath
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.models.trained.shipped import ABOUT, FOLDER, Shipped
from subjects import PROMPTS, Subject, subject

LIMIT = 8 << 20  # bytes of all weights that come with SelfDraft


@pytest.fixture
def fitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A tiny model, and weights for it in place of those that come with SelfDraft."""
    tiny = subject("llama", 0, True)
    ADAPTED["jump"].written(tiny.target, tmp_path / "floats")
    Adapter.read(tmp_path / "floats").write(tmp_path / "jump", eight_bit=True)
    about = {"fingerprint": fingerprint(tiny.model), "model": "tiny", "options": {}, "made": {}}
    (tmp_path / "jump" / ABOUT).write_text(json.dumps(about))
    read = Shipped.read
    monkeypatch.setattr(jump.Shipped, "read", staticmethod(lambda path: read(path, tmp_path)))
    return tiny


def test_they_are_used_where_no_adapter_is_named(fitting: Subject) -> None:
    drafter = made(fitting.target, configured("jump"))
    assert isinstance(drafter, Chain) and isinstance(drafter.policy.typical, JumpPath)


def test_another_model_is_refused_in_one_line(fitting: Subject) -> None:
    with pytest.raises(UserError, match="no trained jump comes with SelfDraft for this model") as refusal:
        made(Target(tiny_model("llama", seed=9)), configured("jump"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("drafter", ["jump", "pool"])
def test_drafting_with_them_is_lossless(fitting: Subject, drafter: str, batch_size: int) -> None:
    config = configured("pool", "jump", costs="flat") if drafter == "pool" else configured("jump", draft_length=3)
    answers = fitting.decode(made(fitting.target, config), batch_size)
    assert [answer.output for answer in answers] == fitting.expected
    assert sum(sum(answer.counts.offered) for answer in answers) > len(PROMPTS)


def test_what_comes_with_selfdraft_is_small_and_says_how_it_was_made() -> None:
    places = [file.parent for file in FOLDER.glob(f"*/{ABOUT}")]
    assert places and sum((place / FILE).stat().st_size for place in places) <= LIMIT
    for place in places:
        found = Shipped.read(place.name)
        assert found is not None
        assert {"recipe", "seed", "data", "command", "settings", "first_token_acceptance"} <= found.made.keys()
        assert f"{found.made['first_token_acceptance']:.2f}" in found.line and found.model in found.line
