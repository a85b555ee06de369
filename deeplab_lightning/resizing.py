"""Resize logits, images and features bilinearly."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_BYTES = 1 << 28  # 256 MiB of resized logits; more are resized some classes at a time


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits bilinearly, without aligned corners.

    Args:
        logits: (B, K, h, w) float; also images or features.
        size: (H, W) in pixels.

    Returns:
        (B, K, H, W).
    """
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def resized_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Find the class with the highest resized logit of each pixel, in at most 256 MiB beside the labels if possible.

    Equal to `resize(logits, size).argmax(dim=1)` for finite logits. A class whose logits are minus infinity is never
    chosen; of equal logits, the first class counts.

    Args:
        logits: (B, K, h, w) float, K at most 255.
        size: (H, W) of the labels.

    Returns:
        (B, H, W) uint8.
    """
    logits = logits.float()  # in bfloat16, neighbouring logits would round to ties
    logits = logits.clamp(min=torch.finfo(logits.dtype).min / 4)  # a resize turns infinity into nan
    step = max(1, _MAX_BYTES // (len(logits) * size[0] * size[1] * logits.element_size()))
    if step >= logits.shape[1]:
        resized = logits if logits.shape[-2:] == size else resize(logits, size)
        return resized.argmax(dim=1).to(torch.uint8)
    highest = logits.new_full((len(logits), *size), -torch.inf)
    labels = torch.zeros_like(highest, dtype=torch.uint8)
    for first, some in zip(range(0, logits.shape[1], step), logits.split(step, dim=1), strict=True):
        value, place = (some if some.shape[-2:] == size else resize(some, size)).max(dim=1)
        is_higher = value > highest
        labels = torch.where(is_higher, (place + first).to(torch.uint8), labels)
        highest = torch.where(is_higher, value, highest)
    return labels
