"""Record the folds, metrics, confusion matrices and result of a run in its folder."""

import math
import platform
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import deeplab_lightning
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.drawing import draw_confusion_matrix
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.models.cost import network_cost
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import or_null, shown, table_console

_FIGURES = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "dice", "loss")


class _Validation(NamedTuple):
    """Hold the result of one validation.

    Attributes:
        figures: Logged values by key.
        matrix: (K, K) counts; None for a module without a confusion matrix.
        images: Name and (K, K) counts of each image.
    """

    figures: dict[str, float]
    matrix: Tensor | None
    images: list[tuple[str, Tensor]]


class RunRecord(L.Callback):
    """Record a training in its folder after every epoch, so that a crash loses at most the current one.

    `folds.csv` and `balance.csv` are written at the start. `metrics.csv` has one row per epoch and is rewritten
    atomically; a resumed training keeps the rows before the epoch it resumes at. If an epoch validates several times,
    its row holds the best validation, as `best.ckpt` does. `result.json` is written last: if it exists, the training
    is finished. Its `val` block, `confusion_matrix.csv` and `image_matrices.npz` (the confusion matrix of each image)
    belong to the epoch with the best `val/miou`, whose weights are in `checkpoints/best.ckpt`. Later validations and
    tests write `result_validate.json` and `result_test.json`, numbered if they exist.

    Args:
        seed: Seed of the training, written to `result.json`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.rows: list[dict[str, float]] = []
        self._validation: _Validation | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folds, and read the rows of the training that is resumed."""
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(datamodule, SegmentationDataModule) and not _is_dry_run(trainer):
            RunFolder(trainer.default_root_dir).write_splits(datamodule.folds_csv(), datamodule.balance_csv())
        # If all epochs are done and only the result is missing, no epoch starts and these rows are complete.
        self.rows = RunFolder(trainer.default_root_dir).read_metrics() if trainer.ckpt_path else []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows of the epochs that will be repeated."""
        # In on_fit_start, a resumed training does not know its epoch yet.
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the sum of the losses."""
        self._start, self._validation = time.monotonic(), None
        self._loss_sum, self._num_batches = torch.zeros((), device=pl_module.device), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of the batch, without waiting for the device."""
        self._loss_sum += outputs["loss"].detach()
        self._num_batches += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the result if it is the epoch's best; write it if this is `deeplab validate`."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._record_evaluation(trainer, pl_module, "val")
        elif not trainer.sanity_checking:
            figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            if self._validation and best_row([self._validation.figures, figures], trainer) is self._validation.figures:
                return  # on all processes alike, since they have the same figures
            if isinstance(pl_module, SegmentationModule):
                images = _gather(list(pl_module.per_image))
                self._validation = _Validation(figures, pl_module.last_matrix, images)
            else:
                self._validation = _Validation(figures, None, [])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the result of the test."""
        self._record_evaluation(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row of the epoch, and the confusion matrices if it is the best so far."""
        row = {
            "epoch": float(trainer.current_epoch),
            "step": float(trainer.global_step),
            "seconds": time.monotonic() - self._start,
            "train/loss": float(self._loss_sum / max(self._num_batches, 1)),
        }
        validation = self._validation
        if validation:
            row |= validation.figures
        self.rows.append(row)
        if not trainer.is_global_zero or _is_dry_run(trainer):
            return
        folder = RunFolder(trainer.default_root_dir)
        folder.write_metrics(self.rows)
        if validation and validation.matrix is not None and best_row(self.rows, trainer) is row:
            assert isinstance(pl_module, SegmentationModule)
            folder.write_confusion(validation.matrix, pl_module.classes.names)
            PerImageConfusion.of(validation.images).write(folder.images)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the result of the training and print it."""
        if not trainer.is_global_zero or _is_dry_run(trainer) or not isinstance(pl_module, SegmentationModule):
            return
        folder = RunFolder(trainer.default_root_dir)
        best = best_row(self.rows, trainer)
        checkpoints = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
        result = {
            **_describe_data(trainer),
            "seed": self.seed,
            "epochs": trainer.current_epoch,
            "seconds": round(sum(row["seconds"] for row in self.rows), 1),
            "checkpoint": next(filter(None, checkpoints), None),
            "cost": network_cost(pl_module.net),
            "val": None if best is None else _figures(best, "val", pl_module),
            "versions": _versions(),
        }
        if folder.confusion.is_file():
            draw_confusion_matrix(folder.read_confusion(), pl_module.classes.names, folder.confusion_figure)
        folder.write_result(result)
        if best is not None:
            _print_table(f"Validation of {folder}, epoch {int(best['epoch']) + 1}", result["val"], folder)

    def _record_evaluation(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or _is_dry_run(trainer) or not isinstance(pl_module, SegmentationModule):
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        figures = _figures(metrics, stage, pl_module)
        result = {
            **_describe_data(trainer),
            "checkpoint": str(trainer.ckpt_path or ""),
            stage: figures,
            "versions": _versions(),
        }
        path = RunFolder(trainer.default_root_dir).write_evaluation(result, stage)
        _print_table(f"{'Validation' if stage == 'val' else 'Test'} of {trainer.ckpt_path}", figures, path)


def _gather(images: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return the images of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return images
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, images)
    return [image for part in parts for image in part]


def best_row(rows: list[dict[str, float]], trainer: L.Trainer | None = None) -> dict[str, float] | None:
    """Find the first epoch with the best monitored figure, whose weights are in `best.ckpt`.

    Args:
        rows: Logged values by key, one mapping per epoch.
        trainer: Trainer whose checkpoint callback names the figure; the highest `val/miou` is the best if None.

    Returns:
        The row, or None if no row has both the figure and `val/miou`.
    """
    callbacks = trainer.checkpoint_callbacks if trainer else []
    monitored = [(c.monitor, c.mode) for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    key, mode = monitored[0] if monitored else ("val/miou", "max")
    scored = [row for row in rows if "val/miou" in row and not math.isnan(row.get(key, math.nan))]
    if not scored:
        return None
    return max(scored, key=lambda row: row[key]) if mode == "max" else min(scored, key=lambda row: row[key])


def _is_dry_run(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _describe_data(trainer: L.Trainer) -> dict[str, Any]:
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, SegmentationDataModule) or datamodule.dataset is None:
        return {"dataset": None, "num_images": None, "fold": None, "n_folds": None}
    is_folded = datamodule.split == "folds"
    return {
        "dataset": datamodule.dataset.source,
        "num_images": len(datamodule.dataset) + (len(datamodule.val_dataset or ()) if not is_folded else 0),
        "fold": datamodule.fold if is_folded else None,
        "n_folds": datamodule.n_folds if is_folded else None,
    }


def _figures(metrics: Mapping[str, float], stage: str, module: SegmentationModule) -> dict[str, Any]:
    figures: dict[str, Any] = {name: or_null(metrics.get(f"{stage}/{name}", math.nan)) for name in _FIGURES}
    names = module.classes.names
    if f"{stage}/boundary_iou" in metrics:
        figures["boundary_iou"] = or_null(metrics[f"{stage}/boundary_iou"])
    figures["iou"] = {name: or_null(metrics.get(f"{stage}/iou/{name}", math.nan)) for name in names}
    return figures


def _versions() -> dict[str, str]:
    return {
        "deeplab_lightning": deeplab_lightning.__version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }


def _print_table(title: str, figures: Mapping[str, Any], path: object) -> None:
    console = table_console()
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)  # may be wider than the table
    table = Table()
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, value in figures["iou"].items():
        table.add_row(escape(name), shown(value))
    table.add_section()
    table.add_row("mIoU", shown(figures["miou"]))
    if "boundary_iou" in figures:
        table.add_row("boundary IoU", shown(figures["boundary_iou"]))
    table.add_row("pixel accuracy", shown(figures["pixel_accuracy"]))
    console.print(table)
    console.print(f"Written to {path}", soft_wrap=True, markup=False)
