"""Label images by networks where these are rarely wrong, as measured on images that they were not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab_lightning.data.batch import IGNORE_INDEX
from deeplab_lightning.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_BINS = 256


class ClassConfidences:
    """Count right and wrong pixels of held-out images by predicted class and confidence.

    Args:
        num_classes: K.

    Attributes:
        right: (K, 256) pixels whose predicted class is true; bin b holds confidences from b / 256 on.
        wrong: (K, 256) the same for pixels whose predicted class is not true.
    """

    def __init__(self, num_classes: int) -> None:
        self.right = np.zeros((num_classes, _BINS), dtype=np.int64)
        self.wrong = np.zeros_like(self.right)

    def add(self, probabilities: Tensor, mask: npt.NDArray[np.uint8]) -> None:
        """Add an image.

        Args:
            probabilities: (K, H, W), which sum to 1.
            mask: (H, W) train ids or `IGNORE_INDEX`.
        """
        confidence, labels = probabilities.cpu().max(dim=0)
        is_counted = torch.from_numpy(mask != IGNORE_INDEX)
        truth = torch.from_numpy(mask)[is_counted].long()
        labels, confidence = labels[is_counted], confidence[is_counted]
        places = labels * _BINS + (confidence * _BINS).long().clamp_(0, _BINS - 1)
        for counts, chosen in ((self.right, truth == labels), (self.wrong, truth != labels)):
            counts += torch.bincount(places[chosen], minlength=counts.size).reshape(counts.shape).numpy()


@dataclass(frozen=True)
class Cuts:
    """Hold the confidence from which on a class is labelled.

    Attributes:
        cuts: (K,) lowest confidence, in [0, 1]; inf for a class that is never labelled.
        precision: (K,) share of the held-out pixels labelled so that are right; nan if there are none.
        kept: (K,) share of the held-out pixels predicted as the class that are labelled so.
    """

    cuts: Floats
    precision: Floats
    kept: Floats

    def apply(self, probabilities: Tensor) -> Tensor:
        """Label the pixels (H, W) uint8 of an image; `IGNORE_INDEX` where the confidence is too low.

        Args:
            probabilities: (K, H, W), which sum to 1.
        """
        confidence, labels = probabilities.max(dim=0)
        cuts = torch.from_numpy(self.cuts).to(confidence)
        return labels.to(torch.uint8).masked_fill_(confidence < cuts[labels], IGNORE_INDEX)


def find_cuts(counts: ClassConfidences, precision: float) -> Cuts:
    """Find the lowest confidence of each class from which on its pixels reach a precision on held-out images.

    Args:
        counts: Pixels of the held-out images.
        precision: Share of the labelled pixels that have to be right, in (0, 1).

    Raises:
        UserError: If it is outside of (0, 1).
    """
    if not 0 < precision < 1:
        raise UserError(f"--precision must be in (0, 1), such as 0.9, got {precision}.")
    right, wrong = (np.cumsum(part[:, ::-1], axis=1)[:, ::-1] for part in (counts.right, counts.wrong))  # from a bin on
    total = right + wrong
    reached = np.divide(right, total, out=np.zeros(right.shape), where=total > 0) >= precision
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), _BINS)
    cuts = np.where(first < _BINS, first / _BINS, np.inf)
    at = np.minimum(first, _BINS - 1)[:, None]
    chosen = [np.where(first < _BINS, np.take_along_axis(part, at, axis=1)[:, 0], 0) for part in (right, total)]
    predicted = total[:, 0]
    return Cuts(cuts, _ratio(chosen[0], chosen[1]), _ratio(chosen[1], predicted))


def _ratio(numerator: Ints, denominator: Ints) -> Floats:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def cut_rows(cuts: Cuts, names: Sequence[str], labelled: Ints) -> list[dict[str, str | int]]:
    """Return a row for each class, for a table.

    Args:
        cuts: The cuts.
        names: K class names.
        labelled: (K,) pixels that were labelled.
    """
    rows = zip(names, cuts.cuts, cuts.precision, cuts.kept, labelled.tolist(), strict=True)
    return [
        {
            "class": name,
            "confidence": "never" if np.isinf(cut) else f"{cut:.3f}",
            "held-out precision": "" if np.isnan(precision) else f"{precision:.3f}",
            "held-out share kept": "" if np.isnan(kept) else f"{kept:.3f}",
            "labelled pixels": count,
        }
        for name, cut, precision, kept, count in rows
    ]
