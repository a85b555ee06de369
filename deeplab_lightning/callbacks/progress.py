"""Progress where the output is a file: one line per epoch instead of a moving bar."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar


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
        shown = [
            f"{name} {_short(figures[name])}" for name in ("train/loss", "val/loss", "val/miou") if name in figures
        ]
        self._print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(shown)}  "
            f"{time.monotonic() - self._start:.1f} s"
        )

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """All logged figures, not only those meant for a bar."""
        return dict(trainer.callback_metrics)

    def _print(self, line: str) -> None:
        if self._is_enabled:
            print(line, flush=True)


def _short(value: Any) -> str:
    return f"{float(value):.3f}"
