"""What a finished run leaves in W&B beside its curves."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.runs import RECORD_FILES, RunFolder
from deeplab_lightning.tables import read_rows

CURVE_KEYS = ("epoch", "val/miou")
"""What a point of the validation curve holds."""
MATRIX_KEY = "val/confusion_matrix"
"""The table of counts: a row per class of the truth, its name first."""


class WandbSummary(L.Callback):
    """The balance of the folds, and best and last `val/miou` in the summary.

    At the end the best figures, those of each class and what the training cost in the summary, the per-class IoU
    table, the confusion matrix, and the files that compare experiments picture by picture.
    Reads what `RunRecord` wrote, so it must stand after it. Does nothing with other loggers.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        for logger in self._loggers(trainer):
            logger.experiment.define_metric("val/miou", summary="max,last")
            if isinstance(datamodule, SegmentationDataModule) and datamodule.split == "folds":
                rows = datamodule.balance().rows(datamodule.foreground_names)
                _log_table(logger, "data/fold_balance", list(rows[0]), [list(row.values()) for row in rows])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers, folder = self._loggers(trainer), RunFolder(trainer.default_root_dir)
        result = folder.read_result() if loggers else None
        if result is None or not result["val"]:
            return
        rows = read_rows(folder.confusion)
        for logger in loggers:
            logger.experiment.summary.update(_figures(result))
            logger.log_image("val/confusion_picture", [str(folder.confusion_figure)])
            _log_table(logger, "val/iou_table", ["class", "iou"], [list(p) for p in result["val"]["iou"].items()])
            counts = [[row[0], *map(int, row[1:])] for row in rows[1:]]
            _log_table(logger, MATRIX_KEY, rows[0], counts)
            _save_files(logger, folder)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Else a second training in this process would go on in the first one's run.
        for logger in self._loggers(trainer):
            logger.experiment.finish()

    def _loggers(self, trainer: L.Trainer) -> list[WandbLogger]:
        is_recorded = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger) and is_recorded]


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """Flat, as charts of many runs need them; without what is unknown."""
    figures = {f"best/{name}": result["val"][name] for name in ("miou", "pixel_accuracy")}
    figures |= {f"best/iou/{name}": value for name, value in result["val"]["iou"].items()}
    figures |= {f"cost/{name}": value for name, value in result["cost"].items()}
    figures["cost/seconds"] = result["seconds"]
    return {name: value for name, value in figures.items() if value is not None}


def _save_files(logger: WandbLogger, folder: RunFolder) -> None:
    """Copy the record's files: W&B would link them, and an offline run that is moved would lose them."""
    own = Path(logger.experiment.dir)
    for name in RECORD_FILES:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, own / name)
            logger.experiment.save(str(own / name), base_path=str(own), policy="end")


def _log_table(logger: WandbLogger, key: str, columns: list[str], data: list[list[Any]]) -> None:
    """Log a table; W&B asks its server about it, which may be gone by now."""
    try:
        logger.log_table(key, columns=columns, data=data)
    except Exception as error:  # whatever its client raises: the training and its record do not depend on it
        rank_zero_warn(f"W&B: {key} was not logged ({str(error).splitlines()[0]}). The run's folder holds it.")
