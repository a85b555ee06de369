"""Record the folds, metrics, confusion matrices and result of a run in its folder."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from deeplab_lightning.callbacks.best_epoch import best_checkpoint, best_row, monitored_figure
from deeplab_lightning.callbacks.epoch_progress import EpochProgress
from deeplab_lightning.callbacks.provenance import describe_data, describe_program, versions
from deeplab_lightning.callbacks.search_gate import SearchGate
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.drawing import draw_confusion_matrix
from deeplab_lightning.inference import Ensemble
from deeplab_lightning.inference.engines import EngineNet
from deeplab_lightning.inference.exported import ExportedNet
from deeplab_lightning.inference.tiles import Tiled
from deeplab_lightning.metrics.iou import FOREGROUND_KEYS
from deeplab_lightning.metrics.per_image import Kind
from deeplab_lightning.models.cost import network_cost
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import or_null, shown, table_console

_FIGURES = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "dice", "loss")
_LATER_FIGURES = ("boundary_iou", "ece")  # of `validate` and `test`, which training leaves out


class RunRecord(L.Callback):
    """Record a training in its folder after every epoch, so that a crash loses at most the current one.

    `folds.csv` and `balance.csv` are written at the start. `metrics.csv` has one row per epoch and is rewritten
    atomically; a resumed training keeps the rows before the epoch it resumes at, which the checkpoint holds. If an
    epoch validates several times, its row holds the best validation, as `best.ckpt` does. `result.json` is written
    last: if it exists, the training is finished. Its `val` block, `confusion_matrix.csv` and `image_matrices.npz` (the
    confusion matrix of each image) belong to the epoch with the best `val/miou`, whose weights are in
    `checkpoints/best.ckpt`; its `last` block and `last_image_matrices.npz` to the last epoch, which was not chosen on
    the images that it is reported on. `last_image_details.npz` holds contours and objects by size, which are counted
    where a validation may be the last (see `may_be_last`). Later validations and tests write `result_validate.json` and
    `result_test.json`, numbered if they exist.

    Args:
        seed: Seed of the training, written to `result.json`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.rows: list[dict[str, float]] = []
        """One mapping of logged values per finished epoch."""
        self._progress = EpochProgress()
        self._saved_rows: list[dict[str, float]] | None = None  # of the checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the finished epochs and what this epoch has trained so far, for a checkpoint."""
        return {"rows": [dict(row) for row in self.rows], **self._progress.to_dict()}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the mean over all processes of what each has trained so far, since each goes on with it."""
        own = checkpoint.get("callbacks", {}).get(self.state_key)
        if own and trainer.world_size > 1 and sys.exc_info()[0] is None:  # others take part in no error of one process
            mean = trainer.strategy.reduce(self._progress.loss_sum.to(pl_module.device), reduce_op="mean")
            own["loss_sum"] = float(mean)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what the epoch had trained; checkpoints of earlier versions hold no rows, or nothing."""
        self._saved_rows = state_dict.get("rows")
        self._progress = EpochProgress(**{key: value for key, value in state_dict.items() if key != "rows"})

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folds, and read the rows of the training that is resumed."""
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(datamodule, SegmentationDataModule) and not _is_dry_run(trainer):
            RunFolder(trainer.default_root_dir).write_splits(datamodule.folds_csv(), datamodule.balance_csv())
        # If all epochs are done and only the result is missing, no epoch starts and these rows are complete.
        self.rows = self._earlier_rows(trainer) if trainer.ckpt_path else []

    def _earlier_rows(self, trainer: L.Trainer) -> list[dict[str, float]]:
        """Return the rows of the epochs before, from the run's own checkpoint or else from `metrics.csv`."""
        folder, own = RunFolder(trainer.default_root_dir), RunFolder.of_checkpoint(str(trainer.ckpt_path))
        is_own = own is not None and own.path == folder.path.absolute()
        return self._saved_rows if is_own and self._saved_rows is not None else folder.read_metrics()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows of the epochs that will be repeated."""
        # In on_fit_start, a resumed training does not know its epoch yet.
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the sum of the losses; a training that goes on has no result until its new end."""
        self._progress = EpochProgress(trainer.current_epoch)
        if trainer.is_global_zero and not _is_dry_run(trainer):
            RunFolder(trainer.default_root_dir).result.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of the step, without waiting for the device."""
        if self._progress.epoch != trainer.current_epoch:  # resumed after the last step of an epoch without validation
            self._progress = EpochProgress(trainer.current_epoch)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs  # None where a step was skipped
        if not isinstance(loss, Tensor):
            return
        is_divided = pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1
        self._progress.add(loss.detach() * trainer.accumulate_grad_batches if is_divided else loss.detach())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the confusion matrices if they are the best so far, or the result if this is `deeplab validate`."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._record_evaluation(trainer, pl_module, "val")
        elif not trainer.sanity_checking:
            module = pl_module if isinstance(pl_module, SegmentationModule) else None
            images = None if module is None else _gather(module.per_image.collect())
            folder = RunFolder(trainer.default_root_dir)
            is_written = trainer.is_global_zero and not _is_dry_run(trainer)
            details = None if module is None or module.details is None else _gather(module.details.collect())
            if images is not None and is_written:
                folder.write_last(images, details)
            key, _ = monitored_figure(trainer)
            figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") or k == key}
            figures["epoch"] = float(trainer.current_epoch)
            earlier = self._progress.figures
            if earlier and best_row([earlier, figures], trainer) is earlier:
                return  # on all processes alike, since they have the same figures
            self._progress.figures = figures
            is_best = best_row([*self.rows, figures], trainer) is figures
            if module is not None and images is not None and is_best and is_written:
                folder.write_confusion(module.last_matrix, module.classes.names)
                images.write(folder.images)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the result of the test."""
        self._record_evaluation(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row of the epoch; its loss is the mean over all steps of all processes."""
        row = {
            "epoch": float(trainer.current_epoch),
            "step": float(trainer.global_step),
            "seconds": self._progress.seconds,
            "train/loss": float(trainer.strategy.reduce(self._progress.mean_loss.to(pl_module.device))),
            **(self._progress.figures or {}),
        }
        self.rows.append(row)
        pl_module.log("train/loss_epoch", row["train/loss"])
        if trainer.is_global_zero and not _is_dry_run(trainer):
            RunFolder(trainer.default_root_dir).write_metrics(self.rows)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the result of the training and print it."""
        if not trainer.is_global_zero or _is_dry_run(trainer) or not isinstance(pl_module, SegmentationModule):
            return
        folder = RunFolder(trainer.default_root_dir)
        best = best_row(self.rows, trainer)
        result = {
            **describe_data(trainer),
            "seed": self.seed,
            "epochs": trainer.current_epoch,
            "max_epochs": trainer.max_epochs,
            **_stopped_by(trainer),
            "seconds": round(sum(row["seconds"] for row in self.rows), 1),
            "checkpoint": best_checkpoint(best, trainer),
            "cost": _cost(pl_module.net),
            "val": None if best is None else _figures(best, "val", pl_module),
            "best_epoch": None if best is None else int(best["epoch"]),
            "last": _figures(self.rows[-1], "val", pl_module) if self.rows and "val/miou" in self.rows[-1] else None,
            "versions": versions(),
            **describe_program(),
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
        engines = [part for part in pl_module.net.modules() if isinstance(part, EngineNet)]
        exported = [part.file.path for part in pl_module.net.modules() if isinstance(part, ExportedNet)]
        source = trainer.ckpt_path or next(iter(exported), "")
        max_size: int | None = pl_module.net.preprocess.max_size
        result = {
            **describe_data(trainer),
            "checkpoint": str(source),
            **({} if max_size is None else {"max_size": max_size}),
            **({"averaged": pl_module.net.describe()} if isinstance(pl_module.net, Ensemble | Tiled) else {}),
            **({"engine": engines[0].describe()} if engines else {}),
            **({"min_area": kept.describe()} if stage == "test" and (kept := pl_module.region_filter) else {}),
            stage: figures,
            "versions": versions(),
        }
        path = RunFolder(trainer.default_root_dir).write_evaluation(result, stage)
        net = pl_module.net.net if isinstance(pl_module.net, Tiled) else pl_module.net
        others = len(net.nets) - 1 if isinstance(net, Ensemble) else 0
        averaged = f", averaged with {others} more" if others else ""
        shrunk = "" if max_size is None else f", images of at most {max_size} pixels a side"
        _print_table(f"{'Validation' if stage == 'val' else 'Test'} of {source}{averaged}{shrunk}", figures, path)


def _cost(net: nn.Module) -> dict[str, float | None]:
    """Count the cost of a network; its multiply-adds are None where hooks of a profiler or of the user forbid it."""
    try:
        return dict(network_cost(net))
    except Exception as error:  # the result of a training is worth more than its cost
        rank_zero_warn(
            f"the multiply-adds cannot be counted ({(str(error).splitlines() or [type(error).__name__])[0]})."
        )
        return {"mega_parameters": round(sum(p.numel() for p in net.parameters()) / 1e6, 3), "giga_macs": None}


def _stopped_by(trainer: L.Trainer) -> dict[str, str]:
    """Return the name of the search that stopped a training; empty if none did."""
    gates = (part for part in trainer.callbacks if isinstance(part, SearchGate))  # type: ignore[attr-defined]
    found = [gate.stopped_by for gate in gates if gate.stopped_by is not None]
    return {"stopped_by": found[0]} if found else {}


def _gather(images: Kind) -> Kind:
    """Return the images of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return images
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, images)
    return type(images).joined(parts)


def _is_dry_run(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _figures(metrics: Mapping[str, float], stage: str, module: SegmentationModule) -> dict[str, Any]:
    figures: dict[str, Any] = {name: or_null(metrics.get(f"{stage}/{name}", math.nan)) for name in _FIGURES}
    names = module.classes.names
    later = {name: metrics[key] for name in _LATER_FIGURES if (key := f"{stage}/{name}") in metrics}
    figures |= {name: or_null(value) for name, value in later.items()}
    figures["iou"] = {name: or_null(metrics.get(f"{stage}/iou/{name}", math.nan)) for name in names}
    if len(names) == 2:
        figures["foreground"] = {
            key: or_null(metrics.get(f"{stage}/{key}/{names[1]}", math.nan)) for key in FOREGROUND_KEYS
        }
    return figures


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
    for key, value in figures.get("foreground", {}).items():
        table.add_row(escape(f"{key} of {list(figures['iou'])[1]}"), shown(value))
    if "boundary_iou" in figures:
        table.add_row("boundary IoU", shown(figures["boundary_iou"]))
    table.add_row("pixel accuracy", shown(figures["pixel_accuracy"]))
    if "ece" in figures:
        table.add_row("calibration error", shown(figures["ece"]))
    console.print(table)
    console.print(f"Written to {path}", soft_wrap=True, markup=False)
