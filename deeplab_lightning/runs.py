"""Folders of runs and experiments: the name, writer and reader of every file in them, and which folder a run gets."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from deeplab_lightning.errors import MissingFileError
from deeplab_lightning.files import unused_path, write_text
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.tables import csv_text, csv_text_of_dicts, read_csv, read_rows

RUN_FOLDER_VARIABLE = "DEEPLAB_RUN_FOLDER"
"""Environment variable that tells the processes that Lightning starts for DDP where to write."""
RECORD_FILES = ("image_matrices.npz", "folds.csv", "balance.csv")
"""Files of a run that `deeplab compare` reads beside its result; a W&B run keeps copies of them."""
_RESULTS = {"val": "result_validate.json", "test": "result_test.json"}  # stage -> of an evaluation after the training
_INTEGERS = ("epoch", "step")  # columns of metrics.csv


class _Folder:
    """What runs and experiments have in common.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        """The resolved configuration; `deeplab fit -c` trains it again."""
        self.folds = self.path / "folds.csv"
        """Image, group and validation fold of every image."""
        self.balance = self.path / "balance.csv"
        """Images, objects and area of each class in each fold."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration; empty if the file is.

        Raises:
            FileNotFoundError: If there is none.
        """
        if not self.config.is_file():
            raise MissingFileError(f"no such file: {self.config.absolute()}. {self.path} is not the folder of a run.")
        return yaml.safe_load(self.config.read_text()) or {}

    def write_splits(self, folds: str, balance: str | None) -> None:
        """Write `folds.csv` and, where there are folds, `balance.csv`, both given as text."""
        write_text(self.folds, folds)
        if balance is not None:
            write_text(self.balance, balance)

    def read_groups(self) -> dict[str, str]:
        """Return image key -> label of what stays in one fold; empty without `folds.csv`."""
        return {row["image"]: row["group"] for row in read_csv(self.folds)} if self.folds.is_file() else {}

    def read_balance(self) -> list[dict[str, str]]:
        """Return the rows of `balance.csv`; none if there is no such file."""
        return read_csv(self.balance) if self.balance.is_file() else []


class RunFolder(_Folder):
    """The folder of one training.

    `result.json` is written last: where it exists, the training finished.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.metrics = self.path / "metrics.csv"
        """One row per epoch."""
        self.confusion = self.path / "confusion_matrix.csv"
        """Pixel counts of the best epoch, rows truth, columns prediction."""
        self.confusion_figure = self.path / "confusion_matrix.png"
        self.images = self.path / "image_matrices.npz"
        """The same for each validation image."""
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"
        self.panels = self.path / "panels"
        self.predictions = self.path / "predictions"
        self.crf, self.crf_trials = self.path / "crf.yaml", self.path / "crf.csv"
        # Of a fold that `deeplab kfold` trains:
        self.job, self.log, self.lock = self.path / "job.yaml", self.path / "log.txt", self.path / ".lock"
        self.val_images, self.val_predictions = self.path / "val_images.txt", self.path / "val_predictions"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> "RunFolder | None":
        """Return the run that a checkpoint lies in; None if it lies elsewhere."""
        folder = cls(Path(checkpoint).absolute().parent.parent)
        return folder if folder.config.is_file() else None

    def write_config(self, text: str, stage: str) -> None:
        """Write the configuration of a stage beside earlier ones: `config.yaml`, `config_<stage>.yaml`, ..."""
        write_text(unused_path(self.config if stage == "fit" else self.path / f"config_{stage}.yaml"), text)

    def read_result(self) -> dict[str, Any] | None:
        """Read `result.json`; None if the training did not finish."""
        return json.loads(self.result.read_text()) if self.result.is_file() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_text(self.result, json.dumps(result, indent=2) + "\n")

    def write_evaluation(self, result: Mapping[str, Any], stage: str) -> Path:
        """Write the result of `validate` or `test`, numbered if there is one already, and return its path.

        Args:
            result: What to write.
            stage: `val` or `test`.
        """
        path = unused_path(self.path / _RESULTS[stage])
        write_text(path, json.dumps(result, indent=2) + "\n")
        return path

    def read_metrics(self) -> list[dict[str, float]]:
        """Read the rows of `metrics.csv` without their empty cells; none if there is no such file."""
        if not self.metrics.is_file():
            return []
        return [{key: float(value) for key, value in row.items() if value} for row in read_csv(self.metrics)]

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write `metrics.csv` with all digits: a resumed training must compare what an uninterrupted one compares."""
        texts = [{k: int(v) if k in _INTEGERS else repr(v) for k, v in row.items()} for row in rows]
        write_text(self.metrics, csv_text_of_dicts(texts))

    def read_confusion(self) -> npt.NDArray[np.int64]:
        """Read the (K, K) counts of `confusion_matrix.csv`."""
        return np.array([row[1:] for row in read_rows(self.confusion)[1:]], dtype=np.int64)

    def write_confusion(self, counts: npt.ArrayLike, names: Sequence[str]) -> None:
        """Write `confusion_matrix.csv` from (K, K) counts and K class names."""
        table = [[name, *row] for name, row in zip(names, np.asarray(counts).tolist(), strict=True)]
        write_text(self.confusion, csv_text([["truth \\ prediction", *names], *table]))

    def read_images(self) -> PerImageConfusion | None:
        """Read the matrices of the validation images; None where only their sum is known.

        Raises:
            FileNotFoundError: If neither is there.
        """
        if not self.images.is_file() and self.confusion.is_file():
            return None
        return PerImageConfusion.read(self.images)


class ExperimentFolder(_Folder):
    """The folder of a K-fold experiment, with a run's folder per fold.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.result, self.table = self.path / "cv.json", self.path / "cv.csv"
        """What the folds say together."""
        self.figure = self.path / "cv.png"
        self.images = self.path / "oof.npz"
        """The matrices of all held-out images."""
        self.logged = self.path / ".cv_logged"
        """Key of what W&B got last."""

    def fold(self, number: int) -> RunFolder:
        """Return the folder of a fold."""
        return RunFolder(self.path / f"fold_{number}")

    def runs(self) -> list[RunFolder]:
        """Return the folders of the folds in order; the folder itself if it is a single run.

        A fold that was trained again, as `fold_0-2`, is left out.
        """
        if (single := RunFolder(self.path)).result.is_file():
            return [single]
        folds = {path: re.fullmatch(r"fold_(\d+)", path.name) for path in self.path.glob("fold_*")}
        return [RunFolder(path) for path in sorted((p for p, m in folds.items() if m), key=lambda p: int(p.name[5:]))]


def choose_run_folder(
    *, name: str | None, output_dir: str, checkpoint: str | None, model: Mapping[str, Any], is_training: bool
) -> RunFolder:
    """Choose the folder that a run writes to.

    A checkpoint's own run goes on in its folder; every other run gets a folder that does not exist yet. Processes
    that Lightning starts for DDP take the folder of the first one.

    Args:
        name: The run's name; made from model and time if None.
        output_dir: The folder of the runs.
        checkpoint: A path, `last` for the newest checkpoint of the named run, or None.
        model: `class_path` and `init_args` of the network.
        is_training: Whether the command is `fit`.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_FOLDER_VARIABLE in os.environ:
        return RunFolder(os.environ[RUN_FOLDER_VARIABLE])
    named = Path(output_dir) / name if name else None
    own = None if checkpoint in {None, "last"} else RunFolder.of_checkpoint(str(checkpoint))
    if checkpoint == "last" and named is not None:
        folder = RunFolder(named)
    elif own is not None and (not is_training or named is None or named.absolute() == own.path):
        folder = own
    else:
        folder = RunFolder(unused_path(named or Path(output_dir) / made_up_name(model)))
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def made_up_name(model: Mapping[str, Any], *, prefix: str = "") -> str:
    """Make a name from network, backbone and time."""
    network = str(model["class_path"]).rsplit(".", 1)[-1].lower()
    backbone = str((model.get("init_args") or {}).get("backbone") or "")
    return "-".join(part for part in (prefix, network, backbone, f"{datetime.now():%Y%m%d-%H%M%S}") if part)
