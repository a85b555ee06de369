"""Resize logits, images and features bilinearly."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

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
    step = max(1, _MAX_BYTES // max(1, len(logits) * size[0] * size[1] * logits.element_size()))
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


def shrink(images: Tensor, max_size: int | None) -> Tensor:
    """Shrink images until the longer side is at most `max_size` pixels, bilinearly and antialiased.

    Args:
        images: (..., 3, H, W) uint8.
        max_size: Pixels; None changes nothing.

    Returns:
        (..., 3, h, w) uint8; the images themselves if they are small enough.
    """
    size = (images.shape[-2], images.shape[-1])
    if max_size is None or max(size) <= max_size:
        return images
    return transforms.resize(images, list(shrunk_size(size, max_size)), antialias=True)


def shrunk_size(size: tuple[int, int], max_size: int) -> tuple[int, int]:
    """Compute the size of an image whose longer side is shrunk to at most `max_size` pixels.

    Args:
        size: (H, W) in pixels; also symbols of a traced graph.
        max_size: Pixels.

    Returns:
        (h, w), each rounded to the nearest integer (halves to the even one) and at least 1.
    """
    longest = torch.sym_max(*size)
    limit = torch.sym_min(longest, max_size)
    height, width = (torch.sym_max(1, _rounded_ratio(side * limit, longest)) for side in size)
    return height, width  # type: ignore[return-value]


def _rounded_ratio(dividend: int | torch.SymInt, divisor: int | torch.SymInt) -> int | torch.SymInt:
    """Compute `round(dividend / divisor)` of positive integers without a condition, for traced graphs."""
    whole, rest = dividend // divisor, dividend % divisor
    return whole + (2 * rest + whole % 2) // (divisor + 1)
