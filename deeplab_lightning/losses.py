"""Losses: callables (logits (B, K, H, W), mask (B, H, W) int64) -> scalar.

Any module of that form serves, such as those of segmentation_models_pytorch with
`mode: multiclass` and `ignore_index: 255`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deeplab_lightning.batch import IGNORE_INDEX
from deeplab_lightning.resizing import resize, tiles


class CrossEntropyLoss(nn.Module):
    """Cross-entropy over the pixels that count, averaged over them.

    Args:
        class_weights: One weight per class, in the order of the class table; 1 for all if null.
        label_smoothing: Share of the target spread over all classes, a fraction in [0, 1).
        band_rows: Rows of the full size that are resized and compared at a time on a GPU, such as 32. The same
            loss and gradients to rounding, in a fraction of the memory where there are many classes; with null
            all rows at once. On a CPU, tiles fit its caches; if given, they have this many rows.

    Raises:
        ValueError: For negative weights, smoothing outside [0, 1) or bands of no row.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        band_rows: int | None = None,
    ) -> None:
        super().__init__()
        if band_rows is not None and band_rows < 1:
            raise ValueError(f"band_rows must be null or at least 1, got {band_rows}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        if class_weights is not None and min(class_weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {list(class_weights)}.")
        self.label_smoothing, self.band_rows = label_smoothing, band_rows
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """logits: (B, K, H, W) float; mask: (B, H, W) int64 in [0, K) or 255.

        The logits may be of any other size, (B, K, h, w): they are resized to the mask's a tile at a time, which
        on a CPU is up to 5 times as fast as resizing them before.

        Returns:
            The mean over pixels that are not ignored; 0 (with a gradient of 0) if all are, or if all others
            are of classes with weight 0.

        Raises:
            ValueError: If the number of class weights is not K, or that of logits and masks differs.
        """
        if len(logits) != len(mask):
            raise ValueError(f"got logits of {len(logits)} pictures and masks of {len(mask)}.")
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(f"class_weights holds {len(self.class_weights)} values for {logits.shape[1]} classes.")
        if not self._counts_anything(mask):
            return logits.sum() * 0.0
        if self.band_rows is not None or logits.shape[-2:] != mask.shape[-2:]:
            if logits.isfinite().all():
                arguments = (self.class_weights, self.label_smoothing, self.band_rows)
                loss: Tensor = _ResizedCrossEntropy.apply(logits, mask, *arguments)
                return loss
            logits = resize(_single(logits), (mask.shape[-2], mask.shape[-1]))  # tiles would spread what is not finite
        logits = _single(logits)  # as autocast computes it
        return F.cross_entropy(
            logits,
            mask,
            weight=None if self.class_weights is None else self.class_weights.to(logits.dtype),
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
        )

    def _counts_anything(self, mask: Tensor) -> bool:
        counted = mask != IGNORE_INDEX
        if self.class_weights is None or bool((self.class_weights > 0).all()):
            return bool(counted.any())
        return bool((self.class_weights[mask[counted]] > 0).any())


def _single(logits: Tensor) -> Tensor:
    """In float32, or float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _ResizedCrossEntropy(torch.autograd.Function):
    """Resize and compare a tile at a time, take its gradient at once, and forget it before the next tile."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, mask: Tensor, weights: Tensor | None, smoothing: float, band_rows: int | None
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        scores, ctx.dtype = _single(scores.detach()), scores.dtype
        counted = mask != IGNORE_INDEX
        target = torch.where(counted, mask, 0)
        per_class = scores.new_ones(scores.shape[1]) if weights is None else weights.to(scores.dtype)
        pixel_weights = per_class[target] * counted  # (B, H, W)
        loss, total = scores.new_zeros(()), pixel_weights.sum()
        gradient = torch.zeros_like(scores, memory_format=torch.contiguous_format) if needs_gradient else None
        with torch.autocast(scores.device.type, enabled=False):
            for images, rows, columns, logits in tiles(scores, (mask.shape[-2], mask.shape[-1]), band_rows):
                here = (images, rows.large, columns.large)
                values = _cross_entropy_in_place(
                    logits,
                    target[here][:, None],
                    own=(1 - smoothing) * pixel_weights[here][:, None],
                    spread=smoothing / len(per_class) * counted[here][:, None],
                    per_class=per_class if smoothing else None,
                    needs_gradient=needs_gradient,
                )
                loss += values.loss
                if gradient is not None:
                    part = rows.weights @ (values.gradient @ columns.weights.t())
                    gradient[images, :, rows.small, columns.small] += part
        ctx.gradient = None if gradient is None else gradient / total
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        # In float32 until the end: a loss scale of half precision must neither overflow nor come too late.
        gradient = None if ctx.gradient is None else (ctx.gradient * outputs[0].float()).to(ctx.dtype)
        return gradient, None, None, None, None


class _Values(NamedTuple):
    """Sum of the loss over a tile; its gradient by the logits (b, K, r, c), empty if it is not wanted."""

    loss: Tensor
    gradient: Tensor


def _cross_entropy_in_place(
    logits: Tensor, target: Tensor, *, own: Tensor, spread: Tensor, per_class: Tensor | None, needs_gradient: bool
) -> _Values:
    """Cross-entropy and its gradient in the memory of the logits.

    Args:
        logits: (b, K, r, c).
        target: (b, 1, r, c) int64.
        own: Weight of the target's class in each pixel, (b, 1, r, c).
        spread: Weight of every class in each pixel, by label smoothing, (b, 1, r, c).
        per_class: Weights of the classes (K,) for `spread`; None without label smoothing.
        needs_gradient: Whether the gradient is taken.
    """
    logits -= logits.amax(dim=1, keepdim=True)
    of_target, factor, loss = logits.gather(1, target), own, logits.new_zeros(())
    if per_class is not None:
        per_class = per_class[:, None, None]
        factor = own + spread * per_class.sum()
        loss -= (spread * (per_class * logits).sum(dim=1, keepdim=True)).sum()
    exponentials = logits.exp_()
    sums = exponentials.sum(dim=1, keepdim=True)
    loss += (factor * sums.log() - own * of_target).sum()
    if not needs_gradient:
        return _Values(loss, logits.new_empty(0))
    gradient = exponentials.mul_(factor / sums)
    gradient.scatter_(1, target, gradient.gather(1, target) - own)
    if per_class is not None:
        gradient -= spread * per_class
    return _Values(loss, gradient)
