"""Average the cross-entropy over pixels, all of them alike or some more than others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError
from deeplab_lightning.kernels.tiles import pixel_weights, single_precision, tiled_cross_entropy, total_weight
from deeplab_lightning.losses.class_weights import ClassWeightedLoss, ClassWeightRule
from deeplab_lightning.resizing import resize


class CrossEntropyLoss(ClassWeightedLoss):
    """Average the cross-entropy over the pixels that are not ignored.

    Args:
        class_weights: One weight per class in the order of the class table, 1 for all if null, or `balanced`,
            `median_frequency` or `inverse_sqrt`, which are measured on the training images, see
            `losses.class_weights.measured`.
        label_smoothing: Share of the target that is spread over all classes, a fraction in [0, 1).
        band_rows: Rows of the full-size logits that are computed at a time, such as 32: the same loss and gradients to
            rounding, in a fraction of the memory if there are many classes. Null processes all rows at once on a GPU;
            on a CPU, null picks a tile that fits the cache.

    Raises:
        ValueError: If a weight is negative or not finite, all are 0 or there is none, label_smoothing is outside [0, 1)
            or band_rows is below 1.
    """

    takes_coarse_logits = True
    """Whether `forward` resizes logits to the mask; only valid for the class that defines both, see `kernels.Door`."""

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | ClassWeightRule | None = None,
        label_smoothing: float = 0.0,
        band_rows: int | None = None,
    ) -> None:
        super().__init__(class_weights)
        if band_rows is not None and band_rows < 1:
            raise UserError(f"band_rows must be null or at least 1, got {band_rows}.")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        self.label_smoothing, self.band_rows = label_smoothing, band_rows

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
        class_weights = self.weights_of(logits)
        if self.band_rows is not None or logits.shape[-2:] != mask.shape[-2:]:
            if logits.device.type != "cpu" or logits.isfinite().all():  # a GPU would have to be waited for
                return tiled_cross_entropy(logits, mask, class_weights, self.label_smoothing, self.band_rows)
            logits = resize(single_precision(logits), (mask.shape[-2], mask.shape[-1]))  # tiles would spread nan
        logits = single_precision(logits)  # as autocast does
        total = F.cross_entropy(
            logits,
            mask,
            weight=class_weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / total_weight(pixel_weights(mask, class_weights, logits.dtype))

    def weight(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the weight of the mask's pixels in the mean, a scalar; the arguments are those of `forward`.

        With it, the loss of an image is the weighted mean of those of its parts.
        """
        return pixel_weights(mask, self.weights_of(logits), torch.promote_types(logits.dtype, torch.float32)).sum()


class _PixelwiseLoss(ClassWeightedLoss):
    """Average the cross-entropy with a weight per pixel, which subclasses compute from the probabilities."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: (B, K, H, W) float, unnormalised.
            mask: (B, H, W) int64 in [0, K) or 255.

        Returns:
            The mean over the pixels that count; 0, with a gradient of 0, if none does.
        """
        logits = single_precision(logits)
        weights = pixel_weights(mask, self.weights_of(logits), logits.dtype)  # (B, H, W), 0 where ignored
        cross_entropy = F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
        factors, counted = self._factors(cross_entropy, mask)
        return (weights * factors * cross_entropy).sum() / total_weight(weights * counted)

    def _factors(self, cross_entropy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the loss of each pixel is multiplied by, and what it counts in the mean; (B, H, W) or scalars.

        Args:
            cross_entropy: (B, H, W) float, 0 where ignored.
            mask: (B, H, W) int64.
        """
        raise NotImplementedError


class FocalLoss(_PixelwiseLoss):
    """Average the cross-entropy times (1 - p)^gamma, p the probability of the true class (Lin et al. 2017).

    The probabilities are those of a softmax. The loss of segmentation_models_pytorch adds up K binary problems instead.

    Args:
        gamma: Exponent; 0 is the cross-entropy, 2 the paper's.
        class_weights: As for `CrossEntropyLoss`.

    Raises:
        ValueError: If gamma is negative, or a class weight cannot be used.
    """

    def __init__(self, *, gamma: float = 2.0, class_weights: Sequence[float] | ClassWeightRule | None = None) -> None:
        super().__init__(class_weights)
        if gamma < 0:
            raise UserError(f"gamma must not be negative, got {gamma}.")
        self.gamma = gamma

    def _factors(self, cross_entropy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # 1 - p without the loss of digits of 1 - exp(-x); clamped, since x^(gamma - 1) has no gradient at 0.
        missing = -torch.expm1(-cross_entropy)
        return missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.gamma, torch.ones_like(cross_entropy)


class OhemCrossEntropyLoss(_PixelwiseLoss):
    """Average the cross-entropy over the hard pixels of a batch (Shrivastava et al. 2016, for pixels).

    Args:
        threshold: Pixels whose true class has a probability below this are hard.
        min_share: Share of the pixels that counts in any case, the hardest ones, in (0, 1].
        class_weights: As for `CrossEntropyLoss`.

    Raises:
        ValueError: If a number is outside its range, or a class weight cannot be used.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.7,
        min_share: float = 0.0625,
        class_weights: Sequence[float] | ClassWeightRule | None = None,
    ) -> None:
        super().__init__(class_weights)
        if not 0 <= threshold <= 1 or not 0 < min_share <= 1:
            raise UserError(f"threshold must be in [0, 1] and min_share in (0, 1], got {threshold} and {min_share}.")
        self.threshold, self.min_share = threshold, min_share

    @torch.no_grad()
    def _factors(self, cross_entropy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # Ignored pixels are put last. There is no wait for the device: the limit is an element, not a number.
        losses = torch.where(mask == IGNORE_INDEX, -1.0, cross_entropy).flatten()
        count = (mask != IGNORE_INDEX).sum()
        place = (count * self.min_share).ceil().long().clamp(1, max(len(losses), 1)) - 1
        hardest = losses.sort(descending=True).values[place]
        limit = torch.minimum(hardest, losses.new_tensor(self.threshold).clamp_min(1e-30).log().neg())
        is_hard = ((cross_entropy >= limit) & (mask != IGNORE_INDEX)).to(cross_entropy.dtype)
        return is_hard, is_hard


class BoundaryCrossEntropyLoss(_PixelwiseLoss):
    """Average the cross-entropy with a higher weight near the boundaries of the true classes.

    Args:
        factor: Weight of the pixels near a boundary, relative to the others.
        width: Largest distance from a pixel of another class, in pixels along rows and columns.
        class_weights: As for `CrossEntropyLoss`.

    Raises:
        ValueError: If a number is outside its range, or a class weight cannot be used.
    """

    def __init__(
        self,
        *,
        factor: float = 4.0,
        width: int = 3,
        class_weights: Sequence[float] | ClassWeightRule | None = None,
    ) -> None:
        super().__init__(class_weights)
        if not factor > 0 or width < 1:
            raise UserError(f"factor must be positive and width at least 1, got {factor} and {width}.")
        self.factor, self.width = factor, width

    @torch.no_grad()
    def _factors(self, cross_entropy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        is_void = mask == IGNORE_INDEX
        size = 2 * self.width + 1
        labels = mask.to(cross_entropy.dtype)[:, None]  # (B, 1, H, W)
        # Void is no class: next to it, there is no boundary.
        high = F.max_pool2d(torch.where(is_void[:, None], -1.0, labels), size, 1, self.width)
        low = -F.max_pool2d(torch.where(is_void[:, None], -float(IGNORE_INDEX), -labels), size, 1, self.width)
        factors = torch.where((high != low)[:, 0] & ~is_void, self.factor, 1.0)
        return factors, factors
