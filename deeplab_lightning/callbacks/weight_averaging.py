"""Validate, keep and predict with an average of the weights of the last steps or epochs."""

from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from deeplab_lightning.errors import UserError

_MUCH = 0.01  # of an average: with .13 of untrained weights in it, a network of mIoU .683 had .234
_FIRST_STEPS = 0.1  # of a training, in which its weights are still untrained
_MAX_STEPS = 100_000  # that are looked at


class EMAWithWarmup(WeightAveraging):
    """Average the weights exponentially over the steps, with a decay that grows at first.

    The decay of step n is the smaller one of `decay` and (n + 1) / (n + 10), as in TensorFlow's moving average, so the
    average forgets the untrained weights in short trainings too. With a constant decay of 0.99, these are still 13 % of
    it after 200 steps. The average is what is validated, drawn and saved; the weights that train are in checkpoints
    too, for resuming. The statistics of batch norms are averaged like weights.

    Args:
        decay: Share of the average that a step keeps, in [0, 1); 0.999 suits trainings of many thousand steps.

    Raises:
        ValueError: If `decay` is outside its range.
    """

    def __init__(self, *, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay must be in [0, 1), got {decay}.")
        super().__init__(avg_fn=partial(_warm_average, decay=decay))
        self.decay = decay


def _warm_average(average: Tensor, weight: Tensor, num_averaged: Tensor, *, decay: float) -> Tensor:
    """Return the average after one more step; counters, which are integers, are those of the step.

    Args:
        average: The average so far.
        weight: The weight of the step.
        num_averaged: Number of steps in the average, at least 1.
        decay: Largest share of the average that is kept.
    """
    if not average.is_floating_point():
        return weight
    kept = ((num_averaged + 1) / (num_averaged + 10)).clamp(max=decay)
    return torch.lerp(average, weight, (1 - kept).to(average.dtype))


class EpochWeightAveraging(WeightAveraging):
    """Average the weights at the ends of the last epochs, all with the same weight.

    Stochastic weight averaging of Izmailov et al. 2018, arXiv:1803.05407, with the schedule that the training has. The
    average is what is validated, drawn and saved, so that `best.ckpt` and the figures are about the same weights; those
    that train are in checkpoints too, for resuming. The statistics of batch norms are averaged like weights.

    Args:
        start: Share of the epochs after which averaging starts, in [0, 1); before, the weights are as they are.

    Raises:
        ValueError: If `start` is outside its range; at the start, if the training has no number of epochs.
    """

    def __init__(self, *, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise UserError(f"start must be a share of the epochs in [0, 1), got {start}.")
        super().__init__()
        self.start = start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the first epoch of the average is known."""
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise UserError("EpochWeightAveraging needs a number of epochs: set trainer.max_epochs.")
        if trainer.max_epochs - int(self.start * trainer.max_epochs) < 2:
            rank_zero_warn(
                f"EpochWeightAveraging has one epoch to average: start is {self.start} of {trainer.max_epochs} epochs. "
                "Take a smaller start, or more epochs."
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the weights before the average starts, and add them to it after the last step of each later epoch."""
        assert trainer.max_epochs is not None
        assert self._average_model is not None
        first = int(self.start * trainer.max_epochs)
        if trainer.current_epoch < first or trainer.is_last_batch:
            if trainer.current_epoch <= first:
                self._average_model.n_averaged.zero_()  # so that the update is a copy
            self._average_model.update_parameters(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the module, and say so if the training ended before there was one."""
        if self._average_model is not None and int(self._average_model.n_averaged) < 2:
            rank_zero_warn(
                f"the training ended before EpochWeightAveraging had two epochs to average (start: {self.start}): its "
                "weights are those of the last step."
            )
        super().on_train_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average alone: the epoch's validation, which comes before, has used it with this epoch."""


class SlowAverageWarning(L.Callback):
    """Warn of a constant decay that leaves untrained weights in the average when the training ends."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute from the number of steps what the first weights have of the average at the end."""
        steps = int(min(trainer.estimated_stepping_batches, _MAX_STEPS))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMAWeightAveraging) and (share := _first_share(callback, steps)) > _MUCH:
                rank_zero_warn(
                    f"EMAWeightAveraging: after the {steps} steps of this training, {share:.0%} of the average are the "
                    "weights that it began with. Take deeplab_lightning.callbacks.EMAWithWarmup "
                    "(configs/trainer/ema.yaml), or a smaller decay."
                )


def _first_share(callback: EMAWeightAveraging, steps: int) -> float:
    """Compute the share that weights of the first steps have of an average at the end; 0 if it begins later."""
    assert callback._average_model is not None
    average = callback._average_model.avg_fn
    updates = [step for step in range(steps) if callback.should_update(step_idx=step)]
    if average is None or not updates or updates[0] > _FIRST_STEPS * steps:
        return 0.0
    decay = float(average(torch.ones(()), torch.zeros(()), torch.ones(())))
    return float(decay ** (len(updates) - 1))  # the first update is a copy
