"""Log to TensorBoard, CSV files or MLflow by one word."""

import os
from importlib.util import find_spec
from typing import Any, Literal

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.runs import RunFolder

LoggerName = Literal["tensorboard", "csv", "mlflow"]
_NEEDS_PACKAGE = ("tensorboard", "mlflow")  # of the same name
_LOGGERS = "lightning.pytorch.loggers."
_PROJECT = "deeplab_lightning"


def named_logger(name: LoggerName, folder: RunFolder) -> dict[str, Any]:
    """Return class path and arguments of a logger of a training.

    TensorBoard and CSV write to `tensorboard` and `csv` in the run's folder. MLflow writes to the server or store that
    the environment variable MLFLOW_TRACKING_URI names, or else to `mlflow.db` and `mlflow_files` beside the run's
    folder; a resumed training goes on in its MLflow run.

    Args:
        name: The logger.
        folder: Folder of the run.

    Raises:
        UnavailableError: If the logger's package is not installed.
    """
    if name in _NEEDS_PACKAGE and find_spec(name) is None:
        raise UnavailableError(f"loggers: {name} needs a package that is not installed: pip install {name}")
    if name == "tensorboard":
        arguments: dict[str, Any] = {"save_dir": str(folder), "name": "", "version": "tensorboard"}
        return {"class_path": f"{_LOGGERS}TensorBoardLogger", "init_args": arguments}
    if name == "csv":
        return {"class_path": f"{_LOGGERS}CSVLogger", "init_args": {"save_dir": str(folder), "name": "csv"}}
    arguments = {"experiment_name": _PROJECT, "run_name": folder.name, "run_id": folder.read_mlflow_run()}
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        arguments["tracking_uri"] = uri
    else:
        parent = folder.path.absolute().parent
        arguments |= {
            "tracking_uri": f"sqlite:///{parent / 'mlflow.db'}",
            "artifact_location": (parent / "mlflow_files").as_uri(),
        }
    return {"class_path": f"{_LOGGERS}MLFlowLogger", "init_args": arguments}
