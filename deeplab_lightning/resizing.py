"""Bilinear resizing, also a tile at a time, so that the scores of all classes never stand there at full size."""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_VALUES_PER_THREAD, _TILE_COLUMNS = 1 << 19, 128  # 2 MB of floats, which caches hold


class Span(NamedTuple):
    """A stretch of an axis after resizing, and what of the axis before it comes from.

    Attributes:
        large: Pixels of the result.
        small: Pixels that they are weighted sums of.
        weights: (small, large).
    """

    large: slice
    small: slice
    weights: Tensor


def resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The one way in which scores become logits: (B, K, h, w) -> (B, K, H, W), bilinear, corners not aligned."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def resized_labels(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest score in each pixel of the resized scores, or of scores that have the size already.

    The same as `resize(scores, size).argmax(dim=1)` but for ties to rounding; on a CPU in the memory of a tile,
    and up to 8 times as fast.

    Args:
        scores: (B, K, h, w) float, K at most 255.
        size: (H, W).

    Returns:
        (B, H, W) uint8.
    """
    scores = scores.float()  # bfloat16 would round neighbouring scores to ties
    if scores.device.type != "cpu":
        return resize(scores, size).argmax(dim=1).to(torch.uint8)
    if scores.shape[-2:] != size and not scores.isfinite().all():  # sums over a tile would spread what is not
        scores = resize(scores, size)
    if scores.shape[-2:] == size:  # in channels-last memory the arg-max runs along memory
        return scores.contiguous(memory_format=torch.channels_last).argmax(dim=1).to(torch.uint8)
    num_classes = scores.shape[1]
    labels = torch.empty(len(scores), *size, dtype=torch.uint8)
    places_from_last = torch.arange(num_classes, 0, -1, dtype=torch.uint8)[:, None, None]
    for images, rows, columns, logits in tiles(scores, size):  # (b, K, r, c)
        # Unlike the arg-max, a maximum across memory is vectorized; of equals it is the first class, as there.
        is_highest = (logits == logits.amax(dim=1, keepdim=True)).view(torch.uint8)
        place_from_last = (is_highest * places_from_last).amax(dim=1)
        labels[images, rows.large, columns.large] = num_classes - place_from_last
    return labels


class Tile(NamedTuple):
    """Some pixels of resized scores.

    Attributes:
        images: Of the batch.
        rows: Rows of the pixels.
        columns: Columns of the pixels.
        logits: `resize(scores, size)[images, :, rows.large, columns.large]`, exact to rounding for finite scores;
            to be written to.
    """

    images: slice
    rows: Span
    columns: Span
    logits: Tensor


@torch.no_grad()
def tiles(scores: Tensor, size: tuple[int, int], band_rows: int | None = None) -> Iterator[Tile]:
    """Scores resized to `size`, part by part; each part takes the memory of the one before.

    On a CPU a tile of one picture that its caches hold; elsewhere, where it takes large work to be busy, bands of
    all pictures.

    Args:
        scores: (B, K, h, w) float.
        size: (H, W).
        band_rows: Rows of the result in a tile; if None, as many as the caches hold, or elsewhere all.
    """
    (count, num_classes), (height, width) = scores.shape[:2], size
    if scores.device.type == "cpu":
        images, columns = 1, min(width, _TILE_COLUMNS)
        rows = band_rows or max(1, _VALUES_PER_THREAD * torch.get_num_threads() // (num_classes * columns))
    else:
        images, rows, columns = count, band_rows or height, width
    rows = min(rows, height)
    memory = scores.new_empty(images * num_classes * rows * columns)
    down, across = _spans(scores, 2, height, rows), _spans(scores, 3, width, columns)
    for some, row_span, column_span in product(_slices(count, images), down, across):
        with torch.autocast(scores.device.type, enabled=False):
            narrow = row_span.weights.t() @ scores[some, :, row_span.small, column_span.small]  # (b, K, r, w)
            shape = (*narrow.shape[:3], column_span.weights.shape[1])
            logits = memory[: math.prod(shape)].view(shape)
            torch.matmul(narrow, column_span.weights, out=logits)
        yield Tile(some, row_span, column_span, logits)


def _spans(scores: Tensor, axis: int, size: int, step: int) -> list[Span]:
    """How an axis is resized, `step` pixels of the result at a time: `resize` is such a sum along both axes."""
    length = scores.shape[axis]
    one_of_each = torch.eye(length, dtype=scores.dtype, device=scores.device)[None]
    weights = F.interpolate(one_of_each, size=size, mode="linear", align_corners=False)[0]  # (length, size)

    def pixel(i: int) -> int:
        return max(0, math.floor((i + 0.5) * length / size - 0.5))

    spans = []
    for large in _slices(size, step):
        small = slice(pixel(large.start), min(length, pixel(large.stop - 1) + 2))
        spans.append(Span(large, small, weights[small, large].contiguous()))
    return spans


def _slices(length: int, step: int) -> list[slice]:
    """[0, length) in slices of at most `step`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
