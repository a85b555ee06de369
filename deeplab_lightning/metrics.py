"""Segmentation metrics from one confusion matrix over the whole set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from deeplab_lightning.batch import IGNORE_INDEX


class ConfusionMatrix(Metric):
    """Counts of (truth, prediction) pairs, summed over batches and processes; ignored pixels count nowhere.

    The counts are integers, so they do not depend on batch size, order or number of processes.

    Args:
        num_classes: K.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        # A metric state, not a buffer: weight averaging swaps all buffers around validation.
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, matrices: Tensor) -> None:
        """matrices: (B, K, K) int64 counts of each picture, from `image_matrices`."""
        self.counts += matrices.sum(dim=0)

    def compute(self) -> Tensor:
        """(K, K) int64, rows truth, columns prediction."""
        return self.counts


def image_matrices(preds: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count the (truth, prediction) pairs of each picture.

    Args:
        preds: (B, H, W) int64 in [0, K).
        mask: (B, H, W) integer in [0, K), or 255 for pixels that count nowhere.
        num_classes: K.

    Returns:
        (B, K, K) int64, rows truth, columns prediction.
    """
    batch, pairs = len(preds), num_classes**2
    target = mask.long()
    cell = torch.where(target == IGNORE_INDEX, pairs, target * num_classes + preds)
    cell += torch.arange(batch, device=cell.device).reshape(-1, 1, 1) * (pairs + 1)
    counts = torch.bincount(cell.reshape(-1), minlength=batch * (pairs + 1)).reshape(batch, pairs + 1)
    return counts[:, :pairs].reshape(batch, num_classes, num_classes)


def class_iou(matrix: Tensor) -> Tensor:
    """(K, K) counts -> (K,) float64 intersection over union; nan for classes in neither truth nor prediction."""
    hits, truth, predicted = _margins(matrix)
    return hits / (truth + predicted - hits)


def summarize(matrix: Tensor) -> dict[str, float]:
    """The figures of a whole set, each in [0, 1].

    A class that is in neither truth nor prediction has no IoU and no Dice, and is left out of their
    means; a class that is only predicted counts as 0. Mean accuracy leaves out classes without truth.

    Args:
        matrix: (K, K) counts over the whole set, rows truth, columns prediction.

    Returns:
        `miou`, `pixel_accuracy`, `mean_accuracy`, `fw_iou` (IoU weighted by the truth's share of pixels)
        and `dice` (mean over classes); nan where nothing was counted.
    """
    hits, truth, predicted = _margins(matrix)
    iou, dice = class_iou(matrix), 2 * hits / (truth + predicted)
    return {
        "miou": float(iou.nanmean()),
        "pixel_accuracy": float(hits.sum() / truth.sum()),
        "mean_accuracy": float((hits / truth).nanmean()),
        "fw_iou": float((truth * iou).nansum() / truth.sum()),
        "dice": float(dice.nanmean()),
    }


def iou_by_name(matrix: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Class name -> IoU; nan for absent classes."""
    return dict(zip(names, class_iou(matrix).tolist(), strict=True))


def _margins(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = matrix.double()
    return counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
