"""Bilinear resizing a band of rows at a time, so that the scores of all classes never stand there at full size."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_BAND_VALUES = 1 << 25  # 128 MB of floats: fewer, larger bands are faster, as threads meet after each


def default_rows(scores: Tensor, size: tuple[int, int]) -> int:
    """Rows of (B, K, H, W) = (*scores.shape[:2], *size) whose floats take 128 MB."""
    return max(1, _BAND_VALUES // (scores.shape[0] * scores.shape[1] * size[1]))


def bands(height: int, rows: int) -> Iterator[slice]:
    """The rows [0, height) in slices of at most `rows`."""
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The one way in which scores become logits: (B, K, h, w) -> (B, K, H, W), bilinear, corners not aligned."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def resize_band(scores: Tensor, size: tuple[int, int], band: slice) -> Tensor:
    """Some rows of `resize(scores, size)`, exact to rounding.

    Args:
        scores: (B, K, h, w) float.
        size: (H, W) of the whole result.
        band: Rows of the whole result.

    Returns:
        (B, K, rows, W) of the dtype of `scores`.
    """
    height = scores.shape[-2]
    # Centres of the result's rows in the rows of `scores`, as in torch.nn.functional.interpolate.
    centres = (torch.arange(band.start, band.stop, device=scores.device, dtype=torch.float32) + 0.5) * (
        height / size[0]
    ) - 0.5
    centres = centres.clamp_(min=0)
    upper = centres.long().clamp_(max=height - 1)
    lower = (upper + 1).clamp_(max=height - 1)
    share = (centres - upper).to(scores.dtype)[:, None, None]  # (rows, 1, 1), of the lower row
    pixels = scores.permute(0, 2, 3, 1)  # (B, h, w, K)
    rows = torch.lerp(pixels[:, upper], pixels[:, lower], share)  # (B, rows, w, K)
    return resize(rows.permute(0, 3, 1, 2), (rows.shape[1], size[1]))


def resized_labels(scores: Tensor, size: tuple[int, int], *, band_rows: int | None = None) -> Tensor:
    """The class with the highest score in each pixel of the resized scores, or of scores that have the size already.

    The same as `resize(scores, size).argmax(dim=1)` but for ties to rounding; on a CPU in a layout where that
    is 2 to 5 times as fast, and in bands where it would take much memory.

    Args:
        scores: (B, K, h, w) float, K at most 255.
        size: (H, W).
        band_rows: Rows at a time; as many as make 128 MB if None.

    Returns:
        (B, H, W) uint8.
    """
    scores = scores.float()  # bfloat16 would round neighbouring scores to ties
    if scores.device.type != "cpu":
        return resize(scores, size).argmax(dim=1).to(torch.uint8)
    scores = scores.contiguous(memory_format=torch.channels_last)  # in this layout the arg-max runs along memory
    if scores.shape[-2:] == size:
        return scores.argmax(dim=1).to(torch.uint8)
    rows = default_rows(scores, size) if band_rows is None else band_rows
    if rows >= size[0]:
        return resize(scores, size).argmax(dim=1).to(torch.uint8)
    labels = torch.empty(len(scores), *size, dtype=torch.uint8)
    for band in bands(size[0], rows):
        labels[:, band] = resize_band(scores, size, band).argmax(dim=1)
    return labels
