"""Choose among ways to predict without judging a choice by the images that it was made on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deeplab_lightning.data.folds import stratified_folds
from deeplab_lightning.experiments.contributions import Contributions
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.metrics.iou import iou_of_counts, nan_mean

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
TOLERANCE = 0.001
"""mIoU that a cheaper way to predict may be below the best one and still be chosen."""


NUM_PARTS = 5
"""Largest number of parts of the validation images of a single training."""


def split_into_parts(pixels: Ints, groups: Ints) -> Ints:
    """Split the validation images of a single training into parts with like classes, which stand in for folds.

    Args:
        pixels: (N, K) pixels of each class in each image.
        groups: (N,) number of the group of each image; at least two groups, each of which stays in one part.

    Returns:
        (N,) part of each image.
    """
    count = min(NUM_PARTS, len(np.unique(groups)))
    parts = stratified_folds((pixels > 0).astype(np.int64), pixels.astype(np.float64), count, groups=groups)
    return np.asarray(parts, dtype=np.int64)


@dataclass(frozen=True)
class Choice:
    """Hold the result of a nested choice among C candidates.

    Attributes:
        final: Index of the candidate that is chosen on all images.
        of_fold: Index of the candidate that is chosen without the images of each fold, by fold.
        margins: (N, 3, K) correct, true and predicted pixels of each image by the candidate of its fold, which was
            chosen without it.
        miou: Pooled mIoU of `margins`, which is what can be promised.
        selected_miou: Pooled mIoU of the final candidate on the images that chose it.
    """

    final: int
    of_fold: dict[int, int]
    margins: Ints
    miou: float
    selected_miou: float

    @property
    def optimism(self) -> float:
        """Return the part of the final candidate's mIoU that is due to the choice."""
        return self.selected_miou - self.miou


def choose(margins: Ints, folds: Ints, costs: Sequence[float], candidates: Sequence[int]) -> Choice:
    """Choose the candidate of the highest pooled mIoU, for each fold on the images of the other folds alone.

    Of candidates within `TOLERANCE` of the highest, the cheapest is taken.

    Args:
        margins: (C, N, 3, K) correct, true and predicted pixels of each image by each candidate.
        folds: (N,) fold of each image.
        costs: (C,) cost of each candidate, in any unit.
        candidates: Indices of the candidates to choose from.
    """
    chosen = np.array(candidates)
    totals = {int(fold): margins[chosen][:, folds == fold].sum(axis=1) for fold in np.unique(folds)}  # (c, 3, K)
    everything = sum(totals.values())
    own_costs = np.asarray(costs, dtype=np.float64)[chosen]
    final = int(chosen[_cheapest_good(pooled_miou(everything), own_costs)])
    of_fold = {
        fold: int(chosen[_cheapest_good(pooled_miou(everything - own), own_costs)]) for fold, own in totals.items()
    }
    nested = margins[[of_fold[int(fold)] for fold in folds], np.arange(len(folds))]
    return Choice(
        final,
        of_fold,
        nested,
        float(pooled_miou(nested.sum(axis=0))),
        float(pooled_miou(margins[final].sum(axis=0))),
    )


def gain(before: Choice, after: Choice, groups: Ints) -> Difference:
    """Test the difference of two nested choices on new images, with networks like these.

    Args:
        before: The choice to improve.
        after: The other choice, on the same images.
        groups: (N,) number of the group of each image; images of a group are one unit.
    """
    a, b = (_by_group(choice.margins, groups) for choice in (before, after))
    return Contributions.of(a, b).miou()


def pooled_miou(margins: Ints) -> Floats:
    """Compute the mIoU of classes with truth from correct, true and predicted pixels (..., 3, K)."""
    correct, truth, predicted = np.moveaxis(margins, -2, 0)
    return nan_mean(np.where(truth > 0, iou_of_counts(correct, truth, predicted), np.nan))


def _cheapest_good(mious: Floats, costs: Floats) -> int:
    """Return the index of the cheapest candidate within the tolerance of the best, the better one of equal costs."""
    is_good = mious >= np.nanmax(mious) - TOLERANCE if not np.isnan(mious).all() else np.ones(len(mious), dtype=bool)
    return int(np.lexsort((-np.nan_to_num(mious), np.where(is_good, costs, np.inf)))[0])


def _by_group(margins: Ints, groups: Ints) -> Ints:
    total = np.zeros((int(groups.max()) + 1, *margins.shape[1:]), dtype=np.int64)
    np.add.at(total, groups, margins)
    return total
