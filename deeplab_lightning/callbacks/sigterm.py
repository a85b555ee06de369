"""End a training after SIGTERM."""

import contextlib
import signal
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopOnSigterm(L.Callback):
    """End all processes of a training together after one of them got SIGTERM, at the end of a batch.

    Lightning's own handler communicates while other communication may be under way, so that processes which all get
    the signal wait for each other forever. With several processes, a validation is not interrupted.

    Raises:
        SIGTERMException: On all processes.
    """

    def __init__(self) -> None:
        self.received = False
        """Whether this process got the signal."""

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's handler of the signal."""
        with contextlib.suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, self._note)

    on_train_start = on_sanity_check_start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if the signal came during the last validation."""
        self._stop_together(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the signal came."""
        self._stop_together(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Stop a single process; several have different numbers of batches here."""
        if self.received and trainer.world_size == 1:
            raise SIGTERMException

    def _stop_together(self, trainer: L.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.received, all=False):
            self.received = True
            raise SIGTERMException

    def _note(self, *_: Any) -> None:
        self.received = True
