"""Compute IoU, mIoU and other metrics of confusion matrices, in NumPy.

All other parts of the package use these definitions. A matrix holds counts of pixels, (K, K), rows truth, columns
prediction. A class in neither truth nor prediction has no IoU (nan) and is left out of means; a class that is only
predicted has IoU 0. Matrices may be arrays or tensors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Counts = Any  # an array or a tensor of integers
Floats = npt.NDArray[np.float64]
FOREGROUND_KEYS = ("dice", "precision", "recall")
"""Figures of the foreground of binary segmentation, in addition to its IoU."""


def class_iou(matrices: Counts) -> Floats:
    """Compute the intersection over union of each class.

    Args:
        matrices: (..., K, K) counts.

    Returns:
        (..., K); nan for classes in neither truth nor prediction.
    """
    return iou_of_counts(*_margins(matrices))


def iou_of_counts(correct: Counts, truth: Counts, predicted: Counts) -> Floats:
    """Compute the intersection over union of each class from its correct, true and predicted pixels.

    Args:
        correct: (..., K) counts.
        truth: (..., K) counts.
        predicted: (..., K) counts.

    Returns:
        (..., K); nan for classes in neither truth nor prediction.
    """
    return _ratio(correct, truth + predicted - correct)


def truth_iou(matrices: Counts) -> Floats:
    """Compute the intersection over union of each class that the truth holds.

    For comparisons: two predictions of the same images are then averaged over the same classes, while one false pixel
    of a class without truth would give a mean of `class_iou` one more class, of IoU 0.

    Args:
        matrices: (..., K, K) counts.

    Returns:
        (..., K); nan for classes without truth.
    """
    _, truth, _ = _margins(matrices)
    return np.where(truth > 0, class_iou(matrices), np.nan)


def mean_iou(matrices: Counts) -> Floats:
    """Compute mIoU, the mean over the classes that have an IoU.

    Args:
        matrices: (..., K, K) counts.

    Returns:
        (...); nan if no class has an IoU.
    """
    return nan_mean(class_iou(matrices))


def pixel_accuracy(matrices: Counts) -> Floats:
    """Compute the fraction of pixels that are predicted correctly.

    Args:
        matrices: (..., K, K) counts.

    Returns:
        (...); nan without pixels.
    """
    hits, truth, _ = _margins(matrices)
    return _ratio(hits.sum(axis=-1), truth.sum(axis=-1))


def summarize(matrix: Counts) -> dict[str, float]:
    """Compute the metrics of a whole set, each in [0, 1].

    Args:
        matrix: (K, K) counts over the whole set.

    Returns:
        `miou`, `pixel_accuracy`, `mean_accuracy` (without classes that the truth does not hold), `fw_iou` (IoU weighted
        by the truth's fraction of pixels) and `dice` (mean over classes); nan if nothing was counted.
    """
    hits, truth, predicted = _margins(matrix)
    iou = class_iou(matrix)
    return {
        "miou": float(mean_iou(matrix)),
        "pixel_accuracy": float(pixel_accuracy(matrix)),
        "mean_accuracy": float(nan_mean(_ratio(hits, truth))),
        "fw_iou": float(_ratio(np.nansum(truth * iou), truth.sum())),
        "dice": float(nan_mean(_ratio(2 * hits, truth + predicted))),
    }


def foreground_figures(matrix: Counts) -> dict[str, float]:
    """Compute the metrics of the second of two classes, as binary segmentation is reported.

    Args:
        matrix: (2, 2) counts over the whole set.

    Returns:
        `iou`, `dice`, `precision` and `recall`, each in [0, 1]; nan where nothing was counted.
    """
    hits, truth, predicted = _margins(matrix)
    return {
        "iou": float(class_iou(matrix)[1]),
        "dice": float(_ratio(2 * hits, truth + predicted)[1]),
        "precision": float(_ratio(hits, predicted)[1]),
        "recall": float(_ratio(hits, truth)[1]),
    }


def nan_mean(values: Floats) -> Floats:
    """Average over the last axis, leaving out nan; nan if all values are nan."""
    is_known = ~np.isnan(values)
    return _ratio(np.where(is_known, values, 0).sum(axis=-1), is_known.sum(axis=-1))


def _margins(matrices: Counts) -> tuple[Floats, Floats, Floats]:
    """Return correct, true and predicted pixels of each class, (..., K) each."""
    counts = np.asarray(matrices.cpu() if hasattr(matrices, "cpu") else matrices).astype(np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Divide, with nan where the denominator is 0."""
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)
