"""Slow trainings down, so that they can be interrupted in the middle."""

import os
import time

import lightning as L

VARIABLE = "DEEPLAB_TEST_PAUSE"


class Pause(L.Callback):
    """Wait at the end of each epoch, for the seconds in the environment variable."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(float(os.environ.get(VARIABLE, "0")))
