"""Measure the whole loop on a GPU: images per second of training and validation, from files on."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from deeplab_lightning import DeepLabV3Plus, SegmentationDataModule, SegmentationModule
from deeplab_lightning.data import SyntheticLitterDataset, TrainTransforms

_QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
                          "enable_model_summary": False, "devices": 1, "precision": "bf16-mixed"}  # fmt: skip


class Clock(L.Callback):
    """Take the seconds of the last epoch, in which the workers run already."""

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = _now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = _now() - self._start


def loop_rates(
    folder: Path, size: Any, device: torch.device, arguments: dict[str, Any], step_rate: float
) -> dict[str, Any]:
    """Measure training by Lightning's loop with each number of reading processes.

    Args:
        folder: Folder for the images.
        size: The sizes.
        device: GPU or CPU.
        arguments: Arguments of the network.
        step_rate: Images per second of the bare training step.
    """
    found = {}
    for workers in size.workers:
        module, data, clock = *_parts(folder, size, arguments, workers), Clock()
        trainer = L.Trainer(**_QUIET, accelerator=_name(device), max_epochs=2, limit_val_batches=0, callbacks=[clock])
        trainer.fit(module, datamodule=data)
        rate = size.num_images // size.batch * size.batch / clock.seconds
        found[str(workers)] = {
            "images_per_second": round(rate, 1),
            "share_of_the_bare_step": round(rate / step_rate, 3),
        }
    return found


def validation_rate(
    folder: Path, size: Any, device: torch.device, arguments: dict[str, Any], inference_rate: float
) -> dict[str, float]:
    """Measure validation from files to mIoU, with the most reading processes.

    Args:
        folder: Folder with the images.
        size: The sizes.
        device: GPU or CPU.
        arguments: Arguments of the network.
        inference_rate: Images per second of the bare inference.
    """
    module, data = _parts(folder, size, arguments, size.workers[-1])
    trainer = L.Trainer(**_QUIET, accelerator=_name(device))
    trainer.validate(module, datamodule=data, verbose=False)
    start = _now()
    trainer.validate(module, datamodule=data, verbose=False)
    rate = size.num_images / (_now() - start)
    return {"images_per_second": round(rate, 1), "share_of_bare_inference": round(rate / inference_rate, 3)}


def _parts(
    folder: Path, size: Any, arguments: dict[str, Any], workers: int
) -> tuple[SegmentationModule, SegmentationDataModule]:
    """Build module and data."""
    dataset = SyntheticLitterDataset(str(folder / "images"), num_images=size.num_images, size=size.side)
    data = SegmentationDataModule(
        dataset, val_dataset=dataset, split="official", batch_size=size.batch, num_workers=workers,
        train_transforms=TrainTransforms(crop_size=size.side),
    )  # fmt: skip
    data.prepare_data()
    net = DeepLabV3Plus(data.num_classes, pretrained=False, **arguments)
    return SegmentationModule(net, classes=data.classes), data


def _name(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else "cpu"


def _now() -> float:
    """Return the time once the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
