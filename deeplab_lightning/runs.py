"""Name, write and read the files of runs and experiments, and choose the folder of a run."""

import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from deeplab_lightning.data.folds.balance import balance_fault
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.files import make_unused_folder, read_lines, unused_path, write_text
from deeplab_lightning.metrics.per_image import PerImageConfusion, PerImageDetails
from deeplab_lightning.tables import csv_text, csv_text_of_dicts, read_csv, read_rows

RUN_FOLDER_VARIABLE = "DEEPLAB_RUN_FOLDER"
"""Environment variable with the run's folder, for the processes that Lightning starts for DDP."""
SEARCH_VARIABLE = "DEEPLAB_SEARCH"
"""Environment variable with the name of the search whose trial a training is, see `SearchGate`."""
_FOLDS, _BALANCE, _IMAGES, _LAST_IMAGES = "folds.csv", "balance.csv", "image_matrices.npz", "last_image_matrices.npz"
_LAST_DETAILS = "last_image_details.npz"
RECORD_FILES = (_IMAGES, _LAST_IMAGES, _LAST_DETAILS, _FOLDS, _BALANCE)
"""Files of a run that `deeplab compare` reads in addition to its result; a W&B run keeps copies of them."""
_EVALUATIONS = {"val": "result_validate.json", "test": "result_test.json"}  # stage -> result of a later evaluation
_MAX_WAIT = 300  # seconds for the first process to choose a folder
_MAX_NAME = 250  # bytes of a file's name without suffix; file systems allow 255 with it
_choices = itertools.count()  # of folders in this process
_INTEGERS = ("epoch", "step")  # columns of metrics.csv


class _Folder:
    """Name the files that runs, experiments and splits share.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        """Resolved configuration; `deeplab fit -c` trains it again."""
        self.folds = self.path / _FOLDS
        """Group and validation fold of every image."""
        self.balance = self.path / _BALANCE
        """Images, objects and area of each class in each fold."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Return the last part of the folder's path."""
        return self.path.name

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration; an empty file gives an empty mapping.

        Raises:
            FileNotFoundError: If there is no `config.yaml`.
            DataError: If it is damaged.
        """
        if not self.config.is_file():
            raise MissingFileError(f"no such file: {self.config.absolute()}. {self.path} is not the folder of a run.")
        return _read_yaml(self.config)

    def write_splits(self, folds: str, balance: str | None) -> None:
        """Write `balance.csv` and `folds.csv`; the folds come last, so that they exist only with their balance.

        Args:
            folds: Text of `folds.csv`.
            balance: Text of `balance.csv`; not written if None, as for an official split.
        """
        if balance is not None:
            write_text(self.balance, balance)
        write_text(self.folds, folds)

    def read_groups(self) -> dict[str, str]:
        """Read the group label of each image key; empty without `folds.csv`."""
        rows = read_csv(self.folds, ("image", "group")) if self.folds.is_file() else []
        return {row["image"]: row["group"] for row in rows}

    def read_balance(self) -> list[dict[str, str]]:
        """Read the rows of `balance.csv`; empty without the file.

        Raises:
            DataError: If it is damaged.
        """
        rows = read_csv(self.balance, ("fold", "class")) if self.balance.is_file() else []
        if rows and (fault := balance_fault(rows)):
            raise DataError(f"{self.balance}: is damaged: {fault}.")
        return rows


class SplitFolder(_Folder):
    """Name and write the files of `deeplab split`.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.balance_document, self.balance_figure = self.path / "balance.json", self.path / "balance.png"
        """Balance of this split and of other methods, in full and as a figure."""

    def write_balance_document(self, document: Mapping[str, Any]) -> None:
        """Write `balance.json`."""
        write_text(self.balance_document, json.dumps(document, indent=1) + "\n")


class PredictionFolder:
    """Name the files of predicted images.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.masks, self.overlays = self.path / "masks", self.path / "overlays"
        self.confidences, self.arrays = self.path / "confidence", self.path / "probabilities"
        self.table = self.path / "predictions.csv"
        """Mask and overlay of each image key; written first, so that it marks a folder of ours."""

    def mask(self, stem: str | Path) -> Path:
        """Return the path of a palette PNG, from its path without suffix relative to `masks/`."""
        return self.masks / f"{stem}.png"

    def overlay(self, stem: str | Path) -> Path:
        """Return the path of an overlay, from its path without suffix relative to `overlays/`."""
        return self.overlays / f"{stem}.jpg"

    def overlay_video(self, stem: str | Path) -> Path:
        """Return the path of the overlays of a video, from the folder of its frames relative to `overlays/`."""
        return self.overlays / f"{stem}.mp4"

    def confidence(self, stem: str | Path) -> Path:
        """Return the path of a grey PNG of confidences, from its path without suffix relative to `confidence/`."""
        return self.confidences / f"{stem}.png"

    def probabilities(self, stem: str | Path) -> Path:
        """Return the path of an archive of probabilities, likewise relative to `probabilities/`."""
        return self.arrays / f"{stem}.npz"

    def own_file(self, name: str, option: str) -> Path:
        """Return the path of a further file of the predictions.

        Args:
            name: Its path relative to the folder.
            option: Name of the option that it comes from.

        Raises:
            ValueError: If it is outside the folder, among its masks and other files, or exists.
        """
        own, path = {self.table, self.masks, self.overlays, self.confidences, self.arrays}, self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or own & {path, *path.parents} or path == self.path:
            raise UserError(
                f"{option} must be a new file name in the folder of the predictions, such as {option.strip('-')}-1, "
                f"got {name!r}."
            )
        if path.exists():
            raise UserError(f"{option}: {path} exists. Choose another name.")
        return path

    def begin(self, stems: Mapping[str, str], kinds: Sequence[str] = ("mask", "overlay")) -> None:
        """Write the table of the files that will be written.

        Args:
            stems: Path without suffix of each image key, see `prediction_stems`.
            kinds: What is written of each image: `mask`, `overlay`, `confidence`, `probabilities`.

        Raises:
            ValueError: If the folder holds masks or others that no prediction wrote, such as the user's own masks.
        """
        for folder in (self.masks, self.overlays, self.confidences, self.arrays):
            if not self.table.is_file() and folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} holds files that no prediction wrote. Choose another folder for the output.")
        rows = [
            [name, *(getattr(self, kind)(stem).relative_to(self.path).as_posix() for kind in kinds)]
            for name, stem in stems.items()
        ]
        write_text(self.table, csv_text([["image", *kinds], *rows]))

    def read_masks(self) -> dict[str, Path] | None:
        """Read the path of the mask of each image key; None for a folder of an earlier version.

        Raises:
            DataError: If the table is damaged.
        """
        if not self.table.is_file():
            return None
        return {row["image"]: self.path / row["mask"] for row in read_csv(self.table, ("image", "mask"))}


class SuspectsFolder:
    """Name the files of `deeplab suspects`.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.table, self.images_table = self.path / "suspects.csv", self.path / "suspect_images.csv"
        """The suspected regions, and all images by the highest score of their regions."""
        self.coco = self.path / "suspects.json"
        """The proposed labels of the regions, for annotation tools."""
        self.page = self.path / "suspects.html"


def prediction_stems(names: Sequence[str]) -> dict[str, str]:
    """Map image keys to the paths of their predictions without suffix, relative to the folder of the predictions.

    The path of a key is its own without suffix and without what leads out of the folder. Keys that would share files,
    also where case does not count, keep their suffix, and those that still would get a number made from the key. So
    does a name that is longer than a file system allows.

    Args:
        names: Keys of all images that are predicted together.
    """
    plain = {
        name: _inside(str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else "") for name in names
    }
    suffixed = {name: _inside(name) for name in names}
    counts = Counter(stem.casefold() for stem in plain.values())
    stems = {name: stem if counts[stem.casefold()] == 1 else suffixed[name] for name, stem in plain.items()}
    # A file of one key may also be the folder of another one.
    folders = {str(parent).casefold() for stem in stems.values() for parent in PurePosixPath(stem).parents}
    counts = Counter(stem.casefold() for stem in stems.values())
    for name, stem in stems.items():
        is_folder = any(f"{stem}{suffix}".casefold() in folders for suffix in (".png", ".jpg", ".npz"))
        is_long = any(len(part.encode()) > _MAX_NAME for part in PurePosixPath(stem).parts)
        if counts[stem.casefold()] > 1 or is_folder or is_long:
            stems[name] = _numbered(stem, name)
    return stems


def _inside(key: str) -> str:
    """Return a relative path without the parts that lead out of a folder."""
    parts = [part for part in PurePosixPath(key.replace("\0", "")).parts if part not in {"/", "//", "..", "."}]
    return "/".join(parts) or "image"


def _numbered(stem: str, name: str) -> str:
    """Shorten the parts of a path where needed, and end it with a number made from the key."""
    number = hashlib.sha256(name.encode()).hexdigest()[:12]
    parts = [part.encode()[: _MAX_NAME - len(number) - 1].decode(errors="ignore") for part in stem.split("/")]
    return f"{'/'.join(parts)}-{number}"


class RunFolder(_Folder):
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

    def read_job(self) -> dict[str, Any]:
        """Read the configuration that `deeplab fit` gets for a fold.

        Raises:
            OSError: If there is no readable `job.yaml`.
            DataError: If it is damaged.
        """
        return _read_yaml(self.job)

    def write_job(self, config: Mapping[str, Any]) -> None:
        """Write the configuration that `deeplab fit` gets for a fold."""
        _write_yaml(self.job, config)

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


class ExperimentFolder(_Folder):
    """Name, write and read the files of a K-fold experiment, which holds a run's folder per fold.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.result, self.table = self.path / "cv.json", self.path / "cv.csv"
        """Pooled result of the folds, in full and as a table of IoU."""
        self.figure = self.path / "cv.png"
        self.images = self.path / "oof.npz"
        """Confusion matrices of all held-out images."""
        self.report = self.path / "report.html"
        """Page of the experiment; also that of a single run."""
        self.best_recipe = self.path / "best.yaml"
        """Options of `deeplab predict` that `deeplab best` found."""
        self.suspects = SuspectsFolder(self.path / "suspects")
        self.calibration, self.calibration_figure = self.path / "calibration.json", self.path / "calibration.png"
        """Temperature of the probabilities, and how well they agree with the labels before and after."""
        self.stopped = self.path / "stopped.json"
        """Why `kfold --cheap` does not train the other folds."""
        self.queue, self.queue_logs = self.path / "queue.json", self.path / "queue_logs"
        """Folds that a cluster's queue trains with the ids of their jobs, and what the jobs printed."""
        self.search, self.trials = self.path / "search.json", self.path / "trials.csv"
        """What `deeplab tune` searches with the settings of its trials, and their figures as a table."""
        self.best_settings = self.path / "best_settings.yaml"
        """Settings of the best trial, for `-c` of `fit` and `kfold`."""
        self._logged = self.path / ".cv_logged"  # key of the result that W&B got last

    def fold(self, number: int) -> RunFolder:
        """Return the run's folder of a fold."""
        return RunFolder(self.path / f"fold_{number}")

    def runs(self) -> list[RunFolder]:
        """Return the folders of the folds in order, or the folder itself if it is a single run.

        Repeated trainings of a fold, such as `fold_0-2`, are left out.
        """
        if (single := RunFolder(self.path)).result.is_file():
            return [single]
        folds = [path for path in self.path.glob("fold_*") if re.fullmatch(r"fold_\d+", path.name)]
        return [RunFolder(path) for path in sorted(folds, key=lambda path: int(path.name.removeprefix("fold_")))]

    def trial(self, number: int) -> RunFolder:
        """Return the run's folder of a trial of `deeplab tune`."""
        return RunFolder(self.path / f"trial_{number}")

    def seed(self, number: int) -> "ExperimentFolder":
        """Return the experiment of a seed, in the folder of `kfold --seeds`."""
        return ExperimentFolder(self.path / f"seed_{number}")

    def seeds(self) -> "list[ExperimentFolder]":
        """Return the experiments of the seeds in order; none if this is an experiment itself."""
        found = [path for path in self.path.glob("seed_*") if re.fullmatch(r"seed_\d+", path.name)]
        return [ExperimentFolder(path) for path in sorted(found, key=lambda path: int(path.name.removeprefix("seed_")))]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration that all folds share."""
        _write_yaml(self.config, config)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `cv.json`."""
        write_text(self.result, json.dumps(result, indent=1) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """Read `cv.json`; None without a readable one."""
        try:
            content = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def write_calibration(self, content: Mapping[str, Any]) -> None:
        """Write `calibration.json`."""
        write_text(self.calibration, json.dumps(content, indent=1) + "\n")

    def read_calibration(self) -> dict[str, Any] | None:
        """Read `calibration.json`; None without a readable one."""
        try:
            content = json.loads(self.calibration.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def write_stopped(self, content: Mapping[str, Any]) -> None:
        """Write `stopped.json`."""
        write_text(self.stopped, json.dumps(content, indent=1) + "\n")

    def read_stopped(self) -> dict[str, Any] | None:
        """Read `stopped.json`; None without one.

        Raises:
            DataError: If it is damaged.
        """
        if not self.stopped.is_file():
            return None
        try:
            content = json.loads(self.stopped.read_text(encoding="utf-8"))
            known = {"baseline": str(content["baseline"]), "chance": float(content["chance"])}
            return known | {key: [int(fold) for fold in content[key]] for key in ("folds", "planned")}
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise DataError(f"{self.stopped}: is damaged ({error}). Delete it to train the other folds.") from error

    def is_logged(self, key: str) -> bool:
        """Check whether W&B got the result with this key last."""
        return self._logged.is_file() and self._logged.read_text(encoding="utf-8") == key

    def mark_logged(self, key: str) -> None:
        """Record the key of the result that W&B got."""
        write_text(self._logged, key)


def confusion_rows(counts: npt.ArrayLike, class_names: Sequence[str]) -> list[list[Any]]:
    """Return a confusion matrix as rows of a table: a header, then a class name and K counts per row.

    Args:
        counts: (K, K) pixel counts, rows truth, columns prediction.
        class_names: K names.
    """
    table = zip(class_names, np.asarray(counts).tolist(), strict=True)
    return [["truth \\ prediction", *class_names], *([name, *row] for name, row in table)]


def choose_run_folder(
    *, name: str | None, output_dir: str, checkpoint: str | None, model: Mapping[str, Any], is_training: bool
) -> RunFolder:
    """Choose the folder that a run writes to.

    A run that starts from the checkpoint of another run continues in that run's folder, unless it is a training with
    another name. Every other run gets a folder that does not exist yet. The processes of DDP use the folder that the
    first process chose, whether Lightning or torchrun starts them.

    Args:
        name: Name of the run; made from model and time if None.
        output_dir: Folder of all runs.
        checkpoint: Path of a checkpoint, `last` for the newest checkpoint of the named run, or None.
        model: `class_path` and `init_args` of the network.
        is_training: Whether the command is `fit`.
    """
    is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_torchrun and int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_FOLDER_VARIABLE in os.environ:
        return RunFolder(os.environ[RUN_FOLDER_VARIABLE])
    named = Path(output_dir) / name if name else None
    own = None if checkpoint in {None, "last"} else RunFolder.of_checkpoint(str(checkpoint))
    if checkpoint == "last" and named is not None:
        folder = RunFolder(named)
    elif own is not None and (not is_training or named is None or named.absolute() == own.path):
        folder = own
    else:
        folder = RunFolder(_new_folder(named or Path(output_dir) / made_up_name(model)))
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def _new_folder(wanted: Path) -> Path:
    """Make the folder of a new run at once, so that no other run chooses it while this one still reads its data.

    Of processes that torchrun or srun started, the first one makes it, and tells the others.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import rendezvous  # slow to import

        store, rank, _ = next(iter(rendezvous("env://")))  # torchrun's own, which exists before any process group
        key = f"{RUN_FOLDER_VARIABLE}/{next(_choices)}"  # a script may choose several times, always in the same order
        if rank == 0:
            store.set(key, str(make_unused_folder(wanted)))
        return Path(store.get(key).decode())
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        step = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
        note = wanted.parent / f".folder-{step}-{next(_choices)}"  # on a file system that all nodes share
        if int(os.environ.get("SLURM_PROCID", 0)) == 0:
            folder = make_unused_folder(wanted)
            write_text(note, str(folder))
            return folder
        return Path(_awaited(note))
    return make_unused_folder(wanted)


def _awaited(note: Path) -> str:
    """Read a file once it is there.

    Raises:
        UserError: If it is not there in time.
    """
    end = time.monotonic() + _MAX_WAIT
    while not note.is_file():
        if time.monotonic() > end:
            raise UserError(
                f"the first process made no run folder in {note.parent.absolute()}; is it on a shared disk?"
            )
        time.sleep(0.1)
    return note.read_text(encoding="utf-8")


def made_up_name(model: Mapping[str, Any], *, prefix: str = "") -> str:
    """Make the name of a run from network, backbone and time.

    Args:
        model: `class_path` and `init_args` of the network.
        prefix: First part of the name.
    """
    network = str(model["class_path"]).rsplit(".", 1)[-1].lower()
    backbone = str((model.get("init_args") or {}).get("backbone") or "")
    return "-".join(part for part in (prefix, network, backbone, f"{datetime.now():%Y%m%d-%H%M%S}") if part)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping; an empty file gives an empty one.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # YAML's own, text, and dates and numbers
        raise DataError(f"{path}: is damaged, or not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict | None):
        raise DataError(f"{path}: is damaged: it holds a {type(content).__name__} instead of settings.")
    return content or {}


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(content, sort_keys=False))
