"""Losses: callables (logits (B, K, H, W), mask (B, H, W) int64) -> scalar.

Any module of that form serves, such as those of segmentation_models_pytorch with
`mode: multiclass` and `ignore_index: 255`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.batch import IGNORE_INDEX


class CrossEntropyLoss(nn.Module):
    """Cross-entropy over the pixels that count, averaged over them.

    Args:
        class_weights: One weight per class, in the order of the class table; 1 for all if null.
        label_smoothing: Share of the target spread over all classes, a fraction in [0, 1).

    Raises:
        ValueError: For negative weights or smoothing outside [0, 1).
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        if class_weights is not None and min(class_weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {list(class_weights)}.")
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """logits: (B, K, H, W) float; mask: (B, H, W) int64 in [0, K) or 255.

        Returns:
            The mean over pixels that are not ignored; 0 (with a gradient of 0) if all are.

        Raises:
            ValueError: If the number of class weights is not K.
        """
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(f"class_weights holds {len(self.class_weights)} values for {logits.shape[1]} classes.")
        if not (mask != IGNORE_INDEX).any():
            return logits.sum() * 0.0
        return F.cross_entropy(
            logits,
            mask,
            weight=self.class_weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
        )
