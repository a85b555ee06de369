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

    def update(self, preds: Tensor, mask: Tensor) -> None:
        """preds: (B, H, W) int64 in [0, K); mask: (B, H, W) integer in [0, K) or 255."""
        k = self.num_classes
        target = mask.long()
        pairs = torch.where(target == IGNORE_INDEX, k * k, target * k + preds)
        counted = torch.bincount(pairs.reshape(-1), minlength=k * k + 1)[: k * k]
        self.counts += counted.reshape(k, k)  # rows: truth, columns: prediction

    def compute(self) -> Tensor:
        """(K, K) int64, rows truth, columns prediction."""
        return self.counts


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
