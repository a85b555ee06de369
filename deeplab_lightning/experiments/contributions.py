"""Split a difference of pooled IoU into the contributions of folds or images, and test it by their spread."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.experiments.significance import UNKNOWN, Difference, weighted_t
from deeplab_lightning.metrics.per_image import PerImageConfusion

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Contributions:
    """Hold what each unit, a fold or an image or a group of images, adds to the difference of pooled IoU.

    A unit whose IoU is that of the pooled images of both models contributes 0. Since the IoU of a unit enters with
    the unit's share of the class's pixels, a class that one fold holds most of is mostly this fold's contribution.

    Attributes:
        values: (U, K) contributions; those of a class sum to its difference of pooled IoU; nan for classes without
            truth.
        weights: (U, K) share of each unit in a class's pixels; those of a class sum to 1; nan likewise.
    """

    values: Floats
    weights: Floats

    @classmethod
    def of(cls, a: Ints, b: Ints) -> "Contributions":
        """Split the difference B - A.

        Args:
            a: (U, 3, K) correct, true and predicted pixels of U units by A, see `margins`.
            b: The same by B.
        """
        unions = [own[:, 1] + own[:, 2] - own[:, 0] for own in (a, b)]  # (U, K) each
        has_truth = (a[:, 1].sum(axis=0) > 0) & (b[:, 1].sum(axis=0) > 0)
        totals = [np.where(has_truth, union.sum(axis=0), np.nan) for union in unions]
        iou = sum(own[:, 0].sum(axis=0) / total for own, total in zip((a, b), totals, strict=True)) / 2
        excess = [(own[:, 0] - iou * union) / total for own, union, total in zip((a, b), unions, totals, strict=True)]
        weights = sum(union / total for union, total in zip(unions, totals, strict=True)) / 2
        return cls(excess[1] - excess[0], np.asarray(weights))

    def miou(self, *, overlap: float = 0.0) -> Difference:
        """Test the difference of pooled mIoU.

        Args:
            overlap: Correlation of the units' differences, see `weighted_t`.
        """
        known = ~np.isnan(self.weights).any(axis=0)
        if not known.any():
            return UNKNOWN
        return weighted_t(self.values[:, known].mean(axis=1), self.weights[:, known].mean(axis=1), overlap=overlap)

    def classes(self, *, overlap: float = 0.0) -> list[Difference]:
        """Test the (K,) differences of pooled IoU of each class.

        Args:
            overlap: See `miou`.
        """
        return [
            UNKNOWN if np.isnan(weights).any() else weighted_t(values, weights, overlap=overlap)
            for values, weights in zip(self.values.T, self.weights.T, strict=True)
        ]


def margins(matrices: Ints) -> Ints:
    """Return the correct, true and predicted pixels of each class, (U, 3, K), of (U, K, K) matrices."""
    parts = (np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2), matrices.sum(axis=1))
    return np.stack(parts, axis=1)


def image_margins(images: PerImageConfusion, units: Ints) -> Ints:
    """Return the margins of units of images, without a dense matrix of each image.

    Args:
        images: Matrices of N images.
        units: (N,) unit of each image, in [0, U).

    Returns:
        (U, 3, K), see `margins`.
    """
    k, pairs = images.num_classes, np.arange(images.num_classes**2)
    # A column of counts, truth t and prediction p, is correct if t = p, and belongs to the margins of t and of p.
    columns = np.concatenate([pairs[:: k + 1] // k, k + pairs // k, 2 * k + pairs % k])
    rows = np.concatenate([pairs[:: k + 1], pairs, pairs])
    gather = csr_matrix((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(k * k, 3 * k))
    add = csr_matrix((np.ones(len(units), dtype=np.int64), (units, np.arange(len(units)))))
    return np.asarray((add @ (images.counts @ gather)).toarray(), dtype=np.int64).reshape(-1, 3, k)
