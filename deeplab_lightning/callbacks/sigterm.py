"""End a training after SIGTERM, and at once after a second Ctrl-C."""

import contextlib
import os
import signal
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint


class StopOnSigterm(L.Callback):
    """End all processes of a training together after one of them got SIGTERM, at the end of a batch.

    In a job of SLURM also after SIGUSR1, which `--signal=USR1@120` sends before the time limit.

    `last.ckpt` is written first, so that nothing is lost: a resumed training begins with the next batch, or with the
    validation that was interrupted. With several processes, a validation is not interrupted.

    Lightning's own handler communicates while other communication may be under way, so that processes which all get
    the signal wait for each other forever.

    It must come after callbacks that have something to do at the end of a training step, such as weight averaging.

    Raises:
        SIGTERMException: On all processes.
    """

    def __init__(self) -> None:
        self.received = False
        """Whether this process got the signal."""
        self.is_limit = False
        """Whether it was SLURM's before the time limit of its job, SIGUSR1."""

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's handlers of the signals."""
        with contextlib.suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, self._note)
            if "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGUSR1, self._note)

    on_train_start = on_sanity_check_start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if the signal came during the last validation, after which `last.ckpt` was written."""
        self._stop_together(trainer, is_saving=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the signal came."""
        self._stop_together(trainer, is_saving=True)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Stop a single process; several have different numbers of batches here."""
        if self.received and trainer.world_size == 1 and not trainer.sanity_checking:
            # The averaged weights are in place of the others now.
            averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            self._stop(trainer, is_saving=not averages)

    def _stop_together(self, trainer: L.Trainer, *, is_saving: bool) -> None:
        if trainer.strategy.reduce_boolean_decision(self.received, all=False):
            self._stop(trainer, is_saving=is_saving)

    def _stop(self, trainer: L.Trainer, *, is_saving: bool) -> NoReturn:
        self.received = True
        for callback in trainer.checkpoint_callbacks if is_saving else ():
            if isinstance(callback, RunCheckpoint) and callback.filename == "last":
                callback.save_now(trainer)
        raise SIGTERMException

    def _note(self, number: int, *_: Any) -> None:
        self.received, self.is_limit = True, self.is_limit or number != signal.SIGTERM
        # The same signal may end the reading processes, for which torch's handler would raise an error wherever this
        # process is, such as while it stops. A loader that waits for one of them finds it dead within 5 seconds.
        if hasattr(signal, "SIGCHLD"):  # not on Windows
            # Not SIG_DFL: Python raises an error if the signal is on its way to a handler that is gone.
            signal.signal(signal.SIGCHLD, lambda *_: None)


class EndAtSecondInterrupt(L.Callback):
    """Let a second Ctrl-C end the process at once.

    After the first, Lightning tears down its processes, loaders and loggers and ignores any further one.
    """

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore what the system does with SIGINT."""
        if isinstance(exception, KeyboardInterrupt):
            with contextlib.suppress(ValueError):  # outside the main thread
                signal.signal(signal.SIGINT, signal.SIG_DFL)
