"""Name, write and read the files of a K-fold experiment."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_text
from deeplab_lightning.runs.folder import Folder, write_yaml
from deeplab_lightning.runs.predictions import SuspectsFolder
from deeplab_lightning.runs.run import RunFolder


class ExperimentFolder(Folder):
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

    def fault_of(self, run: RunFolder, result: Mapping[str, Any]) -> str | None:
        """Describe why a finished run is not the fold of this experiment that its folder's name says.

        Args:
            run: One of `runs`.
            result: Its result.

        Returns:
            A sentence; None if it is that fold, or `kfold` did not make this folder.
        """
        if run.path == self.path or not self.config.is_file():
            return None
        if result["fold"] not in {None, int(run.name.removeprefix("fold_"))}:
            return f"{run} holds the result of fold {result['fold']}, as a copied or renamed folder does."
        if not (self.folds.is_file() and run.folds.is_file()):
            return None
        is_same = self.folds.read_bytes() == run.folds.read_bytes() or self.read_folds() == run.read_folds()
        return None if is_same else f"{run} was trained on other folds than {self.folds} holds."

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

    @classmethod
    def of_checkpoints(cls, checkpoints: Sequence[str | Path]) -> "ExperimentFolder | None":
        """Return the experiment whose runs wrote checkpoints; None if not all are of runs of one experiment.

        Checkpoints of a single run are not those of an experiment.
        """
        found = [RunFolder.of_checkpoint(checkpoint) for checkpoint in checkpoints]
        runs = {run.path for run in found if run is not None}
        if None in found or len(runs) < 2:
            return None
        folder = cls(os.path.commonpath(runs))
        known = {run.path for part in folder.seeds() or [folder] for run in part.runs()}
        return folder if runs <= known else None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration that all folds share."""
        write_yaml(self.config, config)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `cv.json`."""
        write_text(self.result, json.dumps(result, indent=1) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """Read `cv.json`; None without a readable one."""
        return _read_json(self.result)

    def write_calibration(self, content: Mapping[str, Any]) -> None:
        """Write `calibration.json`."""
        write_text(self.calibration, json.dumps(content, indent=1) + "\n")

    def read_calibration(self) -> dict[str, Any] | None:
        """Read `calibration.json`; None without a readable one."""
        return _read_json(self.calibration)

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


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a mapping; None without a readable one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
