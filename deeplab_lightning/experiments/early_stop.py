"""Stop an experiment between its folds once it can hardly be found better than the baseline any more.

Stopping for a lack of prospects alone (futility) never claims anything early: a verdict needs all folds. So no verdict
is wrong that would not be wrong without it, whatever the rule is and whatever it assumes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special

from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.experiments.aggregate import CrossValidation, read_cv
from deeplab_lightning.experiments.contributions import Contributions, image_margins
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Floats = npt.NDArray[np.float64]
MIN_CHANCE = 0.05
"""An experiment is stopped if its chance to be found better is below this one."""
MIN_FOLDS = 2
"""Folds before the first decision, which give their differences a spread."""
_DRAWS = 20_000


def chance_of_better(differences: Sequence[float] | Floats, num_folds: int, *, overlap: float, seed: int = 0) -> float:
    """Predict the chance that all folds together find the experiment better than the baseline.

    It is the predictive probability (Spiegelhalter, Freedman and Blackburn 1986, "Monitoring Clinical Trials:
    Conditional or Predictive Power?") of what `weighted_t` will say of `num_folds` folds: the differences of the folds
    to come are drawn from a normal distribution whose mean and variance have their posterior after the folds so far,
    without any prior knowledge.

    Args:
        differences: (U,) differences of the folds so far, at least two.
        num_folds: Number of folds that are planned, at least U.
        overlap: Correlation of the differences of folds, see `weighted_t`.
        seed: Seed of the draws.
    """
    values, rng = np.asarray(differences, dtype=np.float64), np.random.default_rng(seed)
    count = len(values)
    variance = ((values - values.mean()) ** 2).sum() / rng.chisquare(count - 1, _DRAWS)
    mean = values.mean() + rng.normal(size=_DRAWS) * np.sqrt(variance / count)
    more = mean[:, None] + rng.normal(size=(_DRAWS, num_folds - count)) * np.sqrt(variance)[:, None]
    folds = np.concatenate([np.tile(values, (_DRAWS, 1)), more], axis=1)
    error = np.sqrt(folds.var(axis=1, ddof=1) * (1 / num_folds + overlap / (1 - overlap)))
    return float((folds.mean(axis=1) > special.stdtrit(num_folds - 1, 0.975) * error).mean())


def check_number_of_folds(folds: Sequence[int]) -> None:
    """Check that there is a fold left to spare after the first decision.

    Raises:
        ValueError: If there is none.
    """
    if len(folds) <= MIN_FOLDS:
        raise UserError(
            f"--cheap decides from {MIN_FOLDS} folds on, so it needs {MIN_FOLDS + 1} folds or more, got {len(folds)}."
        )


@dataclass(frozen=True)
class Baseline:
    """Hold the experiment that others have to beat.

    Attributes:
        name: Its name.
        folders: Its folders, one per seed.
    """

    name: str
    folders: Sequence[Path]

    @classmethod
    def find(cls, folder: Path) -> "Baseline":
        """Find an experiment, or the seeds in a folder of `kfold --seeds`.

        Raises:
            FileNotFoundError: If the folder holds no finished fold.
        """
        seeds = [seed.path for seed in ExperimentFolder(folder).seeds()]
        if not any(run.result.is_file() for own in seeds or [folder] for run in ExperimentFolder(own).runs()):
            raise MissingFileError(f"--baseline {folder}: no finished fold there. Train it with `deeplab kfold` first.")
        return cls(folder.name, seeds or [folder])

    @classmethod
    def of_record(cls, experiments: Sequence[Experiment]) -> "Baseline":
        """Return the experiment that earlier ones were stopped for, without its folders: nothing is left to decide.

        Args:
            experiments: The stopped experiment, one per seed.

        Raises:
            UserError: If none was stopped.
            DataError: If the decision is damaged.
        """
        records = [ExperimentFolder(own.folder).read_stopped() for own in experiments]
        name = next((record["baseline"] for record in records if record is not None), None)
        if name is None:
            raise UserError(
                f"--resume --cheap repeats the decision in stopped.json, and {experiments[0].folder} has none: give "
                "the experiment to beat, as --baseline runs/A."
            )
        return cls(name, [])

    def check(self, experiments: Sequence[Experiment]) -> None:
        """Check that experiments can be compared with this one fold by fold.

        Raises:
            ValueError: If there are fewer than three folds, one is missing in the baseline, or holds out other images.
        """
        check_number_of_folds(experiments[0].folds)
        folds, held_out = experiments[0].folds, _held_out(ExperimentFolder(experiments[0].folder))
        for folder in self.folders:
            result = read_cv(folder)
            if missing := [str(fold) for fold in folds if fold not in result.folds]:
                raise UserError(
                    f"--baseline {folder} has not finished fold {', '.join(missing)}. Finish it first, or choose the "
                    "folds with --folds."
                )
            own = {name: fold for name, fold in result.fold_of.items() if fold in folds}
            if own != {name: fold for name, fold in held_out.items() if fold in folds}:
                raise UserError(
                    f"--baseline {folder} has other folds than this experiment. For the same ones, add "
                    f"--data.fold_file {ExperimentFolder(folder).folds}."
                )


def _held_out(files: ExperimentFolder) -> dict[str, int]:
    """Return the fold of each image, from what each fold of a prepared experiment will hold out."""
    return {
        line.partition("\t")[2]: int(run.name.removeprefix("fold_"))
        for run in files.runs()
        for line in run.read_val_images()
    }


class EarlyStop:
    """Decide between the folds of an experiment whether those to come are worth their training.

    The folds that all seeds of the experiment and of the baseline have finished decide. The decision stays, in
    `stopped.json` of each seed's folder, until another baseline is given.

    Args:
        baseline: The experiment to beat.
        experiments: The experiment, one per seed, with the same folds.

    Raises:
        DataError: If an earlier decision is damaged.
    """

    def __init__(self, baseline: Baseline, experiments: Sequence[Experiment]) -> None:
        self._baseline, self._experiments = baseline, list(experiments)
        self._started: set[int] = set()
        self._has_record()  # before anything runs

    def is_wanted(self, fold: int) -> bool:
        """Check whether a fold is to be trained; one that another seed has started is, so that seeds stay paired."""
        if self._is_started(fold):
            return True
        if self._has_record():
            return False
        with suppress(DataError, MissingFileError):  # without results there is nothing to decide by
            if self._has_stopped():
                return False
        self._started.add(fold)
        return True

    def _has_record(self) -> bool:
        """Check whether a decision to stop for this baseline was recorded."""
        # All are read, to find damaged ones.
        records = [ExperimentFolder(own.folder).read_stopped() for own in self._experiments]
        return any(record is not None and record["baseline"] == self._baseline.name for record in records)

    def _is_started(self, fold: int) -> bool:
        return fold in self._started or any(own.is_finished(fold) for own in self._experiments)

    def _has_stopped(self) -> bool:
        """Decide, and record the decision to stop."""
        planned, n_folds = self._experiments[0].folds, self._experiments[0].config["data"]["n_folds"]
        found = fold_differences(
            [read_cv(folder) for folder in self._baseline.folders], [read_cv(own.folder) for own in self._experiments]
        )
        folds = sorted(set(found) & set(planned))
        if len(folds) < MIN_FOLDS:
            return False
        differences = [found[fold] for fold in folds]
        chance = chance_of_better(differences, len(planned), overlap=1 / n_folds)
        if chance >= MIN_CHANCE:
            return False
        for own in self._experiments:
            ExperimentFolder(own.folder).write_stopped(
                {
                    "baseline": self._baseline.name,
                    "folds": folds,
                    "planned": list(planned),
                    "differences": [round(value, 6) for value in differences],
                    "chance": round(chance, 4),
                }
            )
        return True


def fold_differences(base: Sequence[CrossValidation], own: Sequence[CrossValidation]) -> dict[int, float]:
    """Return the difference of mIoU from the baseline in each fold that all seeds of both have finished.

    A difference is what the fold contributes to the pooled one, over its weight, see `Contributions`.

    Args:
        base: The baseline, one result per seed.
        own: The experiment, likewise.
    """
    folds = sorted(set.intersection(*(set(part.folds) for part in (*base, *own))))
    names = sorted(name for name, fold in own[0].fold_of.items() if fold in folds)
    if not names:
        return {}
    units = np.searchsorted(folds, [own[0].fold_of[name] for name in names])
    a, b = (image_margins(_summed(parts, names), units) for parts in (base, own))
    found = Contributions.of(a, b)
    known = ~np.isnan(found.weights).any(axis=0)
    values, weights = (part[:, known].mean(axis=1) for part in (found.values, found.weights))
    return {fold: float(value / weight) for fold, value, weight in zip(folds, values, weights, strict=True) if weight}


def _summed(parts: Sequence[CrossValidation], names: Sequence[str]) -> PerImageConfusion:
    """Add up the matrices of images over seeds.

    Raises:
        DataError: If a seed has no matrices of these images.
    """
    sets = [part.images for part in parts if part.images is not None]
    if len(sets) < len(parts) or not all(set(names) <= set(images.names) for images in sets):
        raise DataError("the folds hold out other images, or have no image_matrices.npz.")
    kept = [images.keep(names).counts for images in sets]
    return PerImageConfusion(list(names), sum(kept[1:], kept[0]))
