"""Compare contours, and objects by size; these figures say where experiments differ and decide nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.contributions import Contributions
from deeplab_lightning.experiments.resampling import resample
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.metrics.iou import nan_mean
from deeplab_lightning.metrics.per_image import PARTS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NAMES = ("boundary IoU", "recall of small objects", "recall of medium objects", "recall of large objects")
"""Names of the figures, in the order of `PARTS`."""
KEYS = ("boundary_iou", *(f"recall_{size}" for size in PARTS[1:]))
"""Columns of the figures in tables, likewise."""


@dataclass(frozen=True)
class Details:
    """Hold the figures of an experiment besides the IoU, each a mean over the classes whose truth has any of it.

    Attributes:
        of_classes: (4, K) boundary IoU, and share of the pixels of small, medium and large objects that are found; nan
            for classes without any.
        intervals: Four 95 % intervals of the means, over images; nan without one.
        differences: Four differences of the means from the baseline, with intervals over what those of the classes are
            over; empty for the baseline.
        objects: (3, K) number of small, medium and large objects.
    """

    of_classes: Floats
    intervals: list[tuple[float, float]]
    differences: list[Difference]
    objects: Ints

    def untested(self) -> "Details":
        """Return the figures with differences that have no intervals."""
        return replace(self, differences=[own.untested() for own in self.differences])

    @property
    def means(self) -> Floats:
        """Return the (4,) means over the classes."""
        return nan_mean(self.of_classes)


def compare_details(
    results: Sequence[CrossValidation],
    names: Sequence[str],
    groups: Sequence[str] | None,
    *,
    are_folds_compared: bool,
    num_resamples: int,
) -> list[Details] | None:
    """Compare the details of experiments; None if any has none.

    Args:
        results: The experiments, the baseline first.
        names: The N images that all held out.
        groups: (N,) groups of the images; None without groups.
        are_folds_compared: Whether differences are over folds, otherwise over images or groups.
        num_resamples: Number of resamples of the images.
    """
    known = [result.details for result in results if result.details is not None]
    if len(known) < len(results) or not all(set(names) <= set(own.names) for own in known):
        return None
    sets = [own.keep(names) for own in known]
    resampled = resample(sets, groups, num_resamples, figure=_flat_ratios)
    units = [results[0].fold_of[name] for name in names] if are_folds_compared else groups or names
    numbers = np.unique(np.asarray(units), return_inverse=True)[1].reshape(-1)
    of_units = [own.of_units(numbers) for own in sets]  # (U, 4, 3, K) each
    overlap = 1 / max(results[0].n_folds, 2) if are_folds_compared else 0.0
    found = []
    for index, (own, result) in enumerate(zip(of_units, results, strict=True)):
        total = own.sum(axis=0)
        values = _ratios(total)
        draws = resampled.figures[index].reshape(len(resampled.figures[index]), len(PARTS), -1)  # (R, 4, K)
        spans = [resampled.interval(nan_mean(draws[:, part]), float(nan_mean(values[part]))) for part in range(4)]
        pairs = zip(_margins(of_units[0]), _margins(own), strict=True)
        differences = [Contributions.of(a, b).miou(overlap=overlap) for a, b in pairs] if index else []
        found.append(Details(values, spans, differences, total[1:, 2] // max(len(result.seeds), 1)))
    return found


def missing_details(labels: Sequence[str], results: Sequence[CrossValidation]) -> str:
    """Say which experiments have no details; an empty text if all have them.

    Args:
        labels: Names of the experiments.
        results: The experiments.
    """
    lacking = ", ".join(label for label, own in zip(labels, results, strict=True) if own.details is None)
    if not lacking:
        return ""
    if any(result.epoch == "best" for result in results):
        return "boundary IoU and objects by size are of the last epoch, and not shown for others."
    return (
        f"no boundary IoU and objects by size: {lacking} did not count them in its last validation. Trainings of "
        "earlier versions did not, nor those that end by max_time or a signal."
    )


def _flat_ratios(counts: Floats) -> Floats:
    """Compute (R, 4 * K) figures of summed counts (R, 4 * 3 * K)."""
    return _ratios(counts.reshape(len(counts), len(PARTS), 3, -1)).reshape(len(counts), -1)


def _ratios(counts: Floats | Ints) -> Floats:
    """Compute (..., 4, K) boundary IoU and recalls of summed counts (..., 4, 3, K); nan for classes without truth."""
    right, truth, third = np.moveaxis(np.asarray(counts, dtype=np.float64), -2, 0)  # (..., 4, K) each
    is_contour = (np.arange(len(PARTS)) == 0)[:, None]
    below = np.where(is_contour, truth + third - right, truth)
    return np.divide(right, below, out=np.full(right.shape, np.nan), where=truth > 0)


def _margins(of_units: Ints) -> list[Ints]:
    """Return (U, 3, K) counts of each part whose right / (truth + predicted - right) is its figure, see `margins`."""
    contours, *sizes = np.moveaxis(of_units, 1, 0)
    return [contours, *(own[:, [0, 1, 0]] for own in sizes)]  # of objects, all that is predicted is right
