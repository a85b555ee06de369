"""Let cuDNN search for kernels in training only."""

import lightning as L
import torch


class CudnnBenchmarkInTraining(L.Callback):
    """Turn `trainer.benchmark: true` off during evaluation and prediction.

    cuDNN searches for the fastest kernels of each image size. Training crops have one size; images that are evaluated
    have many, and each would be searched for.
    """

    def __init__(self) -> None:
        self._in_training: bool | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn the search off."""
        self._in_training = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set it as it was."""
        if self._in_training is not None:
            torch.backends.cudnn.benchmark, self._in_training = self._in_training, None

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Set it as it was."""
        self.on_validation_end(trainer, pl_module)
