"""What W&B is told of the texts and drafters that runs make and use."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from selfdraft.tracking.dashboards.lineage import log_lineage, pieces_in
from selfdraft.tracking.dashboards.loggers import close_logger, make_logger


class Told(WandbLogger):
    """Stands for the logger of a run, and remembers what it is told."""

    def __init__(self, offline: bool) -> None:
        self.used, self.made, self.config = [], [], {}
        self.run = SimpleNamespace(
            offline=offline,
            config=SimpleNamespace(update=lambda values, **_: self.config.update(values)),
            use_artifact=self.used.append,
            log_artifact=self.made.append,
        )

    @property
    def experiment(self) -> SimpleNamespace:
        return self.run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/texts.jsonl").write_text('{"id": "a", "turn": 0}\n')
    return tmp_path / "texts"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/drafter.yaml").write_text("drafter: trained\n")
    (tmp_path / "trained/adapter.safetensors").write_bytes(b"weights")
    return tmp_path / "trained"


def test_the_maker_and_the_user_name_a_piece_alike(texts: Path, trained: Path, tmp_path: Path) -> None:
    training, evaluation = Told(offline=False), Told(offline=False)
    log_lineage(training, [texts], trained)
    shutil.copytree(trained, tmp_path / "elsewhere")
    log_lineage(evaluation, [tmp_path / "elsewhere/drafter.yaml", tmp_path / "gsm8k"], tmp_path)
    (drafter,), (used,) = training.made, evaluation.used
    assert (drafter.name, drafter.type) == (used.name, "drafter") and drafter.digest == used.digest
    assert [artifact.type for artifact in training.used] == ["texts"]
    assert evaluation.made == [] and evaluation.config == {"inputs": [drafter.name]}


def test_other_content_is_another_piece(trained: Path) -> None:
    (before,) = pieces_in(trained)
    name = before.name
    (trained / "drafter.yaml").write_text("drafter: swift\n")
    assert pieces_in(trained)[0].name != name


def test_offline_the_inputs_are_in_the_configuration_only(texts: Path, trained: Path) -> None:
    told = Told(offline=True)
    log_lineage(told, [texts], trained)
    assert told.used == [] and len(told.made) == 1
    assert told.config["inputs"] == [pieces_in(texts)[0].name]


@pytest.mark.slow
def test_an_offline_run_takes_them(texts: Path, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = make_logger("wandb", project="p", save_dir=trained, name="run", config={})
    log_lineage(logger, [texts], trained)
    close_logger(logger)
    assert capfd.readouterr() == ("", "")
    (run,) = (trained / "wandb").glob("offline-run-*")
    until = time.monotonic() + 30  # the service may write for a moment after the run has ended
    while pieces_in(trained)[0].name.encode() not in next(run.glob("*.wandb")).read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_other_loggers_are_left_alone(texts: Path, tmp_path: Path) -> None:
    log_lineage(None, [texts], texts)
    log_lineage(CSVLogger(tmp_path), [texts], texts)
