"""Compute the expected calibration error, which compares confidences with the share of pixels that are right."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.metrics.confusion import PixelCounts

NUM_BINS = 15
_STEP = 4  # every fourth pixel of every fourth row
_UNITS = 1_000_000  # of a confidence, so that sums are integers, which depend on no order


class ConfidenceCounts(PixelCounts):
    """Count pixels by their confidence in 15 bins of equal width (Guo et al. 2017, section 2).

    Confidence is the highest probability of a pixel. Every fourth pixel of every fourth row is counted, at the size of
    the mask, since the probabilities of all pixels would take longer than their labels.

    Args:
        kwargs: Options of torchmetrics.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(3, NUM_BINS, **kwargs)

    def update(self, logits: Tensor, mask: Tensor) -> None:
        """Add the pixels of a batch.

        Args:
            logits: (B, K, h, w) float, at the size of the mask or before the resize to it.
            mask: (B, H, W) integer in [0, K), or 255 for ignored pixels.
        """
        values, target = at_every_fourth(logits, mask)
        confidence, labels = values.softmax(dim=1).max(dim=1)  # (B, H/4, W/4)
        bins = (confidence * NUM_BINS).ceil().long().sub_(1).clamp_(0, NUM_BINS - 1)
        bins = torch.where(target == IGNORE_INDEX, NUM_BINS, bins).reshape(-1)
        values = torch.stack(
            [torch.ones_like(bins), (confidence * _UNITS).long().reshape(-1), (labels == target).long().reshape(-1)]
        )
        sums = torch.zeros(3, NUM_BINS + 1, dtype=torch.int64, device=bins.device)
        self.add(sums.index_add_(1, bins, values)[:, :-1])

    def compute(self) -> Tensor:
        """Compute the expected calibration error, a float64 scalar in [0, 1]; nan without pixels."""
        count, confidence, right = self.counts.cpu().double()
        return (confidence / _UNITS - right).abs().sum() / count.sum()


def at_every_fourth(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and labels of every fourth pixel of every fourth row.

    Args:
        logits: (B, K, h, w) float, at the size of the mask or before the resize to it.
        mask: (B, H, W) integer.

    Returns:
        (B, K, H/4, W/4) float32 and (B, H/4, W/4) int64, rounded up.
    """
    return _resized_at_steps(logits.float(), mask), mask[:, ::_STEP, ::_STEP].long()


def _resized_at_steps(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute every fourth column of every fourth row of `resize(logits, size of the mask)`, and no other pixel."""
    height, width = mask.shape[-2:]
    if logits.shape[-2:] == mask.shape[-2:]:
        return logits[:, :, ::_STEP, ::_STEP]
    # The centres of the pixels, where -1 and 1 are the edges of the image.
    rows = (torch.arange(0, height, _STEP, device=logits.device) * 2 + 1) / height - 1
    columns = (torch.arange(0, width, _STEP, device=logits.device) * 2 + 1) / width - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(logits.dtype)
    grid = grid.expand(len(logits), *grid.shape)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)
