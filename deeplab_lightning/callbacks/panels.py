"""Panels of picture, truth and prediction while training."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.drawing import panel
from deeplab_lightning.errors import UserError
from deeplab_lightning.labels import find_labels
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder


class PredictionPanels(L.Callback):
    """Draws the same validation pictures every few epochs.

    Writes `panels/epoch_<number>.png` into the run's folder with any logger; W&B also gets the pictures
    with their masks, TensorBoard the panel.

    Args:
        num_images: Number of pictures, evenly spread over the validation set.
        every_n_epochs: Epochs between panels; the last epoch is always drawn.
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 5) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise UserError(f"num_images and every_n_epochs must be positive, got {num_images}, {every_n_epochs}.")
        self.num_images, self.every_n_epochs = num_images, every_n_epochs
        self._silent_loggers: set[str] = set()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if not isinstance(datamodule, SegmentationDataModule) or not isinstance(pl_module, SegmentationModule):
            return
        epoch = trainer.current_epoch + 1
        if trainer.fast_dev_run or (epoch % self.every_n_epochs and epoch != trainer.max_epochs):  # type: ignore[attr-defined]
            return
        samples = self._samples(datamodule)
        rows = [(sample, predict_one(pl_module, sample)) for sample in samples]
        picture = panel([_pixels(sample, prediction) for sample, prediction in rows], pl_module.classes)
        path = RunFolder(trainer.default_root_dir).panels / f"epoch_{epoch:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        for logger in trainer.loggers:
            self._log(logger, rows, path, pl_module, trainer.global_step)

    def _samples(self, datamodule: SegmentationDataModule) -> list[Sample]:
        view: Any = datamodule.val_dataloader().dataset  # type: ignore[union-attr]
        count = min(self.num_images, len(view))
        return [view[int(i)] for i in np.linspace(0, len(view) - 1, count).round()]

    def _log(
        self,
        logger: Any,
        rows: list[tuple[Sample, torch.Tensor]],
        path: Path,
        module: SegmentationModule,
        step: int,
    ) -> None:
        if isinstance(logger, WandbLogger):
            labels = {**dict(enumerate(module.classes.names)), IGNORE_INDEX: "void"}
            pictures = [_pixels(sample, prediction) for sample, prediction in rows]
            logger.log_image(
                "val/panels",
                [image for image, _, _ in pictures],
                step=step,
                caption=[sample.name for sample, _ in rows],
                masks=[
                    {
                        "prediction": {"mask_data": prediction, "class_labels": labels},
                        "ground_truth": {"mask_data": truth, "class_labels": labels},
                    }
                    for _, truth, prediction in pictures
                ],
            )
        elif hasattr(logger.experiment, "add_image"):
            from PIL import Image

            logger.experiment.add_image("val/panels", np.asarray(Image.open(path)), step, dataformats="HWC")
        elif type(logger).__name__ not in self._silent_loggers:
            self._silent_loggers.add(type(logger).__name__)
            rank_zero_info(f"{type(logger).__name__} shows no pictures; the panels are in {path.parent}.")


@torch.no_grad()
def predict_one(module: SegmentationModule, sample: Sample) -> torch.Tensor:
    """(H, W) uint8 train ids of one picture, by the module as it stands."""
    was_training = module.training
    module.eval()
    images = sample.image.as_subclass(torch.Tensor)[None].to(module.device)
    size = (images.shape[-2], images.shape[-1])
    labels = find_labels(module.door.logits(module, images), images, size, door=module.door)
    module.train(was_training)
    return labels[0].cpu()


def _pixels(sample: Sample, prediction: torch.Tensor) -> tuple[Any, Any, Any]:
    assert sample.mask is not None
    image = sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy()
    return image, sample.mask.as_subclass(torch.Tensor).numpy(), prediction.numpy()
