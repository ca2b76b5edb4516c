from enum import Enum
from pathlib import Path

import pytest
import yaml

from selfdraft.core.errors import UserError
from selfdraft.tracking.records import RecordFile, record_path
from selfdraft.tracking.run_folder import claim_run_dir

CONFIG = {
    "seed": 0,
    "drafter": {"name": "jacobi", "window": 4, "skip": [1, 2]},
    "rate": 1e-5,
    "empty": {},
    "none": None,
}


def test_a_new_folder_is_made_and_its_config_written(tmp_path):
    folder = tmp_path / "new" / "run"
    assert claim_run_dir(folder, CONFIG) == []
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG


def test_the_same_config_continues(tmp_path):
    claim_run_dir(tmp_path, CONFIG)
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    before = (tmp_path / "config.yaml").read_bytes()
    # The order of keys, and tuples for lists, are not a difference.
    again = {**dict(reversed(CONFIG.items())), "drafter": {**CONFIG["drafter"], "skip": (1, 2)}}
    assert claim_run_dir(tmp_path, again) == [{"id": "a", "turn": 0}]
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_paths_enums_and_awkward_words_compare_equal_to_themselves(tmp_path):
    class Mode(Enum):
        FUSED = 1

    config = {"path": Path("a b"), "mode": Mode.FUSED, "text": "1e-5", "yes": "yes", "word": "naïve: {x}", "inf": 1e999}
    claim_run_dir(tmp_path, config)
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    assert len(claim_run_dir(tmp_path, config)) == 1
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["path"] == "a b"


def test_leftovers_of_other_ranks_are_gathered(tmp_path):
    claim_run_dir(tmp_path, CONFIG)
    RecordFile(record_path(tmp_path, 1)).append({"id": "b", "turn": 0})
    assert claim_run_dir(tmp_path, CONFIG) == [{"id": "b", "turn": 0}]
    assert not record_path(tmp_path, 1).exists()


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path):
    claim_run_dir(tmp_path, CONFIG)
    RecordFile(record_path(tmp_path, 1)).append({"id": "a", "turn": 0})
    other = {"seed": 1, "drafter": {"name": "jacobi", "window": 8, "skip": [1]}, "rate": 1e-5, "empty": {}, "new": 1}
    with pytest.raises(UserError) as caught:
        claim_run_dir(tmp_path, other)
    message = str(caught.value)
    assert "\n" not in message
    assert "seed 0 there but 1 now, drafter.window 4 there but 8 now, drafter.skip [1, 2] there but [1] now" in message
    assert "and 2 more" in message  # none is gone, new has come
    assert "hydra.run.dir" in message
    assert record_path(tmp_path, 1).exists()  # nothing was touched


def test_where_nothing_was_finished_another_config_is_welcome(tmp_path):
    claim_run_dir(tmp_path, CONFIG)
    record_path(tmp_path).write_text('{"id": "a", "tu')  # killed while it wrote its first line
    assert claim_run_dir(tmp_path, {"seed": 7}) == []
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 7}


@pytest.mark.parametrize("config", [None, "", "a: [", "just words"])
def test_prompts_of_an_unknown_config_are_refused(tmp_path, config):
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim_run_dir(tmp_path, CONFIG)
