"""Hold trainings in the middle, so that they can be interrupted there however fast or slow they are."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import lightning as L

from deeplab_lightning.callbacks.sigterm import StopOnSigterm

VARIABLE = "DEEPLAB_TEST_HOLD"
_MAX_SECONDS = 300.0  # of a training that a failed test has forgotten


def holding(file: Path) -> Mapping[str, str]:
    """Return the variables of trainings that hold until a file exists."""
    return {VARIABLE: str(file)}


class Hold(L.Callback):
    """Wait in the second epoch of a training that began with the first one, after its last batch.

    It goes on after a signal that stops it, and once the file exists that the environment variable names. So a test
    that interrupts trainings needs no pauses, and finds one finished epoch with its checkpoint; what goes on from there
    does not wait.
    """

    _is_new = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note whether the training goes on from a checkpoint."""
        self._is_new = trainer.current_epoch == 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait."""
        if VARIABLE not in os.environ or not self._is_new or trainer.current_epoch != 1:
            return
        [signals] = [own for own in trainer.callbacks if isinstance(own, StopOnSigterm)]  # type: ignore[attr-defined]
        end = time.monotonic() + _MAX_SECONDS
        while not Path(os.environ[VARIABLE]).exists() and not signals.received and time.monotonic() < end:
            time.sleep(0.05)
