"""Compute losses of the overlap of classes."""

from collections.abc import Sequence

from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError
from deeplab_lightning.kernels.tiles import single_precision
from deeplab_lightning.losses.class_weights import ClassWeightedLoss, ClassWeightRule


class TverskyLoss(ClassWeightedLoss):
    """Compute 1 - TP / (TP + alpha FP + beta FN) of each class in the batch, and average (Salehi et al. 2017).

    TP, FP and FN are sums of softmax probabilities over the pixels of the batch. Classes without a true pixel in the
    batch do not count; the loss of segmentation_models_pytorch adds 0 for them and divides by K.

    Args:
        alpha: Weight of false positives.
        beta: Weight of false negatives; above alpha, small objects are missed less often.
        gamma: Exponent of each class's loss, below 1 for more weight on classes that are nearly right (Abraham and Khan
            2019 with 0.75).
        class_weights: As for `CrossEntropyLoss`.

    Raises:
        ValueError: If a number is not positive, or a class weight cannot be used.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 1.0,
        class_weights: Sequence[float] | ClassWeightRule | None = None,
    ) -> None:
        super().__init__(class_weights)
        if min(alpha, beta, gamma) <= 0:
            raise UserError(f"alpha, beta and gamma must be positive, got {alpha}, {beta} and {gamma}.")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: (B, K, H, W) float, unnormalised.
            mask: (B, H, W) int64 in [0, K) or 255.

        Returns:
            The mean over the classes of the batch; 0, with a gradient of 0, if all pixels are ignored.
        """
        logits = single_precision(logits)
        is_counted = mask != IGNORE_INDEX
        probabilities = logits.softmax(dim=1) * is_counted[:, None]  # (B, K, H, W)
        labels = mask.where(is_counted, 0)[:, None]
        of_truth = probabilities.gather(1, labels)[:, 0].flatten()  # of the true class; 0 where ignored
        num_classes, classes = logits.shape[1], labels.flatten()
        true_positive = logits.new_zeros(num_classes).index_add(0, classes, of_truth)
        truth = logits.new_zeros(num_classes).index_add(0, classes, is_counted.flatten().to(logits.dtype))
        false_positive = probabilities.sum(dim=(0, 2, 3)) - true_positive
        is_present = truth > 0
        wrong = self.alpha * false_positive + self.beta * (truth - true_positive)
        share = wrong / (true_positive + wrong).where(is_present, 1.0)  # 1 - TP / (TP + wrong) without cancellation
        weights = self.weights_of(logits)
        counted = is_present.to(logits.dtype) if weights is None else is_present * weights
        losses = share.clamp_min(1e-12) ** self.gamma
        return (losses * counted).sum() / counted.sum().clamp_min(1e-12)


class DiceLoss(TverskyLoss):
    """Compute 1 - 2 TP / (2 TP + FP + FN) of each class in the batch, and average (Milletari et al. 2016).

    Args:
        class_weights: As for `CrossEntropyLoss`.
    """

    def __init__(self, *, class_weights: Sequence[float] | ClassWeightRule | None = None) -> None:
        super().__init__(alpha=0.5, beta=0.5, class_weights=class_weights)
