"""Resize logits tile by tile, so that full-size logits of all classes are never held in memory."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deeplab_lightning.data.classes import IGNORE_INDEX

_VALUES_PER_THREAD, _TILE_COLUMNS = 1 << 19, 128  # 2 MB of floats, which fit into a core's cache


class TileAxis(NamedTuple):
    """Hold a slice of the resized axis, and the slice of the original axis that it is interpolated from.

    Attributes:
        large: Slice of the resized axis.
        small: Slice of the original axis.
        weights: (small, large) weights of the interpolation.
    """

    large: slice
    small: slice
    weights: Tensor


class Tile(NamedTuple):
    """Hold a rectangle of the resized logits of some images.

    Attributes:
        images: Slice of the batch.
        rows: Rows of the rectangle.
        columns: Columns of the rectangle.
        logits: `resize(logits, size)[images, :, rows.large, columns.large]` to rounding, for finite logits. Callers
            may overwrite it.
    """

    images: slice
    rows: TileAxis
    columns: TileAxis
    logits: Tensor


@torch.no_grad()
def tiles(logits: Tensor, size: tuple[int, int], band_rows: int | None = None) -> Iterator[Tile]:
    """Resize logits part by part; each tile reuses the memory of the one before.

    On a CPU, a tile is a part of one image that fits the caches. On other devices, which are only efficient on large
    tensors, it is a band of rows of all images.

    Args:
        logits: (B, K, h, w) float.
        size: (H, W) of the result.
        band_rows: Rows of a tile; if None, as many as fit the caches on a CPU, and all rows on other devices.
    """
    (count, num_classes), (height, width) = logits.shape[:2], size
    if logits.device.type == "cpu":
        images, columns = 1, min(width, _TILE_COLUMNS)
        rows = band_rows or max(1, _VALUES_PER_THREAD * torch.get_num_threads() // (num_classes * columns))
    else:
        images, rows, columns = count, band_rows or height, width
    rows = min(rows, height)
    memory = logits.new_empty(images * num_classes * rows * columns)
    row_axes, column_axes = _tile_axes(logits, 2, height, rows), _tile_axes(logits, 3, width, columns)
    for chosen, row_axis, column_axis in product(_slices(count, images), row_axes, column_axes):
        with torch.autocast(logits.device.type, enabled=False):
            narrow = row_axis.weights.t() @ logits[chosen, :, row_axis.small, column_axis.small]  # (b, K, r, w)
            shape = (*narrow.shape[:3], column_axis.weights.shape[1])
            part = memory[: math.prod(shape)].view(shape)
            torch.matmul(narrow, column_axis.weights, out=part)
        yield Tile(chosen, row_axis, column_axis, part)


def tiled_cross_entropy(
    logits: Tensor, mask: Tensor, class_weights: Tensor | None, label_smoothing: float, band_rows: int | None
) -> Tensor:
    """Compute the cross-entropy of logits that are resized to the mask tile by tile.

    Args:
        logits: (B, K, h, w) float, finite.
        mask: (B, H, W) int64 in [0, K) or 255.
        class_weights: (K,), or None for 1 each.
        label_smoothing: Share of the target spread over all classes, a fraction in [0, 1).
        band_rows: See `tiles`.

    Returns:
        The weighted mean over pixels that are not ignored, a scalar in float32 or float64; 0 if there is none.
    """
    loss: Tensor = _TiledCrossEntropy.apply(logits, mask, class_weights, label_smoothing, band_rows)
    return loss


def pixel_weights(mask: Tensor, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weight of each pixel: that of its class, and 0 for ignored pixels.

    Args:
        mask: (B, H, W) int64 in [0, K) or 255.
        class_weights: (K,), or None for 1 each.
        dtype: Type of the result.

    Returns:
        (B, H, W).
    """
    counted = mask != IGNORE_INDEX
    if class_weights is None:
        return counted.to(dtype)
    return class_weights.to(dtype)[torch.where(counted, mask, 0)] * counted


def total_weight(pixels: Tensor) -> Tensor:
    """Sum the weights of all pixels, as a divisor: infinite instead of 0, without waiting for the device."""
    total = pixels.sum()
    return torch.where(total > 0, total, torch.inf)


def single_precision(logits: Tensor) -> Tensor:
    """Convert logits to float32, except those in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _TiledCrossEntropy(torch.autograd.Function):
    """Compute each tile's gradient together with its loss, so that the tile need not be kept."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, mask: Tensor, weights: Tensor | None, smoothing: float, band_rows: int | None
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        logits, ctx.dtype = single_precision(logits.detach()), logits.dtype
        counted = mask != IGNORE_INDEX
        target = torch.where(counted, mask, 0)
        per_class = logits.new_ones(logits.shape[1]) if weights is None else weights.to(logits.dtype)
        target_weights = pixel_weights(mask, weights, logits.dtype)  # (B, H, W)
        loss, total = logits.new_zeros(()), total_weight(target_weights)
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format) if needs_gradient else None
        with torch.autocast(logits.device.type, enabled=False):
            for images, rows, columns, part in tiles(logits, (mask.shape[-2], mask.shape[-1]), band_rows):
                here = (images, rows.large, columns.large)
                values = _cross_entropy_in_place(
                    part,
                    target[here][:, None],
                    target_weight=(1 - smoothing) * target_weights[here][:, None],
                    class_weight=smoothing / len(per_class) * counted[here][:, None],
                    per_class=per_class if smoothing else None,
                    needs_gradient=needs_gradient,
                )
                loss += values.loss
                if gradient is not None:
                    grad_small = rows.weights @ (values.gradient @ columns.weights.t())
                    gradient[images, :, rows.small, columns.small] += grad_small
        ctx.gradient = None if gradient is None else gradient / total
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        # Stay in float32 until the end: the loss scale of fp16 training must neither overflow nor follow the rounding.
        gradient = None if ctx.gradient is None else (ctx.gradient * grad_outputs[0].float()).to(ctx.dtype)
        return gradient, None, None, None, None


class _TileLoss(NamedTuple):
    """Hold the sum of the loss over a tile and its gradient (b, K, r, c); an empty tensor if not needed."""

    loss: Tensor
    gradient: Tensor


def _cross_entropy_in_place(
    logits: Tensor,
    target: Tensor,
    *,
    target_weight: Tensor,
    class_weight: Tensor,
    per_class: Tensor | None,
    needs_gradient: bool,
) -> _TileLoss:
    """Compute cross-entropy and its gradient in the memory of the logits.

    Args:
        logits: (b, K, r, c).
        target: (b, 1, r, c) int64.
        target_weight: Weight of the target's class in each pixel, (b, 1, r, c).
        class_weight: Weight of every class in each pixel, from label smoothing, (b, 1, r, c).
        per_class: Weights of the classes (K,) for `class_weight`; None without label smoothing.
        needs_gradient: Whether the gradient is computed.
    """
    logits -= logits.amax(dim=1, keepdim=True)
    of_target, factor, loss = logits.gather(1, target), target_weight, logits.new_zeros(())
    if per_class is not None:
        per_class = per_class[:, None, None]
        factor = target_weight + class_weight * per_class.sum()
        loss -= (class_weight * (per_class * logits).sum(dim=1, keepdim=True)).sum()
    exponentials = logits.exp_()
    sums = exponentials.sum(dim=1, keepdim=True)
    loss += (factor * sums.log() - target_weight * of_target).sum()
    if not needs_gradient:
        return _TileLoss(loss, logits.new_empty(0))
    gradient = exponentials.mul_(factor / sums)
    gradient.scatter_(1, target, gradient.gather(1, target) - target_weight)
    if per_class is not None:
        gradient -= class_weight * per_class
    return _TileLoss(loss, gradient)


def _tile_axes(logits: Tensor, axis: int, size: int, step: int) -> list[TileAxis]:
    """Split the resized axis into slices of `step` pixels, with the weights that `resize` would use."""
    length = logits.shape[axis]
    identity = torch.eye(length, dtype=logits.dtype, device=logits.device)[None]
    weights = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0]  # (length, size)

    def source(i: int) -> int:
        return max(0, math.floor((i + 0.5) * length / size - 0.5))

    axes = []
    for large in _slices(size, step):
        small = slice(source(large.start), min(length, source(large.stop - 1) + 2))
        axes.append(TileAxis(large, small, weights[small, large].contiguous()))
    return axes


def _slices(length: int, step: int) -> list[slice]:
    """Split [0, length) into slices of at most `step`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
