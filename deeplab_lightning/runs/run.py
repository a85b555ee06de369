"""Name, write and read the files of one training."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import DataError
from deeplab_lightning.files import read_lines, unused_path, write_text
from deeplab_lightning.metrics.per_image import PerImageConfusion, PerImageDetails
from deeplab_lightning.runs.folder import BALANCE, FOLDS, Folder, read_yaml, write_yaml
from deeplab_lightning.runs.predictions import PredictionFolder
from deeplab_lightning.tables import csv_text, csv_text_of_dicts, read_csv, read_rows

_IMAGES, _LAST_IMAGES, _LAST_DETAILS = "image_matrices.npz", "last_image_matrices.npz", "last_image_details.npz"
RECORD_FILES = (_IMAGES, _LAST_IMAGES, _LAST_DETAILS, FOLDS, BALANCE)
"""Files of a run that `deeplab compare` reads in addition to its result; a W&B run keeps copies of them."""
_EVALUATIONS = {"val": "result_validate.json", "test": "result_test.json"}  # stage -> result of a later evaluation
_INTEGERS = ("epoch", "step")  # columns of metrics.csv


class RunFolder(Folder):
    """Name, write and read the files of one training.

    `result.json` is written last: if it exists, the training is finished.

    Args:
        path: The folder, which need not exist.
    """

    SEARCH_STOPS = -1
    """Answer of a search that wants no further epoch of this training."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.metrics = self.path / "metrics.csv"
        """One row per epoch."""
        self.confusion = self.path / "confusion_matrix.csv"
        """Pixel counts of the best epoch, rows truth, columns prediction."""
        self.confusion_figure = self.path / "confusion_matrix.png"
        self.images = self.path / _IMAGES
        """Confusion matrix of each validation image at the best epoch."""
        self.last_images = self.path / _LAST_IMAGES
        """The same at the last epoch."""
        self.last_details = self.path / _LAST_DETAILS
        """Contours and objects by size of each validation image at the last epoch."""
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"
        self.predictions = self.path / "predictions"
        self.wandb_run = self.path / "wandb_run.json"
        """Project, entity and id of the W&B run, which a resumed training and evaluations continue."""
        self.mlflow_run = self.path / "mlflow_run.json"
        """Address of the MLflow store and id of the run there, which a resumed training continues."""
        self.crf, self.crf_trials = self.path / "crf.yaml", self.path / "crf.csv"
        # Files of a fold that `deeplab kfold` trains:
        self.job, self.log, self.lock = self.path / "job.yaml", self.path / "log.txt", self.path / ".lock"
        self.val_images = self.path / "val_images.txt"
        """Path and key of each held-out image, with a tab between them."""
        self.attempts = self.path / "attempts.json"
        """Jobs of a cluster that trained this fold or trial, and how each ended."""
        self._search_answer = self.path / ".search"  # how many epochs the search that started it has seen
        self.val_predictions = PredictionFolder(self.path / "val_predictions")

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> "RunFolder | None":
        """Return the run that wrote a checkpoint, or None if the checkpoint is in no run's folder."""
        folder = cls(Path(checkpoint).absolute().parent.parent)
        return folder if folder.config.is_file() else None

    def panel(self, epoch: int) -> Path:
        """Return the path of the panel drawn after an epoch.

        Args:
            epoch: Number of finished epochs, from 1.
        """
        return self.path / "panels" / f"epoch_{epoch:03d}.png"

    def write_config(self, text: str, stage: str) -> None:
        """Write a resolved configuration without overwriting earlier ones.

        Args:
            text: The configuration as YAML.
            stage: `fit`, which writes `config.yaml`, or another stage, which writes `config_<stage>.yaml`;
                numbered if the file exists.
        """
        write_text(unused_path(self.config if stage == "fit" else self.path / f"config_{stage}.yaml"), text)

    def read_configs(self) -> list[dict[str, Any]]:
        """Read the configurations of the first and of the last start of the training; one if it was not resumed.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If one is damaged.
        """
        numbers = {re.fullmatch(r"config-(\d+)\.yaml", path.name): path for path in self.path.glob("config-*.yaml")}
        resumed = {int(match[1]): path for match, path in numbers.items() if match}
        return [self.read_config(), *([read_yaml(resumed[max(resumed)])] if resumed else [])]

    def read_job(self) -> dict[str, Any]:
        """Read the configuration that `deeplab fit` gets for a fold.

        Raises:
            OSError: If there is no readable `job.yaml`.
            DataError: If it is damaged.
        """
        return read_yaml(self.job)

    def write_job(self, config: Mapping[str, Any]) -> None:
        """Write the configuration that `deeplab fit` gets for a fold."""
        write_yaml(self.job, config)

    def write_search_answer(self, epochs: int | None) -> None:
        """Tell the training how many of its epochs the search has seen, or `SEARCH_STOPS`; None tells nothing yet."""
        if epochs is None:
            self._search_answer.unlink(missing_ok=True)
        else:
            write_text(self._search_answer, str(epochs))

    def read_search_answer(self) -> int | None:
        """Read what `write_search_answer` wrote; None before it did."""
        try:
            return int(self._search_answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def read_val_images(self) -> list[str]:
        """Read the lines of the held-out images."""
        return list(filter(None, read_lines(self.val_images)))

    def write_val_images(self, paths: Mapping[str, Path]) -> None:
        """Write path and key of each held-out image, by key."""
        lines = (f"{path.absolute()}\t{name}" for name, path in paths.items())
        write_text(self.val_images, "\n".join([*lines, ""]))

    def read_result(self) -> dict[str, Any] | None:
        """Read `result.json`; None if the training is not finished.

        Raises:
            DataError: If it is damaged, or no result of a training.
        """
        if not self.result.is_file():
            return None
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
            fault = _result_fault(result)
        except (ValueError, RecursionError) as error:
            fault = " ".join(str(error).split())
        if fault is not None:
            raise DataError(f"{self.result}: is damaged or no result of a training ({fault}).")
        return dict(result)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_text(self.result, json.dumps(result, indent=2) + "\n")

    def read_wandb_run(self) -> dict[str, Any] | None:
        """Read the arguments of `wandb.init` that continue the W&B run of this training; None without one.

        Raises:
            DataError: If the file is damaged.
        """
        return _read_logged(self.wandb_run, "W&B")

    def write_wandb_run(self, arguments: Mapping[str, Any]) -> None:
        """Write `project`, `entity` and `id` of the W&B run."""
        write_text(self.wandb_run, json.dumps(arguments) + "\n")

    def read_mlflow_run(self) -> dict[str, Any] | None:
        """Read `tracking_uri` and `run_id` of the MLflow run of this training; None without one.

        Raises:
            DataError: If the file is damaged.
        """
        return _read_logged(self.mlflow_run, "MLflow")

    def write_mlflow_run(self, content: Mapping[str, Any]) -> None:
        """Write `tracking_uri` and `run_id` of the MLflow run."""
        write_text(self.mlflow_run, json.dumps(content) + "\n")

    def write_evaluation(self, result: Mapping[str, Any], stage: str) -> Path:
        """Write the result of `deeplab validate` or `deeplab test`, numbered if the file exists.

        Args:
            result: Mapping of JSON values.
            stage: `val` or `test`.

        Returns:
            The path of the file.
        """
        path = unused_path(self.path / _EVALUATIONS[stage])
        write_text(path, json.dumps(result, indent=2) + "\n")
        return path

    def read_metrics(self) -> list[dict[str, float]]:
        """Read the rows of `metrics.csv` without their empty cells; empty without the file.

        Raises:
            DataError: If it is damaged.
        """
        if not self.metrics.is_file():
            return []
        rows = read_csv(self.metrics, ["epoch"])
        try:
            return [{key: float(value) for key, value in row.items() if value} for row in rows]
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.metrics}: is damaged: {error}.") from error

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write `metrics.csv` with all digits, so that a resumed training finds the same best epoch."""
        texts = [{k: int(v) if k in _INTEGERS else repr(v) for k, v in row.items()} for row in rows]
        write_text(self.metrics, csv_text_of_dicts(texts))

    def read_confusion(self) -> npt.NDArray[np.int64]:
        """Read the (K, K) counts of `confusion_matrix.csv`.

        Raises:
            DataError: If it is damaged.
        """
        rows = read_rows(self.confusion)
        try:
            counts = np.array([row[1:] for row in rows[1:]], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{self.confusion}: is damaged: {error}.") from error
        if not len(counts) or counts.shape != (len(rows[0]) - 1,) * 2 or (counts < 0).any():
            raise DataError(f"{self.confusion}: is damaged, or holds no counts of pairs of classes.")
        return counts

    def write_confusion(self, counts: npt.ArrayLike, class_names: Sequence[str]) -> None:
        """Write `confusion_matrix.csv`.

        Args:
            counts: (K, K) pixel counts, rows truth, columns prediction.
            class_names: K names.
        """
        write_text(self.confusion, csv_text(confusion_rows(counts, class_names)))

    def read_images(self) -> PerImageConfusion | None:
        """Read the confusion matrices of the validation images; None if only their sum is known.

        Raises:
            FileNotFoundError: If there is neither `image_matrices.npz` nor `confusion_matrix.csv`.
        """
        if not self.images.is_file() and self.confusion.is_file():
            return None
        return PerImageConfusion.read(self.images)

    def read_last_images(self) -> PerImageConfusion | None:
        """Read the matrices of the validation images at the last epoch; None for a run of an earlier version."""
        return PerImageConfusion.read(self.last_images) if self.last_images.is_file() else None

    def write_last(self, images: PerImageConfusion, details: PerImageDetails | None) -> None:
        """Write the matrices of the last epoch, and its details in place of an earlier epoch's.

        Args:
            images: Matrices of the validation images.
            details: Contours and objects of the same images; None if they were not counted.
        """
        self.last_details.unlink(missing_ok=True)  # first, so that a kill leaves none of another epoch
        images.write(self.last_images)
        if details is not None:
            details.write(self.last_details)

    def read_last_details(self) -> PerImageDetails | None:
        """Read contours and objects of the validation images at the last epoch; None if they were not counted."""
        return PerImageDetails.read(self.last_details) if self.last_details.is_file() else None


def _read_logged(path: Path, tracker: str) -> dict[str, Any] | None:
    """Read the file that names the run of a tracker; None without one.

    Raises:
        DataError: If it is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error}). Delete it to log to a new {tracker} run.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged. Delete it to log to a new {tracker} run.")
    return content


def _result_fault(result: Any) -> str | None:
    """Describe why a value is no content of `result.json`; None if it is."""
    if not isinstance(result, dict):
        return f"it holds a {type(result).__name__}"
    missing = [key for key in ("fold", "n_folds", "val") if key not in result]
    if missing:
        return f"it lacks {', '.join(missing)}"
    for key in ("fold", "n_folds"):
        if not (result[key] is None or (type(result[key]) is int and result[key] >= 0)):
            return f"{key} is {result[key]!r}"
    val = result["val"]
    if val is not None and not (isinstance(val, dict) and isinstance(val.get("iou"), dict)):
        return "val holds no figures"
    return None


def confusion_rows(counts: npt.ArrayLike, class_names: Sequence[str]) -> list[list[Any]]:
    """Return a confusion matrix as rows of a table: a header, then a class name and K counts per row.

    Args:
        counts: (K, K) pixel counts, rows truth, columns prediction.
        class_names: K names.
    """
    table = zip(class_names, np.asarray(counts).tolist(), strict=True)
    return [["truth \\ prediction", *class_names], *([name, *row] for name, row in table)]
