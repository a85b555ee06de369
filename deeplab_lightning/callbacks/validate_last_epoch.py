"""Validate after the last epoch, whatever the interval between validations is."""

from typing import Any

import lightning as L


class ValidateLastEpoch(L.Callback):
    """Validate after the last epoch too where `check_val_every_n_epoch` does not divide the number of epochs.

    Otherwise the figures of a training are not of its last weights, and a training that is shorter than the interval
    has none.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Let the last epoch end with a validation, also one that is resumed within."""
        if trainer.check_val_every_n_epoch is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    on_train_start = on_train_epoch_start
