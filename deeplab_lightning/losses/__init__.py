"""Compute losses, as modules that map logits (B, K, H, W) and a mask (B, H, W) int64 to a scalar.

Any module of this form can be used, such as those of segmentation_models_pytorch with `mode: multiclass` and
`ignore_index: 255`. Its Lovasz loss is the one to take; its focal loss is of K binary problems, and its Dice
loss counts classes that are not in the batch, so those two are here as well.
"""

from deeplab_lightning.losses.class_weights import (
    ClassPixels,
    ClassWeightRule,
    check_number_of_weights,
    known_weights,
    measure_weights,
    needs_pixels,
    set_weights,
)
from deeplab_lightning.losses.cross_entropy import (
    BoundaryCrossEntropyLoss,
    CrossEntropyLoss,
    FocalLoss,
    OhemCrossEntropyLoss,
)
from deeplab_lightning.losses.overlap import DiceLoss, TverskyLoss
from deeplab_lightning.losses.sum import SumLoss

__all__ = [
    "BoundaryCrossEntropyLoss",
    "ClassPixels",
    "ClassWeightRule",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "OhemCrossEntropyLoss",
    "SumLoss",
    "TverskyLoss",
    "check_number_of_weights",
    "known_weights",
    "measure_weights",
    "needs_pixels",
    "set_weights",
]
