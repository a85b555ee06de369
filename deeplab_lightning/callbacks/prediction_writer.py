"""Write predictions as masks in the class palette and as overlays."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from deeplab_lightning.data.batch import Unreadable
from deeplab_lightning.drawing import overlay, palette_image, viewable
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import unused_path, write_atomically
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import PredictionFolder, RunFolder, prediction_stems
from deeplab_lightning.tables import table_console

_JPEG_QUALITY = 92
_JPEG_SIDE = 65_500  # pixels; libjpeg takes no more


class PredictionWriter(L.Callback):
    """Write a palette PNG and an overlay of each predicted image, at the image's own size.

    The PNG's values are train ids and its palette holds the class colours. Subfolders of the images are kept, and
    `predictions.csv` names the files of each image.

    Args:
        output_dir: Folder of the files; `predictions` in the run's folder if null, numbered if it exists.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the folder, the same on all processes, and the file name of each image."""
        default = RunFolder(trainer.default_root_dir).predictions
        chosen = Path(self.output_dir) if self.output_dir else unused_path(default)
        self._files = PredictionFolder(trainer.strategy.broadcast(chosen))
        loader: Any = trainer.predict_dataloaders
        dataset = loader.dataset.dataset
        self._dataset, self._index_of = dataset, {name: index for index, name in enumerate(dataset.names)}
        self._stems = prediction_stems(dataset.names)
        if trainer.is_global_zero:
            self._files.begin(self._stems)
        self._unreadable: list[Unreadable] = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the files of each image of the batch, and remember the images that cannot be read."""
        assert isinstance(pl_module, SegmentationModule)
        self._unreadable += [item for item in batch if isinstance(item, Unreadable)]
        for name, prediction in outputs:
            mask, stem = prediction.numpy(), self._stems[name]
            image = self._dataset.read_image(self._index_of[name]).permute(1, 2, 0).numpy()
            drawn = _for_jpeg(Image.fromarray(overlay(viewable(image), mask, pl_module.classes)))
            del image
            write_atomically(self._files.overlay(stem), partial(drawn.save, format="JPEG", quality=_JPEG_QUALITY))
            # The mask is written last, so that it exists only if both files of its image are complete.
            palette = palette_image(mask, pl_module.classes)
            write_atomically(self._files.mask(stem), partial(palette.save, format="PNG"))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the number of images and the folders.

        Raises:
            DataError: If images could not be read; all others are written.
        """
        unreadable = _of_all_processes(self._unreadable)
        if trainer.is_global_zero:
            console = table_console()
            console.print(f"{len(self._stems) - len(unreadable)} images predicted.")
            console.print(f"masks:    {self._files.masks}", markup=False, soft_wrap=True)
            console.print(f"overlays: {self._files.overlays}", markup=False, soft_wrap=True)
        if unreadable:
            reasons = "\n".join(item.reason for item in sorted(unreadable))
            raise DataError(f"{len(unreadable)} of {len(self._stems)} images could not be read:\n{reasons}")


def _for_jpeg(image: Image.Image) -> Image.Image:
    """Shrink an image that has more rows or columns than a JPEG file takes."""
    image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    return image


def _of_all_processes(items: list[Unreadable]) -> list[Unreadable]:
    """Collect the items of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    gathered: list[list[Unreadable]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return [item for own in gathered for item in own]
