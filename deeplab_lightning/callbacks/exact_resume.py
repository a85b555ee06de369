"""Let a resumed training continue with the numbers of one that was not interrupted."""

import hashlib
import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.optimizers import images_per_step


class ExactResume(L.Callback):
    """Seed the random generators before each training step from seed, epoch, batch and process.

    This covers dropout and everything else that draws numbers in a training step. Checkpoints hold no generator
    states, and Lightning calls no hook at the start of an epoch that is resumed within; so a resumed training would
    otherwise draw other numbers than an uninterrupted one. Order and crops of the images are the datamodule's part.

    A checkpoint that was written after the last step of an epoch, or within its validation, resumes with that
    validation, which Lightning would leave out.

    It warns if the learning rates that are asked for are not those of the checkpoint, which the training goes on with,
    and if the steps have another number of images.

    Args:
        seed: Seed of the training; nothing is seeded if None.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._rates: dict[str, float] = {}
        self._images: int | None = None  # per step, of this training
        self._images_before: int | None = None  # of the checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the images per optimiser step, for checkpoints."""
        return {"images_per_step": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the images per optimiser step of the checkpoint; those of earlier versions have none."""
        self._images_before = state_dict.get("images_per_step")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the images per step, and the learning rates before the optimizer gets those of the checkpoint."""
        self._rates, self._images = _rates(trainer), images_per_step(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if the training goes on with other learning rates than it was asked for, or with other steps."""
        found = _rates(trainer)
        changed = [(found[name], asked) for name, asked in self._rates.items() if found.get(name, asked) != asked]
        if changed:
            rank_zero_warn(
                "the training goes on with the checkpoint's learning rates, and not with those that are asked for "
                f"({changed[0][0]:.4g}, not {changed[0][1]:.4g}); to change them, start a training from its weights, "
                "by --model.net.weights."
            )
        if None not in (self._images, self._images_before) and self._images != self._images_before:
            rank_zero_warn(
                f"the checkpoint was trained with {self._images_before} images per optimiser step, and the training "
                f"goes on with {self._images} (batch_size x devices x num_nodes x accumulate_grad_batches): its "
                "schedule and its rates are those of the former."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of this process and its device."""
        if self.seed is None:
            return
        place = f"{self.seed} {trainer.current_epoch} {batch_idx} {trainer.global_rank}"
        seed = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=4).digest())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, the generator that users' code draws from
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond to seed all devices
        if pl_module.device.type == "cuda":
            torch.cuda.default_generators[pl_module.device.index or 0].manual_seed(seed)
        elif pl_module.device.type != "cpu":
            torch.manual_seed(seed)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark an epoch whose steps are done as interrupted in its validation."""
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if not loops or not _validates_at_the_end(trainer, loops["epoch_progress"]["current"]["processed"]):
            return
        training, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
        total, current = training["total"], validation["current"]
        is_after_last_step = total["ready"] == total["processed"] == total["completed"] + 1
        is_in_validation = total["ready"] == total["completed"] and current["ready"] > current["completed"]
        if training["is_last_batch"] and (is_after_last_step or is_in_validation):
            for counts in (total, training["current"]):
                counts["completed"] = counts["processed"]
            for key in ("total", "current"):  # Lightning's mark of an interrupted validation: a batch was begun
                validation[key] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def _rates(trainer: L.Trainer) -> dict[str, float]:
    """Return the rate of each named parameter group before a schedule changes it, as far as that is known."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    key = "initial_lr" if trainer.lr_scheduler_configs else "lr"
    return {str(group["name"]): float(group[key]) for group in groups if key in group and "name" in group}


def _validates_at_the_end(trainer: L.Trainer, epoch: int) -> bool:
    every = trainer.check_val_every_n_epoch
    is_due = not every or (epoch + 1) % every == 0 or epoch + 1 == trainer.max_epochs  # see `ValidateLastEpoch`
    return trainer.enable_validation and trainer.val_check_interval == 1.0 and is_due
