"""Run `deeplab tune-batch`: train some steps with larger and larger batches, and find what fits and what is fastest."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from rich.table import Table

from deeplab_lightning.commands.parsers import tune_batch_parser
from deeplab_lightning.commands.peak_memory import peak_megabytes, reset_peak
from deeplab_lightning.commands.short_training import train_some_steps
from deeplab_lightning.data.image_cache import available_memory
from deeplab_lightning.errors import UserError
from deeplab_lightning.files import output_folder, write_text
from deeplab_lightning.tables import csv_text_of_dicts, table_console

_WARM_UP = 2  # steps that are not measured: they allocate memory and choose algorithms
_AS_FAST = 0.97  # share of the highest rate that counts as equal to it, as steps differ by a few percent


@dataclass(frozen=True)
class Trial:
    """Hold what a batch size takes.

    Attributes:
        batch_size: Images per step and device.
        images_per_s: Images per second of the training loop, with its loader.
        peak_mb: Largest memory in megabytes: of the process on a CPU, of tensors on a GPU.
    """

    batch_size: int
    images_per_s: float
    peak_mb: float


class StepClock(L.Callback):
    """Measure the times of training steps, each up to the end of its work on the device, and their memory."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.batch_size, self.is_on_cpu = 0, True
        self.before_mb = self.peak_mb = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start measuring memory."""
        self.is_on_cpu = pl_module.device.type == "cpu"
        reset_peak(pl_module.device)
        self.before_mb = peak_megabytes(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the time and the memory."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.batch_size = len(batch.image)
        self.peak_mb = peak_megabytes(pl_module.device)


def tune_batch(args: list[str]) -> None:
    """Double the batch size until it does not fit, then try the middle, and print what each size takes.

    On a CPU, where the system ends a process that takes too much memory, a size is not tried if it would take more
    than is free, since a step's memory grows with the batch.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        ValueError: If the largest size or the number of steps cannot be used, or one image does not fit.
    """
    given, rest = tune_batch_parser().parse_known_args(args)
    if given.max_batch_size < 1:
        raise UserError(f"--max_batch_size must be at least 1, got {given.max_batch_size}.")
    if given.steps <= _WARM_UP:
        raise UserError(f"--steps must be above {_WARM_UP}, the steps that are not measured, got {given.steps}.")
    folder = Path(given.output)
    with output_folder(folder):
        trials, reason = _search(rest, given.max_batch_size, given.steps)
    write_text(folder / "tune_batch.csv", csv_text_of_dicts([asdict(trial) for trial in trials]))
    table_console().print(_table(trials))
    if reason:
        print(f"Larger batches do not fit: {reason}.")
    print(f"Written to {folder}: tune_batch.csv")
    largest = trials[-1].batch_size
    best = fastest(trials)
    print(f"Largest: --data.batch_size {largest}. Fastest: --data.batch_size {best.batch_size}")
    print("The learning rate belongs to the batch size: see deeplab tune-lr, or model.base_batch_size.")


def _search(args: Sequence[str], max_size: int, steps: int) -> tuple[list[Trial], str]:
    """Try larger and larger batches.

    Returns:
        Trials by rising batch size, and why there is no larger one; empty if none was asked for.
    """
    trials: list[Trial] = []
    size, reason, is_full = 1, "", False
    while not reason and size <= max_size:
        reason, is_full = _try(args, size, steps, trials)
        size *= 2
    if not trials:
        raise UserError(f"one image does not fit: {reason}. Take a smaller crop, or gradient checkpointing.")
    between = trials[-1].batch_size * 3 // 2
    if is_full and trials[-1].batch_size < between <= max_size:
        _try(args, between, steps, trials)
    return trials, reason


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the smallest batch size that is as fast as the fastest one, within 3 %.

    Args:
        trials: Trials by rising batch size.
    """
    highest = max(trial.images_per_s for trial in trials)
    return next(trial for trial in trials if trial.images_per_s >= _AS_FAST * highest)


def _try(args: Sequence[str], size: int, steps: int, trials: list[Trial]) -> tuple[str, bool]:
    """Train some steps with batches of one size, and append what they take.

    Returns:
        Why no larger size can be tried, empty if one can; whether this size did not fit.
    """
    clock = StepClock()
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        try:
            train_some_steps(
                [*args, "--data.batch_size", str(size)], clock, steps, scratch, is_quiet=bool(trials) or size > 1
            )
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            garbage_collection_cuda()
            return f"{size} images need more memory than there is", True
    if clock.batch_size < size:
        return f"there are only {clock.batch_size} training images for a batch of {size}", False
    seconds = statistics.median(b - a for a, b in zip(clock.ends[_WARM_UP - 1 :], clock.ends[_WARM_UP:], strict=False))
    trials.append(Trial(size, round(size / seconds, 2), round(clock.peak_mb, 1)))
    table_console().print(f"measured batches of {size}")
    own = 1e6 * (clock.peak_mb - clock.before_mb)  # of the steps
    if clock.is_on_cpu and own > available_memory():
        free = (own + available_memory()) / 1e9
        return f"{2 * size} images would take about {2 * own / 1e9:.1f} GB, and {free:.1f} GB are free", False
    return "", False


def _table(trials: Sequence[Trial]) -> Table:
    """Build the table of batch sizes."""
    table = Table()
    for title in ("batch size", "images/s", "peak MB"):
        table.add_column(title, justify="right")
    for trial in trials:
        table.add_row(str(trial.batch_size), f"{trial.images_per_s:.1f}", f"{trial.peak_mb:.0f}")
    return table
