"""Randomness that a resumed training shares with an uninterrupted one."""

import lightning as L


class EpochSeed(L.Callback):
    """Seeds dropout and all else that draws numbers in a training step by (seed, epoch, process).

    Checkpoints hold no generator states, so without it a resumed training would draw other numbers.

    Args:
        seed: The seed of the training; nothing happens if None.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seed is not None:
            distinct = self.seed + 1_000_003 * (trainer.current_epoch + 1) + 7919 * trainer.global_rank
            L.seed_everything(distinct % 2**32, workers=False, verbose=False)
