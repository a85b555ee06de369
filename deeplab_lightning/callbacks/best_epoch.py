"""Find the best epoch of a training: the one whose weights are in `best.ckpt`."""

import math

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint


def best_row(rows: list[dict[str, float]], trainer: L.Trainer) -> dict[str, float] | None:
    """Find the first epoch with the best monitored figure, whose weights are in `best.ckpt`.

    Epochs after which no checkpoint is saved do not count.

    Args:
        rows: Logged values by key, one mapping per epoch.
        trainer: Trainer whose checkpoint callback names the figure; without one, the highest `val/miou` is the best.

    Returns:
        The row, or None if no row has both the figure and `val/miou`.
    """
    key, mode = monitored_figure(trainer)
    deciding = _deciding_checkpoint(trainer)
    every = (deciding and deciding.every_n_epochs) or 1
    scored = [
        row
        for row in rows
        if "val/miou" in row and not math.isnan(row.get(key, math.nan)) and (row.get("epoch", -1) + 1) % every == 0
    ]
    if not scored:
        return None
    return max(scored, key=lambda row: row[key]) if mode == "max" else min(scored, key=lambda row: row[key])


def monitored_figure(trainer: L.Trainer) -> tuple[str, str]:
    """Return name and mode, `max` or `min`, of the figure that chooses the best epoch."""
    deciding = _deciding_checkpoint(trainer)
    return ("val/miou", "max") if deciding is None else (str(deciding.monitor), deciding.mode)


def best_checkpoint(row: dict[str, float] | None, trainer: L.Trainer) -> str | None:
    """Return the file with the weights of the best epoch, or of the last one without validation; None if none is."""
    deciding = _deciding_checkpoint(trainer)
    if row is not None:
        return (deciding.best_model_path or None) if deciding else None
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return next(filter(None, (c.best_model_path for c in callbacks)), None)


def _deciding_checkpoint(trainer: L.Trainer) -> ModelCheckpoint | None:
    """Return the callback of `best.ckpt`, whatever else the user monitors; without it, the first that monitors."""
    monitoring = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    return next((c for c in monitoring if type(c) is RunCheckpoint), monitoring[0] if monitoring else None)
