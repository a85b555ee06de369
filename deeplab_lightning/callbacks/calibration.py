"""Fit the temperature of what an evaluation computes, on the images that it evaluates."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.files import write_text
from deeplab_lightning.inference.calibration import PixelCollector, PixelSample, calibrated
from deeplab_lightning.inference.calibration_file import Averaged, calibration_document
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.tables import table_console


class FitTemperature(L.Callback):
    """Fit a temperature on the evaluated images, and write it for `deeplab predict --temperature`.

    The probabilities are those that are evaluated: of one network, or the mean of several and of their views. What the
    temperature brings is measured on each half of the images at the temperature of the other half.

    Args:
        path: The JSON file to write.
        averaged: What is averaged.

    Raises:
        UserError: If the file's name does not end in `.json`.
    """

    def __init__(self, path: str, averaged: Averaged) -> None:
        if Path(path).suffix.lower() != ".json":
            raise UserError(f"--calibration must be a file to write that ends in .json, got {path}.")
        self.path, self.averaged = Path(path), averaged

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to collect pixels."""
        assert isinstance(pl_module, SegmentationModule)
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        pl_module.pixels = PixelCollector(len(loader.dataset), pl_module.net.num_classes, seed=trainer.global_rank)

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit the temperature of the pixels of all processes, write it and print what it brings.

        Raises:
            DataError: If fewer than two images have labels.
        """
        assert isinstance(pl_module, SegmentationModule)
        assert pl_module.pixels is not None
        samples = _of_all_processes(pl_module.pixels.samples)
        pl_module.pixels = None
        if not trainer.is_global_zero:
            return
        own = [samples[name] for name in sorted(samples) if len(samples[name].labels)]
        if len(own) < 2:
            raise DataError(f"--calibration {self.path}: a temperature needs at least two images with labels.")
        result = calibrated([PixelSample.joined(own[::2]), PixelSample.joined(own[1::2])])
        num_pixels = sum(len(part.labels) for part in own)
        document = calibration_document(
            result, pl_module.classes.names, self.averaged, num_images=len(samples), num_pixels=num_pixels
        )
        write_text(self.path, json.dumps(document, indent=1) + "\n")
        text = (
            f"Temperature {result.temperature:.3f} of {self.averaged}; calibration error {result.before.ece:.3f}, and "
            f"{result.after.ece:.3f} at the temperature of the other half of the images. Written to {self.path}"
        )
        table_console().print(text, soft_wrap=True, markup=False, highlight=False)

    on_test_end = on_validation_end


def _of_all_processes(samples: dict[str, PixelSample]) -> dict[str, PixelSample]:
    """Return the samples of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return samples
    gathered: list[dict[str, PixelSample]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, samples)
    return {name: sample for own in gathered for name, sample in own.items()}
