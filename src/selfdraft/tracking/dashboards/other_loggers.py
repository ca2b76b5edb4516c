"""TensorBoard and MLflow through Lightning's own loggers, for those who have no W&B."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from selfdraft.core.errors import UserError
from selfdraft.tracking.dashboards.run_label import RunLabel

SERVER = "MLFLOW_TRACKING_URI"


def tensorboard(folder: Path, project: str, label: RunLabel, config: Mapping[str, Any]) -> Logger:
    """Return a logger that writes event files into the run's folder: `tensorboard --logdir outputs` shows all runs.

    Raises:
        UserError: TensorBoard is not installed.
    """
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        logger = TensorBoardLogger(save_dir=folder, name="", version="tensorboard", default_hp_metric=False)
        logger.log_hyperparams(dict(config))
    except ModuleNotFoundError:
        raise UserError("logger=tensorboard needs a package that is not installed: pip install tensorboard") from None
    return logger


def mlflow(folder: Path, project: str, label: RunLabel, config: Mapping[str, Any]) -> Logger:
    """Return a logger of MLflow: to MLFLOW_TRACKING_URI if that is set, else into `mlflow.db` of the run's folder.

    Raises:
        UserError: MLflow is not installed.
    """
    from pytorch_lightning.loggers import MLFlowLogger

    given = os.environ.get(SERVER)
    try:
        logger = MLFlowLogger(
            experiment_name=project,
            run_name=label.name,
            tracking_uri=given or f"sqlite:///{folder.absolute() / 'mlflow.db'}",
            tags={"group": label.group or "", "task": label.job_type or "", "tags": ",".join(label.tags)},
        )
        logger.log_hyperparams(dict(config))
    except ModuleNotFoundError:
        raise UserError("logger=mlflow needs a package that is not installed: pip install mlflow-skinny") from None
    finally:  # MLflow keeps in it where this run writes, and the next run of this process would write there, too
        os.environ.pop(SERVER, None)
        if given is not None:
            os.environ[SERVER] = given
    return logger


OTHER_LOGGERS: dict[str, Callable[[Path, str, RunLabel, Mapping[str, Any]], Logger]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
}
