"""Weigh the classes of a loss, by numbers or by a rule that looks at the training images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError

ClassWeightRule = Literal["balanced", "median_frequency", "inverse_sqrt"]


class ClassPixels(NamedTuple):
    """Hold how many pixels the classes have in the training images.

    Attributes:
        of_class: (K,) number of pixels of each class.
        where_present: (K,) number of pixels, of all classes, in the images that hold a class.
    """

    of_class: npt.NDArray[np.int64]
    where_present: npt.NDArray[np.int64]


class ClassWeightedLoss(nn.Module):
    """Hold the class weights of a loss, which its subclasses use.

    Args:
        class_weights: One weight per class in the order of the class table, 1 for all if null, or a rule on the pixels
            of the training images, see `measured`: `balanced`, `median_frequency` or `inverse_sqrt`.

    Raises:
        ValueError: If a weight is negative or not finite, all are 0 or there is none.
    """

    class_weights: Tensor | None
    """(K,) float; None for equal weights, and for a rule before it was applied."""

    def __init__(self, class_weights: Sequence[float] | ClassWeightRule | None) -> None:
        super().__init__()
        self.rule: ClassWeightRule | None = class_weights if isinstance(class_weights, str) else None
        if class_weights is not None and not isinstance(class_weights, str):
            _check_class_weights(class_weights)
        is_given = class_weights is not None and self.rule is None
        # No buffer: the rule sets them after callbacks have copied the module, and averages of weights pair the
        # tensors of the copy with those of the module by their order.
        self.class_weights = torch.tensor(class_weights, dtype=torch.float32) if is_given else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the weights to a device with the module; see `nn.Module`."""
        if self.class_weights is not None:
            self.class_weights = fn(self.class_weights)
        return super()._apply(fn, recurse)

    def weights_of(self, logits: Tensor) -> Tensor | None:
        """Return the weights of the K classes on the device of the logits (B, K, ...); None for equal weights.

        They have the dtype of the logits, but at least that of float32, in which losses are computed.

        Raises:
            ValueError: If their number is not K, or the rule was not applied.
        """
        if self.class_weights is None:
            if self.rule is not None:
                raise UserError(
                    f"class_weights: {self.rule} is measured on the training images of a SegmentationDataModule; give "
                    "numbers, or call measure_weights(loss, pixels)."
                )
            return None
        if len(self.class_weights) != logits.shape[1]:
            raise UserError(
                f"class_weights must hold one value per class, got {len(self.class_weights)} values for "
                f"{logits.shape[1]} classes."
            )
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return self.class_weights.to(logits.device, dtype)  # a restored checkpoint sets them on the CPU


def measured(rule: ClassWeightRule, pixels: ClassPixels) -> npt.NDArray[np.float64]:
    """Compute the weights of a rule, with a mean of 1 over the classes that have pixels.

    With f_c the share of class c: `balanced` is 1 / f_c, `inverse_sqrt` is 1 / sqrt(f_c), and `median_frequency` is
    1 / f_c with the share among the pixels of the images that hold the class (Eigen and Fergus 2015; the median, a
    common factor, does not change a weighted mean). A class without pixels has the weight 1.

    Args:
        rule: The rule.
        pixels: Pixels of the training images.

    Returns:
        (K,) weights.
    """
    has_pixels = pixels.of_class > 0
    counts = pixels.of_class[has_pixels].astype(np.float64)
    total = pixels.where_present[has_pixels] if rule == "median_frequency" else counts.sum()
    inverse = total / counts
    if rule == "inverse_sqrt":
        inverse = np.sqrt(inverse)
    weights = np.ones(len(has_pixels))
    weights[has_pixels] = inverse / inverse.mean() if len(inverse) else 1.0
    return weights


def measure_weights(loss: nn.Module, pixels: ClassPixels) -> dict[str, list[float]]:
    """Apply the rules of a loss and of the losses inside it to the pixels of the training images.

    Args:
        loss: Any loss, which is changed.
        pixels: Pixels of the training images.

    Returns:
        The weights by rule; empty without rules.
    """
    found: dict[str, list[float]] = {}
    for part in _with_rules(loss).values():
        assert part.rule is not None
        found[part.rule] = measured(part.rule, pixels).tolist()
        part.class_weights = torch.tensor(found[part.rule], dtype=torch.float32)
    return found


def known_weights(loss: nn.Module) -> dict[str, list[float]]:
    """Return the weights that rules gave, by the name of the loss inside `loss`, for a checkpoint."""
    parts = _with_rules(loss).items()
    return {name: part.class_weights.tolist() for name, part in parts if part.class_weights is not None}


def set_weights(loss: nn.Module, weights: Mapping[str, Sequence[float]]) -> None:
    """Use the weights of `known_weights` where a loss has a rule."""
    for name, part in _with_rules(loss).items():
        if name in weights:
            part.class_weights = torch.tensor(weights[name], dtype=torch.float32)


def needs_pixels(loss: nn.Module) -> bool:
    """Check whether a loss has a rule."""
    return bool(_with_rules(loss))


def _with_rules(loss: nn.Module) -> dict[str, ClassWeightedLoss]:
    """Return a loss and the losses inside it that have a rule, by name."""
    parts = loss.named_modules()
    return {name: part for name, part in parts if isinstance(part, ClassWeightedLoss) and part.rule is not None}


def check_number_of_weights(loss: nn.Module, names: Sequence[str]) -> None:
    """Check that a loss, and each loss inside it, has one weight per class, if it has class weights.

    Args:
        loss: Any loss.
        names: Class names in the order of the class table.

    Raises:
        ValueError: If the numbers differ. The message names the classes.
    """
    for part in loss.modules():
        weights = getattr(part, "class_weights", None)
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
