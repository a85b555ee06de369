"""Compute losses, as modules that map logits (B, K, H, W) and a mask (B, H, W) int64 to a scalar.

Any module of this form can be used, such as those of segmentation_models_pytorch with `mode: multiclass` and
`ignore_index: 255`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError
from deeplab_lightning.kernels.tiles import pixel_weights, single_precision, tiled_cross_entropy, total_weight
from deeplab_lightning.resizing import resize


class CrossEntropyLoss(nn.Module):
    """Average the cross-entropy over the pixels that are not ignored.

    Args:
        class_weights: One weight per class, in the order of the class table; 1 for all if null.
        label_smoothing: Share of the target that is spread over all classes, a fraction in [0, 1).
        band_rows: Rows of the full-size logits that are computed at a time, such as 32: the same loss and gradients to
            rounding, in a fraction of the memory if there are many classes. Null processes all rows at once on a GPU;
            on a CPU, null picks a tile that fits the cache.

    Raises:
        ValueError: If a weight is negative or not finite, all are 0 or there is none, label_smoothing is outside [0, 1)
            or band_rows is below 1.
    """

    class_weights: Tensor | None
    takes_coarse_logits = True
    """Whether `forward` resizes logits to the mask; only valid for the class that defines both, see `kernels.Door`."""

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        band_rows: int | None = None,
    ) -> None:
        super().__init__()
        if band_rows is not None and band_rows < 1:
            raise UserError(f"band_rows must be null or at least 1, got {band_rows}.")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        if class_weights is not None:
            _check_class_weights(class_weights)
        self.label_smoothing, self.band_rows = label_smoothing, band_rows
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: (B, K, h, w) float, unnormalised; resized to the mask's size, tile by tile, if they differ.
            mask: (B, H, W) int64 in [0, K) or 255.

        Returns:
            The mean over the pixels that are not ignored; 0, with a gradient of 0, if all are ignored or have a class
            of weight 0.

        Raises:
            ValueError: If the number of class weights is not K, or logits and mask differ in the number of images.
        """
        if len(logits) != len(mask):
            raise UserError(f"logits and mask must hold the same number of images, got {len(logits)} and {len(mask)}.")
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise UserError(
                f"class_weights must hold one value per class, got {len(self.class_weights)} values for "
                f"{logits.shape[1]} classes."
            )
        if self.band_rows is not None or logits.shape[-2:] != mask.shape[-2:]:
            if logits.device.type != "cpu" or logits.isfinite().all():  # a GPU would have to be waited for
                return tiled_cross_entropy(logits, mask, self.class_weights, self.label_smoothing, self.band_rows)
            logits = resize(single_precision(logits), (mask.shape[-2], mask.shape[-1]))  # tiles would spread nan
        logits = single_precision(logits)  # as autocast does
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(
            logits,
            mask,
            weight=weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / total_weight(pixel_weights(mask, weights, logits.dtype))


def check_number_of_weights(loss: nn.Module, names: Sequence[str]) -> None:
    """Check that a loss with class weights has one per class.

    Args:
        loss: Any loss; without `class_weights`, nothing is checked.
        names: Class names in the order of the class table.

    Raises:
        ValueError: If the numbers differ. The message names the classes.
    """
    weights = getattr(loss, "class_weights", None)
    if weights is not None and len(weights) != len(names):
        raise UserError(
            f"class_weights must hold {len(names)} values, one per class ({', '.join(names)}), got {len(weights)}."
        )


def _check_class_weights(weights: Sequence[float]) -> None:
    if not weights:
        raise UserError("class_weights must hold one value per class, got none; set it to null to weigh all alike.")
    wrong = [f"{weight} for class {i}" for i, weight in enumerate(weights) if not math.isfinite(weight) or weight < 0]
    if wrong:
        raise UserError(
            f"class_weights must be finite and not negative, got {', '.join(wrong)} (the first class is 0)."
        )
    if not any(weights):
        raise UserError("class_weights must not all be 0: no pixel would count.")
