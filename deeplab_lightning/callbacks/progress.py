"""Print the network's cost, and one line per epoch where the output is no terminal."""

import re
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from deeplab_lightning.callbacks.run_record import RunRecord
from deeplab_lightning.models.cost import COST_SIZE, network_cost
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.tables import shown
from deeplab_lightning.timm_schedule import TimmSchedule


class EpochLines(ProgressBar):
    """Print loss, validation mIoU and time after each epoch.

    With `RunRecord`, the figures are those of `metrics.csv`: the mean loss over the steps of all processes, and the
    epoch's best validation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._start = 0.0

    def disable(self) -> None:
        """Stop printing; the trainer calls it on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Start printing again."""
        self._is_enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch."""
        records = [callback for callback in trainer.callbacks if isinstance(callback, RunRecord)]  # type: ignore[attr-defined]
        figures = records[0].rows[-1] if records else self.get_metrics(trainer, pl_module)
        parts = [
            f"{name} {shown(float(figures[name]), missing='nan')}"
            for name in ("train/loss", "val/loss", "val/miou")
            if name in figures
        ]
        self._print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}  "
            f"{figures.get('seconds', time.monotonic() - self._start):.1f} s"
        )

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return all logged values, not only those meant for a progress bar."""
        return dict(trainer.callback_metrics)

    def _print(self, line: str) -> None:
        if self._is_enabled:
            print(line, flush=True)


class NetworkLine(L.Callback):
    """Print the size of the network, the ImageNet weights that it starts from, and the learning rates.

    The size is its parameters and multiply-adds.

    It replaces Lightning's summary, which counts no multiply-adds without an example input.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the lines on the first process."""
        if not trainer.is_global_zero or not isinstance(pl_module, SegmentationModule):
            return
        net, cost = pl_module.net, network_cost(pl_module.net)
        frozen = sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad) / 1e6
        note = f", {frozen:.1f} M of them frozen" if frozen else ""
        start = f" ImageNet weights: {net.backbone.imagenet_weights}." if net.backbone.imagenet_weights else ""
        print(
            f"{type(net).__name__}: {cost['mega_parameters']:.1f} M parameters{note}; {cost['giga_macs']:.1f} G "
            f"multiply-adds for an image of {COST_SIZE}x{COST_SIZE}.{start}",
            flush=True,
        )
        for optimizer in trainer.optimizers:
            schedules = [_describe_schedule(config) for config in trainer.lr_scheduler_configs]
            print(f"{_describe_rates(optimizer)}; {', '.join(schedules) or 'constant'}.", flush=True)


def _describe_rates(optimizer: Optimizer) -> str:
    """Describe the rates of the parameter groups before a schedule changes them; OneCycleLR's are its highest."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = str(group["name"])
        label = "head biases" if name == "head_bias" else name.partition("_")[0]
        if stage := re.match(r"backbone_stage_\d+", name):
            label = stage[0].replace("_", " ")
        rates.setdefault(label, group.get("max_lr", group.get("initial_lr", group["lr"])))
    if rates.get("head") == rates.get("head biases"):
        rates.pop("head biases", None)
    listed = ", ".join(f"{label} {rate:.4g}" for label, rate in rates.items())
    return f"{type(optimizer).__name__} with learning rates {listed}"


def _describe_schedule(config: LRSchedulerConfig) -> str:
    schedule = config.scheduler.schedule if isinstance(config.scheduler, TimmSchedule) else config.scheduler
    return f"{type(schedule).__name__} per {config.interval}"
