"""Let a hyperparameter search decide after each epoch whether a training goes on."""

import os
import time

import lightning as L

from deeplab_lightning.runs import SEARCH_VARIABLE, RunFolder

_POLL_SECONDS = 0.1


class SearchGate(L.Callback):
    """Wait after each epoch for the search that started this training, and end if it wants no further epoch.

    The training ends as after `EarlyStopping`: with its last checkpoint and its result. A search that dies ends its
    trainings, so that none waits for ever. Without the search's environment variable, nothing waits: a training that
    a search stopped can be continued by hand.
    """

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        """Name of the search, once it has stopped this training."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the answer, on the first process alone, and follow it on all."""
        search, done = os.environ.get(SEARCH_VARIABLE), trainer.current_epoch + 1
        if search is None or (trainer.max_epochs is not None and done >= trainer.max_epochs > 0):
            return
        is_over = trainer.is_global_zero and not self._may_go_on(RunFolder(trainer.default_root_dir), done)
        if trainer.strategy.reduce_boolean_decision(is_over, all=False):
            self.stopped_by, trainer.should_stop = search, True

    @staticmethod
    def _may_go_on(run: RunFolder, done: int) -> bool:
        """Wait until the search has seen an epoch, and return whether another one may follow."""
        while (answer := run.read_search_answer()) is None or answer < done:
            if answer == RunFolder.SEARCH_STOPS:
                return False
            time.sleep(_POLL_SECONDS)
        return True
