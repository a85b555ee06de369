"""Stop a training that has diverged."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.runs import RunFolder

_STEPS = 50  # batches in a row without a finite loss that stop a training, and batches between two looks at them


class StopOnDivergence(L.Callback):
    """Stop a training whose loss or weights are not finite, since neither recovers.

    A few losses that are not finite are allowed, as at the start of a training in float16. The training stops after an
    epoch or 50 batches in a row without a finite loss, or if weights or statistics are not finite. The losses are
    counted on the device; only every 50 batches and at the end of an epoch, the callback waits for it.

    Raises:
        ValueError: On the first process; the others end with it.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._streak = torch.zeros((), dtype=torch.int64, device=pl_module.device)  # batches since a finite loss
        self._since = torch.zeros_like(self._streak)  # optimiser step of the first of them
        self._num_finite = torch.zeros_like(self._streak)  # finite losses of the epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the losses of the last epoch."""
        self._num_finite = torch.zeros_like(self._streak)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the loss of the batch, and look at the counts if it is time."""
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            is_finite = outputs["loss"].detach().isfinite().all()
            self._since = torch.where(is_finite | (self._streak > 0), self._since, trainer.global_step)
            self._streak = torch.where(is_finite, 0, self._streak + 1)
            self._num_finite = self._num_finite + is_finite
        if trainer.is_last_batch:  # before its validation
            self._look(trainer, pl_module, is_epoch_end=True)
        elif (batch_idx + 1) % _STEPS == 0:
            self._look(trainer, pl_module, is_epoch_end=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at an epoch that ended early, as with `max_steps`."""
        if not trainer.is_last_batch:
            self._look(trainer, pl_module, is_epoch_end=True)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule, *, is_epoch_end: bool) -> None:
        """Stop all processes together if one of them has diverged."""
        streak, num_finite = int(self._streak), int(self._num_finite)
        has_lost = streak >= _STEPS or (is_epoch_end and streak > 0 and num_finite == 0)
        if not trainer.strategy.reduce_boolean_decision(has_lost or not is_finite(pl_module), all=False):
            return
        if not trainer.is_global_zero:
            raise SystemExit(0)  # another status makes Lightning kill the first process, which reports the error
        raise UserError(_describe(trainer, int(self._since) if streak else None))


def is_finite(module: nn.Module) -> bool:
    """Check whether all weights and statistics of a module are finite; waits for the device once."""
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point() and tensor.numel()]
    # The largest value, since a sum of squares may overflow in float16.
    return bool(torch.nn.utils.get_total_norm(tensors, norm_type=float("inf")).isfinite())


def _describe(trainer: L.Trainer, since: int | None) -> str:
    rate = float(trainer.optimizers[0].param_groups[0]["lr"])
    step, what = (trainer.global_step, "weights are") if since is None else (since, "loss is")
    advice = "a lower learning rate, warmup_steps of the schedule, or trainer.gradient_clip_val: 1"
    if str(trainer.precision).startswith("16"):
        advice += ", or trainer.precision: bf16-mixed or 32-true"
    last = RunFolder(trainer.default_root_dir).last
    kept = f" {last} holds the last weights that are finite." if last.is_file() else ""
    return (
        f"the training diverged: the {what} not finite since step {step}, learning rate {rate:g}. Try {advice}.{kept}"
    )
