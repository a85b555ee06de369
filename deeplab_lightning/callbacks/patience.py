"""Say that early stopping has more patience than a training has validations."""

import math

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class PatienceWarning(L.Callback):
    """Warn of an `EarlyStopping` that cannot end the training, since its patience outlasts it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the patience with the number of validations of the whole training."""
        count = _count_validations(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            is_of_validation = isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/")
            if is_of_validation and count is not None and callback.patience >= count:
                rank_zero_warn(
                    f"EarlyStopping: its patience of {callback.patience} validations cannot end this training, which "
                    f"has {count}. Lower patience, or validate more often (trainer.check_val_every_n_epoch, "
                    "trainer.val_check_interval)."
                )


def _count_validations(trainer: L.Trainer) -> int | None:
    """Count the validations from the first to the last epoch; None if their number is not known."""
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    is_other = bool(trainer.fast_dev_run) or trainer.max_steps > 0  # type: ignore[attr-defined]
    if epochs is None or epochs < 1 or every is None or is_other:
        return None
    batches, interval = float(trainer.num_training_batches), trainer.val_check_batch
    if interval is None or not math.isfinite(batches):
        return None
    per_epoch = max(1, int(batches // interval))
    return -(-epochs // every) * per_epoch  # the last epoch is validated in any case
