"""Resize logits, images and features bilinearly."""

import torch.nn.functional as F
from torch import Tensor


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits bilinearly, without aligned corners.

    Args:
        logits: (B, K, h, w) float; also images or features.
        size: (H, W) in pixels.

    Returns:
        (B, K, H, W).
    """
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
