"""What a finished run leaves in W&B beside its curves."""

import csv
import json
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.callbacks.run_record import run_folder
from deeplab_lightning.data.datamodule import SegmentationDataModule


class WandbSummary(L.Callback):
    """The balance of the folds, and best and last `val/miou` in the summary.

    At the end the per-class IoU table and the confusion matrix.
    Reads what `RunRecord` wrote, so it must stand after it. Does nothing with other loggers.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        for logger in self._loggers(trainer):
            logger.experiment.define_metric("val/miou", summary="max,last")
            if isinstance(datamodule, SegmentationDataModule) and datamodule.split == "folds":
                rows = datamodule.balance().rows(datamodule.foreground)
                _log_table(logger, "data/fold_balance", list(rows[0]), [list(row.values()) for row in rows])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers, folder = self._loggers(trainer), run_folder(trainer)
        if not loggers or not (folder / "result.json").is_file():
            return
        result = json.loads((folder / "result.json").read_text())
        if not result["val"]:
            return
        with (folder / "confusion_matrix.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        for logger in loggers:
            for name in ("miou", "pixel_accuracy"):
                logger.experiment.summary[f"best/{name}"] = result["val"][name]
            logger.log_image("val/confusion_picture", [str(folder / "confusion_matrix.png")])
            _log_table(logger, "val/iou_table", ["class", "iou"], [list(p) for p in result["val"]["iou"].items()])
            counts = [[row[0], *map(int, row[1:])] for row in rows[1:]]
            _log_table(logger, "val/confusion_matrix", rows[0], counts)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Else a second training in this process would go on in the first one's run.
        for logger in self._loggers(trainer):
            logger.experiment.finish()

    def _loggers(self, trainer: L.Trainer) -> list[WandbLogger]:
        is_recorded = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger) and is_recorded]


def _log_table(logger: WandbLogger, key: str, columns: list[str], data: list[list[Any]]) -> None:
    """Log a table; W&B asks its server about it, which may be gone by now."""
    try:
        logger.log_table(key, columns=columns, data=data)
    except Exception as error:  # whatever its client raises: the training and its record do not depend on it
        rank_zero_warn(f"W&B: {key} was not logged ({str(error).splitlines()[0]}). The run's folder holds it.")
