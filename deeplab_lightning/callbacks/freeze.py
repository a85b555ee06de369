"""Freeze the backbone, or its first stages, for the whole training or its first epochs."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.backbone import Backbone
from deeplab_lightning.models.saving import uncompiled
from deeplab_lightning.models.stages import stage_parameters


class FreezeBackbone(L.Callback):
    """Keep the weights of a backbone as they are, and the statistics of its batch norms.

    Frozen layers need no gradient, which saves time and memory, and the optimiser leaves them alone, weight decay
    included.

    Args:
        stages: Number of stages, from the first, that are frozen; all if null. Stages are the backbone's feature maps.
        thaw_epoch: Epoch, 0-based, from which on everything trains; null for never. With several processes it must be
            null, since DistributedDataParallel exchanges the gradients of the weights that train at the start.
        train_weights: Whether weights train nevertheless, so that only the statistics of batch norms are frozen, as for
            small batches.

    Raises:
        ValueError: If `stages` or `thaw_epoch` is below 1; at the start, if the backbone has fewer stages.
    """

    def __init__(
        self, *, stages: int | None = None, thaw_epoch: int | None = None, train_weights: bool = False
    ) -> None:
        if (stages is not None and stages < 1) or (thaw_epoch is not None and thaw_epoch < 1):
            raise UserError(f"stages and thaw_epoch must be null or at least 1, got {stages} and {thaw_epoch}.")
        self.stages, self.thaw_epoch, self.train_weights = stages, thaw_epoch, train_weights
        self._frozen: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the weights before the optimiser and the strategy look at them."""
        if stage != "fit":
            return
        if self.thaw_epoch is not None and trainer.world_size > 1:
            raise UserError(
                f"FreezeBackbone: thaw_epoch needs one process, got {trainer.world_size}. Freeze one training, and "
                "start a second from its weights (model.net.init_args.weights)."
            )
        backbone: Backbone = uncompiled(pl_module.net).backbone
        self._frozen = stage_parameters(backbone, self.stages)
        ids = {id(parameter) for parameter in self._frozen}
        self._norms = [
            module
            for module in backbone.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and ids & {id(p) for p in module.parameters()}
        ]
        if not self.train_weights:
            self._set(trains=False)
        what = "statistics of the norms" if self.train_weights else "weights"
        until = "" if self.thaw_epoch is None else f" until epoch {self.thaw_epoch}"
        if self.thaw_epoch is not None and 0 < (trainer.max_epochs or 0) <= self.thaw_epoch:
            until += f", which this training of {trainer.max_epochs} epochs does not reach"
        count = sum(parameter.numel() for parameter in self._frozen)
        rank_zero_info(f"Frozen{until}: the {what} of {_named(self.stages)} ({count / 1e6:.2f} M parameters).")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Thaw the weights when it is time, also in a training that is resumed later than that."""
        if self.thaw_epoch is not None and trainer.current_epoch >= self.thaw_epoch:
            self._set(trains=True)
            for norm in self._norms:
                norm.train()
            self._norms = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let frozen norms use their statistics; Lightning sets all modules to training."""
        for norm in self._norms:
            norm.eval()

    def _set(self, *, trains: bool) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(trains)


def _named(stages: int | None) -> str:
    return "the backbone" if stages is None else f"the backbone's first {stages} stages"
