"""Seed every epoch, so that a resumed training draws the same random numbers."""

import lightning as L


class EpochSeed(L.Callback):
    """Seed the random generators at the start of each epoch from seed, epoch and process.

    This covers dropout and everything else that draws numbers in a training step. Checkpoints hold no generator
    states, so a resumed training would otherwise draw other numbers than an uninterrupted one.

    Args:
        seed: Seed of the training; the callback does nothing if None.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the generators of this process."""
        if self.seed is not None:
            distinct = self.seed + 1_000_003 * (trainer.current_epoch + 1) + 7919 * trainer.global_rank
            L.seed_everything(distinct % 2**32, workers=False, verbose=False)
