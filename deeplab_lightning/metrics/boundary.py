"""Boundary IoU: how well the contours of the classes are met."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.confusion import PixelCounts


class BoundaryCounts(PixelCounts):
    """What boundary IoU divides, summed over batches and processes; see `boundary_iou`.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(2, num_classes, **kwargs)
        self.num_classes = num_classes

    def update(self, preds: Tensor, mask: Tensor) -> None:
        """preds: (B, H, W) integer in [0, K); mask: (B, H, W) integer in [0, K) or 255."""
        self.counts += boundary_counts(preds, mask, self.num_classes).sum(dim=0)

    def compute(self) -> Tensor:
        """(K,) float64 boundary IoU; nan for classes without a contour in truth and prediction."""
        shared, either = self.counts.cpu().double()
        return shared / either


def boundary_iou(preds: Tensor, mask: Tensor, num_classes: int, *, dilation_ratio: float = 0.02) -> Tensor:
    """Boundary IoU (Cheng et al. 2021, equation 3): IoU of the pixels near their own class's contour.

    The sums are over all pictures, as those of `class_iou`. Outside of the picture, and where the truth is
    ignored, there is no class: a contour runs along both, in truth and prediction alike.

    Args:
        preds: (B, H, W) integer in [0, K).
        mask: (B, H, W) integer in [0, K), or 255 for pixels that count nowhere.
        num_classes: K.
        dilation_ratio: How near is near, as a fraction of the picture's diagonal; at least one pixel.

    Returns:
        (K,) float64; nan for classes without a contour in truth and prediction.

    Raises:
        ValueError: For a ratio that is not positive.
    """
    shared, either = boundary_counts(preds, mask, num_classes, dilation_ratio=dilation_ratio).sum(dim=0).cpu().double()
    return shared / either


def boundary_counts(preds: Tensor, mask: Tensor, num_classes: int, *, dilation_ratio: float = 0.02) -> Tensor:
    """What `boundary_iou` divides, of each picture: (B, 2, K) int64, pixels in both boundaries and in either."""
    if not dilation_ratio > 0:
        raise UserError(f"dilation_ratio must be positive, got {dilation_ratio}.")
    target = mask.long()
    labels = torch.where(target == IGNORE_INDEX, IGNORE_INDEX, preds.long())
    reach = max(1, round(dilation_ratio * math.hypot(*mask.shape[-2:])))  # pixels
    truth_near, labels_near = _is_near_contour(target, reach), _is_near_contour(labels, reach)
    truth = _count(target, truth_near, num_classes)
    predicted = _count(labels, labels_near, num_classes)
    shared = _count(target, truth_near & labels_near & (target == labels), num_classes)
    return torch.stack([shared, truth + predicted - shared], dim=1)


def _is_near_contour(labels: Tensor, reach: int) -> Tensor:
    """(B, H, W) int64 -> bool: whether another label, or the picture's end, is within `reach` pixels in each axis."""
    near = torch.ones_like(labels, dtype=torch.bool)
    height, width = labels.shape[-2:]
    if min(height, width) > 2 * reach:
        across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
        changes = _box_sums(across, 2 * reach + 1, 2 * reach) + _box_sums(down, 2 * reach, 2 * reach + 1)
        near[:, reach : height - reach, reach : width - reach] = changes > 0
    return near


def _box_sums(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W) bool -> (B, H - rows + 1, W - columns + 1) int32: how many are true in each box."""
    sums = F.pad(x.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))
    below, above = sums[:, rows:], sums[:, :-rows]
    return below[:, :, columns:] - below[:, :, :-columns] - above[:, :, columns:] + above[:, :, :-columns]


def _count(labels: Tensor, is_counted: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) each -> (B, K) int64, pixels of each class among those that count."""
    batch = len(labels)
    cell = torch.where(is_counted & (labels != IGNORE_INDEX), labels, num_classes)
    cell = cell + torch.arange(batch, device=cell.device).reshape(-1, 1, 1) * (num_classes + 1)
    counts = torch.bincount(cell.reshape(-1), minlength=batch * (num_classes + 1))
    return counts.reshape(batch, num_classes + 1)[:, :num_classes]
