"""Evaluate a large image tile by tile, without the probabilities of all its pixels in memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deeplab_lightning.inference.tiles import Tiled
from deeplab_lightning.losses import CrossEntropyLoss

Count = Callable[[Tensor, Tensor, float], None]
"""Function of logits (1, K, h, w) and mask (1, h, w) of a part, and its share of the image."""


def is_mean_of_parts(loss: nn.Module) -> bool:
    """Check whether the loss of an image is the mean of the losses of its parts, unlike that of overlaps."""
    return type(loss) is CrossEntropyLoss


def evaluate_parts(
    net: Tiled, image: Tensor, mask: Tensor, loss: CrossEntropyLoss, count: Count
) -> tuple[Tensor, Tensor]:
    """Find the labels and the loss of an image that is larger than a tile.

    Args:
        net: The network and its tiles.
        image: (1, C, H, W) uint8.
        mask: (1, H, W) uint8 in [0, K) or 255.
        loss: The loss.
        count: Is called with each part of the image; parts start at multiples of 32 pixels.

    Returns:
        (1, H, W) uint8 and a scalar.
    """
    labels = torch.zeros_like(mask, dtype=torch.uint8)
    total, weight = (torch.zeros((), device=mask.device) for _ in range(2))
    for top, left, values in net.blocks(image):
        here = (slice(None), slice(top, top + values.shape[1]), slice(left, left + values.shape[2]))
        logits, part = values.clamp_min_(torch.finfo(values.dtype).tiny).log_()[None], mask[here].long()
        own = loss.weight(logits, part)
        total, weight = total + loss(logits, part) * own, weight + own
        labels[here] = logits.argmax(dim=1).to(torch.uint8)
        count(logits, part, part.numel() / mask.numel())
    return labels, total / torch.where(weight > 0, weight, 1.0)
