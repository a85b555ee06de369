"""Losses: callables (logits (B, K, H, W), mask (B, H, W) int64) -> scalar.

Any module of that form serves, such as those of segmentation_models_pytorch with
`mode: multiclass` and `ignore_index: 255`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.bands import bands, default_rows, resize_band
from deeplab_lightning.batch import IGNORE_INDEX


class CrossEntropyLoss(nn.Module):
    """Cross-entropy over the pixels that count, averaged over them.

    Args:
        class_weights: One weight per class, in the order of the class table; 1 for all if null.
        label_smoothing: Share of the target spread over all classes, a fraction in [0, 1).
        band_rows: Rows of the full size that are resized and compared at a time, such as 32. The same loss
            and gradients to rounding, in a fraction of the memory where there are many classes; with null
            all rows at once.

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

        The logits may be of any other size, (B, K, h, w); they are resized to the mask's in bands.

        Returns:
            The mean over pixels that are not ignored; 0 (with a gradient of 0) if all are, or if all others
            are of classes with weight 0.

        Raises:
            ValueError: If the number of class weights is not K.
        """
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(f"class_weights holds {len(self.class_weights)} values for {logits.shape[1]} classes.")
        if not self._counts_anything(mask):
            return logits.sum() * 0.0
        if self.band_rows is not None or logits.shape[-2:] != mask.shape[-2:]:
            rows = self.band_rows or default_rows(logits, (mask.shape[-2], mask.shape[-1]))
            loss: Tensor = _BandedCrossEntropy.apply(logits, mask, self.class_weights, self.label_smoothing, rows)
            return loss
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


class _BandedCrossEntropy(torch.autograd.Function):
    """Resize and compare a band of rows, take its gradient at once, and forget it before the next band."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, mask: Tensor, weights: Tensor | None, smoothing: float, band_rows: int
    ) -> Tensor:
        counted = mask != IGNORE_INDEX
        size = (mask.shape[-2], mask.shape[-1])
        needs_gradient = ctx.needs_input_grad[0]
        leaf = _single(scores.detach()).requires_grad_(needs_gradient)
        weights = None if weights is None else weights.to(leaf.dtype)
        total = counted.sum() if weights is None else weights[mask[counted]].sum()
        loss = leaf.new_zeros(())
        gradient = torch.zeros_like(leaf) if needs_gradient else None
        for band in bands(size[0], band_rows):
            with torch.set_grad_enabled(needs_gradient):
                logits = resize_band(leaf, size, band)  # (B, K, rows, W)
                part = F.cross_entropy(
                    logits,
                    mask[:, band],
                    weights,
                    ignore_index=IGNORE_INDEX,
                    reduction="sum",
                    label_smoothing=smoothing,
                )
                part = part / total
            loss += part.detach()
            if gradient is not None:
                gradient += torch.autograd.grad(part, leaf)[0]
        ctx.gradient, ctx.dtype = gradient, scores.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        # In float32 until the end: a loss scale of half precision must neither overflow nor come too late.
        gradient = None if ctx.gradient is None else (ctx.gradient * outputs[0].float()).to(ctx.dtype)
        return gradient, None, None, None, None
