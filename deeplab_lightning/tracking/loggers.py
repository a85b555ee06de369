"""Log to TensorBoard, CSV files or MLflow by one word."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from deeplab_lightning.connection import can_reach
from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.runs import RunFolder

LoggerName = Literal["tensorboard", "csv", "mlflow"]
_NEEDS_PACKAGE = ("tensorboard", "mlflow")  # of the same name
_LOGGERS = "lightning.pytorch.loggers."
_PROJECT = "deeplab_lightning"
_SECONDS = 2.0  # for MLflow's server, which its client would wait for for minutes


def named_logger(name: LoggerName, folder: RunFolder) -> dict[str, Any]:
    """Return class path and arguments of a logger of a training.

    TensorBoard and CSV write to `tensorboard` and `csv` in the run's folder. MLflow writes to the server or store that
    the environment variable MLFLOW_TRACKING_URI names, or else to `mlflow.db` and `mlflow_files` beside the folder of
    the run or of its experiment; a resumed training goes on in its MLflow run if it is in the same store.

    Args:
        name: The logger.
        folder: Folder of the run.

    Raises:
        UnavailableError: If the logger's package is not installed, or MLflow's server does not answer.
        DataError: If the file that names the MLflow run is damaged.
    """
    if name in _NEEDS_PACKAGE and find_spec(name) is None:
        raise UnavailableError(f"loggers: {name} needs a package that is not installed: pip install {name}")
    if name == "tensorboard":
        arguments: dict[str, Any] = {"save_dir": str(folder), "name": "", "version": "tensorboard"}
        return {"class_path": f"{_LOGGERS}TensorBoardLogger", "init_args": arguments}
    if name == "csv":
        return {"class_path": f"{_LOGGERS}CSVLogger", "init_args": {"save_dir": str(folder), "name": "csv"}}
    return {"class_path": f"{_LOGGERS}MLFlowLogger", "init_args": _of_mlflow(folder)}


def _of_mlflow(folder: RunFolder) -> dict[str, Any]:
    """Return the arguments of the logger of MLflow, see `named_logger`, in whose store the experiment exists."""
    is_fold = folder.job.is_file()
    experiment, runs = folder.path.absolute().parent, folder.path.absolute().parents[1 if is_fold else 0]
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
    if uri.startswith("http") and not can_reach(uri, seconds=_SECONDS):
        raise UnavailableError(
            f"loggers: mlflow: {uri} does not answer within {_SECONDS:g} s (MLFLOW_TRACKING_URI). Start the server, or "
            "unset the variable to log to a file."
        )
    _make_experiment(uri, runs)
    own = folder.read_mlflow_run() or {}
    return {
        "experiment_name": _PROJECT,
        "run_name": f"{experiment.name}/{folder.name}" if is_fold else folder.name,
        "tracking_uri": uri,
        "run_id": own.get("run_id") if own.get("tracking_uri") == uri else None,
    }


def _make_experiment(uri: str, runs: Path) -> None:
    """Make a store and the experiment in it, one process after the other: MLflow fails where two do so at once."""
    from mlflow import MlflowClient

    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / ".mlflow.lock"):
        client = MlflowClient(uri)
        if client.get_experiment_by_name(_PROJECT) is None:
            files = (runs / "mlflow_files").as_uri() if uri.startswith("sqlite") else None
            client.create_experiment(_PROJECT, artifact_location=files)
