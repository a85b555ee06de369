"""Hold compared experiments and what their comparison shows."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.details import Details
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.experiments.verdict import LEVEL, Verdict
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """Hold one of the compared experiments and its differences from the baseline.

    Attributes:
        cv: Pooled folds of the experiment.
        folders: Folders of the experiment, one per pooled seed.
        label: Name in tables: the folder's name, with parent folders if names repeat.
        compared_folds: Folds that hold out images which all experiments share; all without per-image matrices.
        matrix: (K, K) pixel counts over the images that all experiments share; over all images of this experiment if
            any experiment has no per-image matrices.
        images: Confusion matrices of the shared images; None if any experiment has no per-image matrices.
        interval: 95 % interval of the pooled mIoU over images; nan without per-image matrices.
        difference: Pooled mIoU minus the baseline's; nan for the baseline.
        over_folds: Difference from the baseline, paired by fold; None for the baseline, or if the folds differ.
        over_images: Difference from the baseline, paired by image; None for the baseline, or without per-image
            matrices.
        per_class: (K,) differences of the IoU, paired by fold where folds decide for all experiments, otherwise by
            image; None for the baseline, or if neither is possible.
        adjusted_p: p-value of the deciding difference, adjusted by Holm over all comparisons; paired by fold if
            possible, otherwise by image; nan if neither is.
        adjusted_class_p: (K,) p-values of the classes, adjusted by Holm over the classes; empty for the baseline.
        verdict: What the comparison with the baseline shows; None for the baseline.
        seed_mious: (S,) mIoU of each seed over the shared images; None if there is one seed.
        cost: Parameters in millions, multiply-adds in 10^9, training time of the compared folds and all seeds in
            seconds; None if unknown.
    """

    cv: CrossValidation
    folders: tuple[Path, ...]
    label: str
    compared_folds: list[int]
    matrix: Ints
    images: PerImageConfusion | None
    interval: tuple[float, float]
    difference: float
    over_folds: Difference | None
    over_images: Difference | None
    per_class: list[Difference] | None
    adjusted_p: float
    cost: dict[str, float | None]
    adjusted_class_p: tuple[float, ...] = ()
    verdict: Verdict | None = None
    seed_mious: Floats | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of the experiment; of the first seed if several are pooled."""
        return self.folders[0]

    @property
    def fold_mious(self) -> Floats:
        """Return the (F,) mIoU of each compared fold."""
        return self.cv.miou[[self.cv.folds.index(fold) for fold in self.compared_folds]]

    @property
    def fold_std(self) -> float:
        """Return the standard deviation of the mIoU of the compared folds; nan for a single one."""
        return float(self.fold_mious.std(ddof=1)) if len(self.compared_folds) > 1 else math.nan

    @property
    def seed_std(self) -> float:
        """Return the standard deviation of the seeds' mIoU; nan for one seed."""
        return math.nan if self.seed_mious is None else float(self.seed_mious.std(ddof=1))

    def is_starred(self, class_index: int) -> bool:
        """Check whether a class differs from the baseline, with the number of classes taken into account."""
        return len(self.adjusted_class_p) > 0 and self.adjusted_class_p[class_index] < LEVEL

    @property
    def miou(self) -> float:
        """Return the pooled mIoU over the shared images, of the classes that their truth holds."""
        return float(nan_mean(self.iou))

    @property
    def iou(self) -> Floats:
        """Return the (K,) pooled IoU over the shared images; nan for classes that their truth lacks."""
        return truth_iou(self.matrix)


@dataclass(frozen=True)
class Comparison:
    """Hold the compared experiments; the first is the baseline.

    Attributes:
        entries: Experiments in the given order.
        class_names: K names.
        num_images: Number of shared images; None if any experiment has no per-image matrices.
        basis: What the intervals of mIoU are over: `images` or `groups of images`; `folds` if there are none.
        class_basis: What the differences of the classes are over: `folds`, `images` or `groups of images`.
        notes: Limits of the comparison, one sentence each.
        pairs: Verdicts of every pair; None if they were not asked for.
        details: Contours and objects by size of each experiment; None if any has none.
    """

    entries: list[Entry]
    class_names: list[str]
    num_images: int | None
    basis: str
    class_basis: str
    notes: list[str]
    pairs: list[Verdict] | None = None
    details: list[Details] | None = None

    @property
    def sentences(self) -> list[str]:
        """Return the answers: of every pair if these were judged, else of each experiment and the baseline."""
        verdicts = [entry.verdict for entry in self.entries] if self.pairs is None else self.pairs
        return [verdict.sentence for verdict in verdicts if verdict is not None]
