"""Add up losses."""

from collections.abc import Sequence

from torch import Tensor, nn

from deeplab_lightning.errors import UserError


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
        terms = [weight * loss(logits, mask) for weight, loss in zip(weights, self.losses, strict=True)]
        total: Tensor = sum(terms[1:], terms[0])
        return total
