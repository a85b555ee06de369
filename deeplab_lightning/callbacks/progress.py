"""What a training prints where the output is a file: a line about the network, and one per epoch."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from deeplab_lightning.models.cost import COST_SIZE, network_cost
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.tables import shown


class EpochLines(ProgressBar):
    """Prints a line with loss and validation mIoU after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._start = 0.0

    def disable(self) -> None:
        """Called by the trainer on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self._is_enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = self.get_metrics(trainer, pl_module)
        parts = [
            f"{name} {shown(float(figures[name]), missing='nan')}"
            for name in ("train/loss", "val/loss", "val/miou")
            if name in figures
        ]
        self._print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}  "
            f"{time.monotonic() - self._start:.1f} s"
        )

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """All logged figures, not only those meant for a bar."""
        return dict(trainer.callback_metrics)

    def _print(self, line: str) -> None:
        if self._is_enabled:
            print(line, flush=True)


class NetworkLine(L.Callback):
    """Prints parameters and multiply-adds, where Lightning's table counts none without an example picture."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, SegmentationModule):
            return
        net, cost = pl_module.net, network_cost(pl_module.net)
        frozen = sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad) / 1e6
        note = f", {frozen:.1f} M of them frozen" if frozen else ""
        print(
            f"{type(net).__name__}: {cost['mega_parameters']:.1f} M parameters{note}; {cost['giga_macs']:.1f} G "
            f"multiply-adds for a picture of {COST_SIZE}x{COST_SIZE}.",
            flush=True,
        )
