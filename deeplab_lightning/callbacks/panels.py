"""Draw panels of image, truth and prediction while a network trains."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.drawing import panel, viewable
from deeplab_lightning.errors import UserError
from deeplab_lightning.labels import find_labels
from deeplab_lightning.models.modes import in_evaluation
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tracking.guard import guarded

Row = tuple[Any, Any, Any]  # (H, W, 3) image, (H, W) truth and (H, W) prediction, uint8


class PredictionPanels(L.Callback):
    """Draw the same validation images every few epochs.

    Writes `panels/epoch_<number>.png` to the run's folder, whatever the loggers are. W&B also gets the images with
    their masks, and TensorBoard and MLflow get the panel.

    Args:
        num_images: Number of images, evenly spread over the validation set; at least 1.
        every_n_epochs: Epochs between panels, at least 1; the last epoch is always drawn.

    Raises:
        ValueError: If an argument is less than 1.
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 5) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise UserError(f"num_images and every_n_epochs must be at least 1, got {num_images}, {every_n_epochs}.")
        self.num_images, self.every_n_epochs = num_images, every_n_epochs
        self._silent_loggers: set[str] = set()
        self._drawn: list[tuple[Sample, torch.Tensor]] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the images after the last batch, where Lightning's weight averaging has its weights in place."""
        datamodule = getattr(trainer, "datamodule", None)
        if batch_idx + 1 < trainer.num_val_batches[dataloader_idx] or not self._is_due(trainer):
            return
        if isinstance(datamodule, SegmentationDataModule) and isinstance(pl_module, SegmentationModule):
            self._drawn = [(sample, predict_one(pl_module, sample)) for sample in self._samples(datamodule)]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, write and log the panel of this epoch if one is due."""
        if not self._drawn or not isinstance(pl_module, SegmentationModule):
            return
        samples = [sample for sample, _ in self._drawn]
        rows = [_row(sample, prediction) for sample, prediction in self._drawn]
        self._drawn = []
        path = RunFolder(trainer.default_root_dir).panel(trainer.current_epoch + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        panel(rows, pl_module.classes).save(path)
        for logger in trainer.loggers:
            with guarded(trainer, logger):
                if isinstance(logger, WandbLogger):
                    _log_to_wandb(logger, rows, [sample.name for sample in samples], pl_module, trainer.global_step)
                else:
                    self._log_panel(logger, path, trainer.global_step)

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return False
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs
        return not trainer.fast_dev_run and (epoch % self.every_n_epochs == 0 or is_last)  # type: ignore[attr-defined]

    def _samples(self, datamodule: SegmentationDataModule) -> list[Sample]:
        view: Any = datamodule.val_dataloader().dataset  # type: ignore[union-attr]
        count = min(self.num_images, len(view))
        return [view[int(i)] for i in np.linspace(0, len(view) - 1, count).round()]

    def _log_panel(self, logger: Any, path: Path, step: int) -> None:
        """Log the panel, or print once where it is if the logger takes no images."""
        if hasattr(logger.experiment, "add_image"):
            from PIL import Image

            logger.experiment.add_image("val/panels", np.asarray(Image.open(path)), step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path), path.parent.name)
        elif type(logger).__name__ not in self._silent_loggers:
            self._silent_loggers.add(type(logger).__name__)
            rank_zero_info(f"{type(logger).__name__} shows no images; the panels are in {path.parent}.")


@torch.no_grad()
def predict_one(module: SegmentationModule, sample: Sample) -> torch.Tensor:
    """Predict one image with the current weights.

    Args:
        module: The module; its training mode is restored afterwards.
        sample: The image.

    Returns:
        (H, W) uint8 train ids on the CPU.
    """
    images = sample.image.as_subclass(torch.Tensor)[None].to(module.device)
    size = (images.shape[-2], images.shape[-1])
    with in_evaluation(module):
        labels = find_labels(module.door.logits(module, images), images, size, door=module.door)
    return labels[0].cpu()


def _log_to_wandb(
    logger: WandbLogger, rows: list[Row], names: list[str], module: SegmentationModule, step: int
) -> None:
    labels = {**dict(enumerate(module.classes.names)), IGNORE_INDEX: "void"}
    masks = [
        {
            "prediction": {"mask_data": prediction, "class_labels": labels},
            "ground_truth": {"mask_data": truth, "class_labels": labels},
        }
        for _, truth, prediction in rows
    ]
    logger.log_image("val/panels", [image for image, _, _ in rows], step=step, caption=names, masks=masks)


def _row(sample: Sample, prediction: torch.Tensor) -> Row:
    assert sample.mask is not None
    image = viewable(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
    return image, sample.mask.as_subclass(torch.Tensor).numpy(), prediction.numpy()
