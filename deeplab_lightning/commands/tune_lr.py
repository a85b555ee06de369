"""Run `deeplab tune-lr`: train while the learning rate rises, and suggest one from the losses."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from deeplab_lightning.commands.parsers import tune_lr_parser
from deeplab_lightning.commands.short_training import loss_of, train_some_steps
from deeplab_lightning.drawing import draw_learning_rates
from deeplab_lightning.errors import UserError
from deeplab_lightning.files import output_folder, write_atomically, write_text
from deeplab_lightning.optimizers import batch_size_factor
from deeplab_lightning.tables import csv_text_of_dicts

_SMOOTHING = 0.9  # weight of the past in the mean of the losses
_DIVERGED = 3.0  # times the lowest mean loss, after which a larger rate tells nothing
_MIN_STEPS = 20
_SKIPPED = 10  # first steps, whose means are of too few losses to tell a slope from noise


class LearningRateSweep(L.Callback):
    """Raise the learning rate from step to step, by the same factor each, and keep the losses.

    It ends the training once the loss has diverged. Every group of parameters has its multiple of the rate, as in a
    training, and all have that of the batch size, if the module has a `base_batch_size`.

    Args:
        low: First learning rate of the optimiser, which is the backbone's before it is scaled with the batch size.
        high: Last one.
        steps: Number of steps between them.
    """

    def __init__(self, low: float, high: float, steps: int) -> None:
        self.rates: list[float] = np.geomspace(low, high, steps).tolist()
        self.losses: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of the next step."""
        rate = self.rates[min(trainer.global_step, len(self.rates) - 1)]
        rate *= batch_size_factor(pl_module.base_batch_size, trainer)  # type: ignore[arg-type]
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["lr_multiplier"]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss, and stop if it has diverged."""
        loss = loss_of(outputs, trainer)
        position = trainer.global_step - 1  # batches of one step are added up
        if 0 <= position < len(self.losses):
            self.losses[position] = loss
        else:
            self.losses.append(loss)
        means = smooth(self.losses)
        trainer.should_stop = not math.isfinite(loss) or means[-1] > _DIVERGED * means.min()


def tune_lr(args: list[str]) -> None:
    """Suggest the optimiser's learning rate, by the range test of Smith 2017 (arXiv:1506.01186, section 3.3).

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        ValueError: If a limit or the number of steps cannot be used, or the losses suggest no rate.
    """
    given, rest = tune_lr_parser().parse_known_args(args)
    if not 0 < given.min_lr < given.max_lr < math.inf:
        raise UserError(f"--min_lr must be above 0 and below --max_lr, got {given.min_lr} and {given.max_lr}.")
    if given.steps < _MIN_STEPS:
        raise UserError(f"--steps must be at least {_MIN_STEPS}, got {given.steps}.")
    sweep = LearningRateSweep(given.min_lr, given.max_lr, given.steps)
    folder = Path(given.output)
    with output_folder(folder), tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        train_some_steps(rest, sweep, given.steps, scratch, is_quiet=False)
    rates = sweep.rates[: len(sweep.losses)]
    rows = [{"lr": f"{rate:.6g}", "loss": f"{loss:.6g}"} for rate, loss in zip(rates, sweep.losses, strict=True)]
    write_text(folder / "tune_lr.csv", csv_text_of_dicts(rows))
    suggested = suggest(rates, sweep.losses)
    means = smooth(sweep.losses)
    write_atomically(
        folder / "tune_lr.png",
        lambda file: draw_learning_rates(rates, sweep.losses, means.tolist(), suggested, file),
    )
    print(
        f"Written to {folder}: tune_lr.csv and tune_lr.png, {len(rates)} steps from {rates[0]:.2g} to {rates[-1]:.2g}."
    )
    print(f"Suggested: --model.optimizer.lr {suggested:.2g}")


def smooth(losses: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the exponential mean of the losses up to each step, without the bias of its start."""
    means, mean = np.empty(len(losses)), 0.0
    for index, loss in enumerate(losses):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        means[index] = mean / (1 - _SMOOTHING ** (index + 1))
    return means


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return the learning rate at which the mean loss falls fastest over the logarithm of the rate.

    The first 10 steps are left out, where the mean follows the loss of single batches.

    Args:
        rates: Learning rates, rising.
        losses: Loss of each step; those from the first that is not finite on are left out.

    Raises:
        ValueError: If fewer than 20 losses are finite, they do not fall, or they fall fastest at the first or the last
            step that counts, so that another rate beyond may be better.
    """
    finite = np.isfinite(losses)
    count = len(finite) if finite.all() else int(np.argmin(finite))
    if count < _MIN_STEPS:
        raise UserError(f"the loss diverged after {count} steps: lower --min_lr, or take more --steps.")
    means, tried = smooth(losses[:count])[_SKIPPED:], rates[_SKIPPED:count]
    lowest = int(np.argmin(means))
    slopes = np.gradient(means, np.log(tried))[: lowest + 1]
    if lowest < 2 or slopes.min() >= 0:
        raise UserError(f"the loss does not fall between {tried[0]:.2g} and {tried[-1]:.2g}: change the limits.")
    steepest = int(np.argmin(slopes))
    if steepest in {0, len(tried) - 1}:
        end, remedy = ("lowest", "lower --min_lr") if steepest == 0 else ("highest", "raise --max_lr")
        raise UserError(
            f"the loss falls fastest at {tried[steepest]:.2g}, the {end} rate that counts (the first {_SKIPPED} steps "
            f"do not), so the best one may lie beyond: {remedy}, or take more --steps."
        )
    return float(tried[steepest])
