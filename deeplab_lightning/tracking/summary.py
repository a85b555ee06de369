"""Log the summary, tables and files of a finished run to W&B."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.runs import RECORD_FILES, RunFolder, confusion_rows
from deeplab_lightning.tracking.guard import guarded
from deeplab_lightning.tracking.mode import WandbMode, choose_mode

CURVE_KEYS = ("epoch", "val/miou")
"""Keys of each point of the validation curve."""
MATRIX_KEY = "val/confusion_matrix"
"""Key of the table of pixel counts: one row per true class, starting with its name."""


class WandbSummary(L.Callback):
    """Log the results of a training to W&B in addition to its curves.

    At the start it logs the balance of the folds, and asks for the best and the last `val/miou` in the summary. At
    the end it logs the best figures, the IoU of each class and the cost to the summary, the per-class IoU and the
    confusion matrix as tables, and the files that `deeplab compare` needs to compare experiments image by image.
    It reads the files of `RunRecord`, so it must follow it in the list of callbacks. It ignores other loggers.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the balance of the folds."""
        datamodule = getattr(trainer, "datamodule", None)
        for logger in self._loggers(trainer):
            run = logger.experiment
            if run.id:  # none under WANDB_MODE=disabled
                own = {"project": run.project, "entity": run.entity or None, "id": run.id}
                RunFolder(trainer.default_root_dir).write_wandb_run(own)
            run.define_metric("val/miou", summary="max,last")
            if isinstance(datamodule, SegmentationDataModule) and datamodule.split == "folds":
                rows = datamodule.balance().rows(datamodule.foreground_names)
                _log_table(logger, "data/fold_balance", list(rows[0]), [list(row.values()) for row in rows])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the results of the best epoch."""
        loggers, folder = self._loggers(trainer), RunFolder(trainer.default_root_dir)
        result = folder.read_result() if loggers else None
        if result is None or not result["val"]:
            return
        iou = result["val"]["iou"]
        header, *counts = confusion_rows(folder.read_confusion(), list(iou))
        for logger in loggers:
            with guarded(trainer, logger):
                logger.experiment.summary.update(_figures(result))
                logger.log_image("val/confusion_figure", [str(folder.confusion_figure)])
                _log_table(logger, "val/iou_table", ["class", "iou"], [list(pair) for pair in iou.items()])
                _log_table(logger, MATRIX_KEY, header, counts)
                _save_files(logger, folder)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finish the W&B run; a second training in this process would otherwise continue it."""
        for logger in self._loggers(trainer):
            with guarded(trainer, logger):
                logger.experiment.finish()

    def _loggers(self, trainer: L.Trainer) -> list[WandbLogger]:
        is_recorded = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger) and is_recorded]


class WandbEvaluation(L.Callback):
    """Add the figures of `deeplab validate` and `deeplab test` to the summary of the training's W&B run.

    The keys are `evaluation/val/...` and `evaluation/test/...`: the training's own figures stay. Does nothing for a
    training that was not logged to W&B.

    Args:
        mode: Where W&B logs to, see `choose_mode`.
    """

    def __init__(self, mode: WandbMode) -> None:
        self.mode = mode

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the figures of the validation."""
        self._add(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the figures of the test."""
        self._add(trainer)

    def _add(self, trainer: L.Trainer) -> None:
        folder = RunFolder(trainer.default_root_dir)
        own = folder.read_wandb_run()
        if own is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (mode := choose_mode(self.mode)) == "disabled":
            return
        import wandb

        try:
            run = wandb.init(**own, mode=mode, resume="allow", dir=str(folder))
            run.summary.update({f"evaluation/{key}": float(value) for key, value in trainer.callback_metrics.items()})
            run.finish()
        except Exception as error:  # of any kind: the result is in the folder
            rank_zero_warn(f"W&B: the figures were not logged ({str(error).splitlines()[0]}). {folder} holds them.")


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """Return the known figures of a result by flat keys, as charts over many runs need them."""
    figures = {f"best/{name}": result["val"][name] for name in ("miou", "pixel_accuracy")}
    figures |= {f"best/iou/{name}": value for name, value in result["val"]["iou"].items()}
    figures |= {f"cost/{name}": value for name, value in result["cost"].items()}
    figures["cost/seconds"] = result["seconds"]
    return {name: value for name, value in figures.items() if value is not None}


def _save_files(logger: WandbLogger, folder: RunFolder) -> None:
    """Save copies of the record's files: W&B would link them, and a moved offline run would lose them."""
    own = Path(logger.experiment.dir)
    for name in RECORD_FILES:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, own / name)
            logger.experiment.save(str(own / name), base_path=str(own), policy="end")


def _log_table(logger: WandbLogger, key: str, columns: list[str], data: list[list[Any]]) -> None:
    """Log a table, or warn if it fails: W&B asks its server about tables, which may be gone by now."""
    try:
        logger.log_table(key, columns=columns, data=data)
    except Exception as error:  # of any kind: the training and its record do not depend on W&B
        rank_zero_warn(f"W&B: {key} was not logged ({str(error).splitlines()[0]}). The run's folder holds it.")
