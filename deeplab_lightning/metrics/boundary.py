"""Compute boundary IoU, which measures the quality of contours."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.confusion import PixelCounts


class BoundaryCounts(PixelCounts):
    """Count the pixels of `boundary_iou`, summed over batches and processes.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(2, num_classes, **kwargs)
        self.num_classes = num_classes

    def update(self, preds: Tensor, mask: Tensor) -> None:
        """Add the pixels of a batch.

        Args:
            preds: (B, H, W) integer in [0, K).
            mask: (B, H, W) integer in [0, K), or 255 for ignored pixels.
        """
        self.add(boundary_counts(preds, mask, self.num_classes).sum(dim=0))

    def compute(self) -> Tensor:
        """Compute boundary IoU, (K,) float64; nan for classes without a contour in truth and prediction."""
        shared, either = self.counts.cpu().double()
        return shared / either


def boundary_iou(preds: Tensor, mask: Tensor, num_classes: int, *, dilation_ratio: float = 0.02) -> Tensor:
    """Compute the IoU of the pixels near the contour of their class (Cheng et al. 2021, equation 3).

    The sums are over all images, as those of `class_iou`. Pixels outside of the image and ignored pixels have no class,
    so that contours follow the border of both, in truth and prediction.

    Args:
        preds: (B, H, W) integer in [0, K).
        mask: (B, H, W) integer in [0, K), or 255 for ignored pixels.
        num_classes: Number of classes K.
        dilation_ratio: Largest distance from the contour, as a fraction of the image's diagonal; at least one pixel.

    Returns:
        (K,) float64; nan for classes without a contour in truth and prediction.

    Raises:
        ValueError: If dilation_ratio is not positive.
    """
    shared, either = boundary_counts(preds, mask, num_classes, dilation_ratio=dilation_ratio).sum(dim=0).cpu().double()
    return shared / either


def boundary_counts(preds: Tensor, mask: Tensor, num_classes: int, *, dilation_ratio: float = 0.02) -> Tensor:
    """Count the pixels in both boundaries and in either, per image; the arguments are those of `boundary_iou`.

    Returns:
        (B, 2, K) int64: pixels in the boundaries of truth and prediction, and in at least one of them.
    """
    shared, truth, predicted = boundary_margins(preds, mask, num_classes, dilation_ratio=dilation_ratio).unbind(dim=1)
    return torch.stack([shared, truth + predicted - shared], dim=1)


def boundary_margins(preds: Tensor, mask: Tensor, num_classes: int, *, dilation_ratio: float = 0.02) -> Tensor:
    """Count the pixels in both boundaries and in each, per image; the arguments are those of `boundary_iou`.

    Returns:
        (B, 3, K) int64: pixels in the boundaries of truth and prediction, in that of the truth, in that of the
        prediction.
    """
    if not dilation_ratio > 0:
        raise UserError(f"dilation_ratio must be positive, got {dilation_ratio}.")
    target = mask.long()
    labels = torch.where(target == IGNORE_INDEX, IGNORE_INDEX, preds.long())
    reach = max(1, round(dilation_ratio * math.hypot(*mask.shape[-2:])))  # pixels
    truth_near, labels_near = _is_near_contour(target, reach), _is_near_contour(labels, reach)
    truth = _count(target, truth_near, num_classes)
    predicted = _count(labels, labels_near, num_classes)
    shared = _count(target, truth_near & labels_near & (target == labels), num_classes)
    return torch.stack([shared, truth, predicted], dim=1)


def _is_near_contour(labels: Tensor, reach: int) -> Tensor:
    """Check for each pixel of (B, H, W) whether another label or the border is within `reach` pixels on each axis."""
    near = torch.ones_like(labels, dtype=torch.bool)
    height, width = labels.shape[-2:]
    if min(height, width) > 2 * reach:
        across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
        changes = _box_sums(across, 2 * reach + 1, 2 * reach) + _box_sums(down, 2 * reach, 2 * reach + 1)
        near[:, reach : height - reach, reach : width - reach] = changes > 0
    return near


def _box_sums(x: Tensor, rows: int, columns: int) -> Tensor:
    """Count the true values in each box of (B, H, W), as (B, H - rows + 1, W - columns + 1) int32."""
    sums = F.pad(x.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))
    below, above = sums[:, rows:], sums[:, :-rows]
    return below[:, :, columns:] - below[:, :, :-columns] - above[:, :, columns:] + above[:, :, :-columns]


def _count(labels: Tensor, is_counted: Tensor, num_classes: int) -> Tensor:
    """Count the selected pixels of each class, (B, K) int64, from labels and bool (B, H, W)."""
    batch = len(labels)
    cell = torch.where(is_counted & (labels != IGNORE_INDEX), labels, num_classes)
    cell = cell + torch.arange(batch, device=cell.device).reshape(-1, 1, 1) * (num_classes + 1)
    counts = torch.bincount(cell.reshape(-1), minlength=batch * (num_classes + 1))
    return counts.reshape(batch, num_classes + 1)[:, :num_classes]
