"""Go on without a logger that fails during a training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.errors import is_interrupt

_METHODS = ("log_metrics", "log_hyperparams", "log_image", "log_table", "after_save_checkpoint", "save", "finalize")


class LoggerGuard(L.Callback):
    """Take a logger out of a training when it fails, instead of ending the training.

    The process that W&B starts may be killed where memory is short, MLflow's server may be restarted, and the disk of
    TensorBoard's files may be full. The run's folder holds what was logged. What fails before the first step ends the
    training, since it is a mistake in the settings; so do errors of other classes of loggers.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Guard the methods of the loggers that Lightning and the callbacks here call."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger | MLFlowLogger | TensorBoardLogger | CSVLogger):
                for name in _METHODS:
                    if hasattr(logger, name):
                        setattr(logger, name, _guarded_method(trainer, logger, getattr(logger, name)))


def _guarded_method(trainer: L.Trainer, logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with guarded(trainer, logger):
            return method(*args, **kwargs)
        return None

    return call


@contextmanager
def guarded(trainer: L.Trainer, logger: Logger) -> Iterator[None]:
    """Take a logger out of a training if it fails in the body; nothing is done with one that was taken out before.

    Args:
        trainer: The trainer.
        logger: One of its loggers.
    """
    try:
        yield
    except Exception as error:  # of any kind: the training and its record do not depend on it
        if is_interrupt(error):
            raise
        if logger not in trainer.loggers:
            return
        trainer.loggers = [other for other in trainer.loggers if other is not logger]
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        rank_zero_warn(
            f"{type(logger).__name__} failed ({reason}), and the training goes on without it. "
            f"{trainer.default_root_dir} holds all figures."
        )
        if isinstance(logger, WandbLogger):
            import wandb

            with suppress(Exception):
                wandb.teardown()  # which would fail at the end of this process again, with a traceback
