"""Add up losses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError


def compute_loss(loss: nn.Module, logits: Tensor, mask: Tensor) -> Tensor:
    """Compute a loss; one of another package gets float32, since few of them take the bf16 or fp16 of autocast.

    Args:
        loss: Module of (logits, mask) -> scalar.
        logits: (B, K, H, W) float of any precision.
        mask: (B, H, W) int64.
    """
    is_own = type(loss).__module__.startswith("deeplab_lightning.")
    is_low = not is_own and logits.dtype in {torch.bfloat16, torch.float16}
    value: Tensor = loss(logits.float() if is_low else logits, mask)
    return value if value.ndim == 0 else value.sum()  # smp's Lovasz has no scalar where all pixels are ignored


class SumLoss(nn.Module):
    """Compute the weighted sum of any number of losses.

    Args:
        losses: The losses; each ignores 255.
        weights: Weight of each; 1 for all if null.

    Raises:
        ValueError: If there is no loss, or the numbers of losses and weights differ.
    """

    def __init__(self, losses: list[nn.Module], *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not losses or (weights is not None and len(weights) != len(losses)):
            found = "no weights" if weights is None else f"{len(weights)} weights"
            raise UserError(f"SumLoss needs one or more losses and as many weights, got {len(losses)} and {found}.")
        self.losses, self.weights = nn.ModuleList(losses), None if weights is None else list(weights)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute the sum for logits (B, K, H, W) and a mask (B, H, W) int64."""
        weights = self.weights or [1.0] * len(self.losses)
        terms = [weight * compute_loss(loss, logits, mask) for weight, loss in zip(weights, self.losses, strict=True)]
        total: Tensor = sum(terms[1:], terms[0])
        return total
