"""Add up what an epoch has trained so far."""

import time
from typing import Any

import torch
from torch import Tensor


class EpochProgress:
    """Hold what an epoch has trained so far, also across an interruption.

    Args:
        epoch: Number of the epoch, from 0.
        loss_sum: Sum of the losses of the steps so far.
        num_steps: Their number.
        seconds: Time that they took.
        figures: Logged values of the epoch's best validation, if there was one.
    """

    def __init__(
        self,
        epoch: int = -1,
        loss_sum: float = 0.0,
        num_steps: int = 0,
        seconds: float = 0.0,
        figures: dict[str, float] | None = None,
    ) -> None:
        self.epoch, self.figures = epoch, figures
        self._loss_sum, self._num_steps, self._earlier_seconds = torch.tensor(loss_sum), num_steps, seconds
        self._start = time.monotonic()

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments of the constructor, as plain values for a checkpoint."""
        return {
            "epoch": self.epoch,
            "loss_sum": float(self._loss_sum),
            "num_steps": self._num_steps,
            "seconds": self.seconds,
            "figures": self.figures,
        }

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step."""
        self._loss_sum = self._loss_sum.to(loss.device) + loss
        self._num_steps += 1

    @property
    def seconds(self) -> float:
        """Time of the epoch so far."""
        return self._earlier_seconds + time.monotonic() - self._start

    @property
    def loss_sum(self) -> Tensor:
        """Sum of the losses of the steps so far, a scalar."""
        return self._loss_sum

    @property
    def mean_loss(self) -> Tensor:
        """Mean loss over the steps so far, a scalar; 0 before the first."""
        return self._loss_sum / max(self._num_steps, 1)
