"""The one bilinear resize of the package."""

import torch.nn.functional as F
from torch import Tensor


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, K, h, w) to (B, K, H, W), bilinearly and without aligned corners.

    Args:
        logits: (B, K, h, w) float; images and features too.
        size: (H, W).
    """
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
