"""Count confusion matrices per image, and sum them over batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError


class PixelCounts(Metric):
    """Sum integer counts over batches and processes.

    Args:
        shape: Shape of the counts.
        kwargs: Options of torchmetrics.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor

    def __init__(self, *shape: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A metric state, not a buffer: weight averaging swaps all buffers around validation.
        self.add_state("counts", default=torch.zeros(*shape, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, counts: Tensor) -> None:
        """Add counts, not in place: after a validation, the state is an inference tensor."""
        self.counts = self.counts + counts


class ConfusionMatrix(PixelCounts):
    """Sum the counts of (truth, prediction) pairs over batches and processes.

    The counts are integers, so they do not depend on batch size, order or number of processes.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, num_classes, **kwargs)

    def update(self, matrices: Tensor) -> None:
        """Add the counts of each image, (B, K, K) int64 from `per_image_confusion`."""
        self.add(matrices.sum(dim=0))

    def compute(self) -> Tensor:
        """Return the sum (K, K) int64; rows are truth, columns prediction."""
        return self.counts


def per_image_confusion(preds: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count the (truth, prediction) pairs of each image.

    Args:
        preds: (B, H, W) integer in [0, K).
        mask: (B, H, W) integer in [0, K), or 255 for ignored pixels, which are not counted.
        num_classes: Number of classes K.

    Returns:
        (B, K, K) int64, rows truth, columns prediction.

    Raises:
        ValueError: If a mask on a CPU holds another value, which would be counted in the next image's matrix; on a GPU
            the check would wait for the device, so data sets are checked before.
    """
    batch, pairs = len(preds), num_classes**2
    target = mask.long()
    if target.device.type == "cpu" and (wrong := (target >= num_classes) & (target != IGNORE_INDEX)).any():
        found = target[wrong].unique().tolist()
        raise UserError(f"mask must hold train ids in [0, {num_classes}) or {IGNORE_INDEX}, got {found}.")
    cell = torch.where(target == IGNORE_INDEX, pairs, target * num_classes + preds)
    cell += torch.arange(batch, device=cell.device).reshape(-1, 1, 1) * (pairs + 1)
    counts = torch.bincount(cell.reshape(-1), minlength=batch * (pairs + 1)).reshape(batch, pairs + 1)
    return counts[:, :pairs].reshape(batch, num_classes, num_classes)
