"""Average values over batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Average values with weights over batches and processes; nan without any weight.

    Not torchmetrics' MeanMetric: it leaves out nan, and with `nan_strategy="disable"` it leaves out the weights.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: float) -> None:
        """Add a scalar with its weight."""
        # Not in place: after a validation, the state is an inference tensor.
        self.total = self.total + value.detach() * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.weight
