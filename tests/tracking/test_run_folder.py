from enum import Enum
from pathlib import Path

import pytest
import yaml

from selfdraft.core.errors import UserError
from selfdraft.tracking.files.records import RecordFile, record_path
from selfdraft.tracking.files.run_folder import MARK, Mark, claim_run_dir, confirm, digest, digest_of_file

CONFIG = {
    "seed": 0,
    "drafter": {"name": "jacobi", "window": 4, "skip": [1, 2]},
    "rate": 1e-5,
    "empty": {},
    "none": None,
}


def test_a_new_folder_is_made_and_its_config_written(tmp_path):
    folder = tmp_path / "new" / "run"
    assert claim_run_dir(folder, CONFIG, task="evaluate") == []
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG


def test_the_same_config_resumes(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    before = (tmp_path / "config.yaml").read_bytes()
    # The order of keys, and tuples for lists, are not a difference.
    again = {**dict(reversed(CONFIG.items())), "drafter": {**CONFIG["drafter"], "skip": (1, 2)}}
    assert claim_run_dir(tmp_path, again, task="evaluate") == [{"id": "a", "turn": 0}]
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_paths_enums_and_special_words_compare_equal_after_saving(tmp_path):
    class Mode(Enum):
        FUSED = 1

    config = {"path": Path("a b"), "mode": Mode.FUSED, "text": "1e-5", "yes": "yes", "word": "naïve: {x}", "inf": 1e999}
    claim_run_dir(tmp_path, config, task="evaluate")
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    assert len(claim_run_dir(tmp_path, config, task="evaluate")) == 1
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["path"] == "a b"


def test_leftovers_of_other_ranks_are_gathered(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    RecordFile(record_path(tmp_path, 1)).append({"id": "b", "turn": 0})
    assert claim_run_dir(tmp_path, CONFIG, task="evaluate") == [{"id": "b", "turn": 0}]
    assert not record_path(tmp_path, 1).exists()


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    RecordFile(record_path(tmp_path, 1)).append({"id": "a", "turn": 0})
    other = {"seed": 1, "drafter": {"name": "jacobi", "window": 8, "skip": [1]}, "rate": 1e-5, "empty": {}, "new": 1}
    with pytest.raises(UserError) as caught:
        claim_run_dir(tmp_path, other, task="evaluate")
    message = str(caught.value)
    assert "\n" not in message
    assert "seed 0 there but 1 now, drafter.window 4 there but 8 now, drafter.skip [1, 2] there but [1] now" in message
    assert "and 2 more" in message  # none is gone, new has come
    assert "hydra.run.dir" in message
    assert record_path(tmp_path, 1).exists()  # nothing was touched


def test_an_option_of_a_later_version_counts_as_its_default(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    new = {"warm": False, "places": ()}
    now = {**CONFIG, "drafter": {**CONFIG["drafter"], **new}, "score": {"run_code": False}}
    defaults = {"drafter": {**new, "window": 9}, "score": {"run_code": False}, "elsewhere": 1}
    assert len(claim_run_dir(tmp_path, now, task="evaluate", defaults=defaults)) == 1
    # Another value than the default is a difference, and so is an option without a default.
    with pytest.raises(UserError, match=r"drafter\.warm False there but True now"):
        other = {**now, "drafter": {**now["drafter"], "warm": True}}
        claim_run_dir(tmp_path, other, task="evaluate", defaults=defaults)
    with pytest.raises(UserError, match=r"drafter\.warm absent there but False now"):
        claim_run_dir(tmp_path, now, task="evaluate", defaults={"score": {"run_code": False}})
    # What was written counts, and not the default.
    with pytest.raises(UserError, match=r"drafter\.window 4 there but 9 now"):
        claim_run_dir(tmp_path, {**now, "drafter": {**now["drafter"], "window": 9}}, task="evaluate", defaults=defaults)


def test_another_config_is_accepted_if_nothing_was_finished(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    record_path(tmp_path).write_text('{"id": "a", "tu')  # killed while it wrote its first line
    assert claim_run_dir(tmp_path, {"seed": 7}, task="evaluate") == []
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 7}


@pytest.mark.parametrize("config", [None, "", "a: [", "just words"])
def test_prompts_of_an_unknown_config_are_refused(tmp_path, config):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    (tmp_path / "config.yaml").unlink()
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim_run_dir(tmp_path, CONFIG, task="evaluate")


def test_facts_added_later_must_be_the_same_on_resuming(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate", facts={"prompts": "p"})
    confirm(tmp_path, {"model": "m"})
    RecordFile(record_path(tmp_path)).append({"id": "a", "turn": 0})
    claim_run_dir(tmp_path, CONFIG, task="evaluate", facts={"prompts": "p"})
    confirm(tmp_path, {"model": "m"})
    with pytest.raises(UserError, match="begun with another content of model \\(m there but n now\\)"):
        confirm(tmp_path, {"model": "n"})
    with pytest.raises(UserError, match="begun with another content of prompts"):
        claim_run_dir(tmp_path, CONFIG, task="evaluate", facts={"prompts": "q"})
    assert Mark.read(tmp_path).facts == {"prompts": "p", "model": "m"}


def test_other_facts_are_accepted_if_nothing_was_finished(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate", facts={"prompts": "p"})
    confirm(tmp_path, {"model": "m"})
    claim_run_dir(tmp_path, CONFIG, task="evaluate", facts={"prompts": "q"})
    confirm(tmp_path, {"model": "n"})
    assert Mark.read(tmp_path).facts == {"prompts": "q", "model": "n"}


def test_the_mark_is_the_first_file_and_is_copied_by_a_glob(tmp_path):
    claim_run_dir(tmp_path, CONFIG, task="evaluate")
    assert MARK in {path.name for path in tmp_path.glob("[!.]*")}


def test_different_contents_have_different_digests(tmp_path):
    assert digest(["a", "b"]) == digest(["a", "b"]) != digest(["ab"])
    assert digest(["\ud800"]) != digest(["\ud801"])
    path = tmp_path / "file"
    assert digest_of_file(path) == "absent"
    path.write_bytes(b"a")
    first = digest_of_file(path)
    path.write_bytes(b"b")
    assert len(first) == 16 and digest_of_file(path) != first
