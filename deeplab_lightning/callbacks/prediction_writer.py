"""Prediction files: masks in the class palette and overlays."""

from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import lightning as L
from PIL import Image

from deeplab_lightning.data.images import read_image
from deeplab_lightning.drawing import overlay, palette_image
from deeplab_lightning.files import unused_path, write_atomically
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import table_console

_JPEG_QUALITY = 92


class PredictionWriter(L.Callback):
    """Writes a palette PNG and an overlay of each predicted picture, at the picture's own size.

    The PNG's values are train ids and its palette the classes' colours. Subfolders are kept.

    Args:
        output_dir: Folder of the files; `predictions` in the run's folder if null, numbered if there is
            one already.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        chosen = (
            Path(self.output_dir) if self.output_dir else unused_path(RunFolder(trainer.default_root_dir).predictions)
        )
        self.folder = trainer.strategy.broadcast(chosen)
        loader: Any = trainer.predict_dataloaders
        dataset = loader.dataset.dataset
        self._paths = dict(zip(dataset.names, dataset.paths, strict=True))
        self._stems = _output_stems(dataset.names)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, SegmentationModule)
        for name, prediction in outputs:
            mask = prediction.numpy()
            mask_path = self.folder / "masks" / f"{self._stems[name]}.png"
            overlay_path = self.folder / "overlays" / f"{self._stems[name]}.jpg"
            image = read_image(self._paths[name]).permute(1, 2, 0).numpy()
            drawn = Image.fromarray(overlay(image, mask, pl_module.classes))
            write_atomically(overlay_path, partial(drawn.save, format="JPEG", quality=_JPEG_QUALITY))
            # Last and whole: where the mask is, the picture is done.
            write_atomically(mask_path, partial(palette_image(mask, pl_module.classes).save, format="PNG"))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            console = table_console()
            console.print(f"{len(self._stems)} pictures predicted.")
            console.print(f"masks:    {self.folder / 'masks'}", soft_wrap=True)
            console.print(f"overlays: {self.folder / 'overlays'}", soft_wrap=True)


def _output_stems(names: list[str]) -> dict[str, str]:
    """Image key -> file name without suffix; keys that differ in their suffix only keep it."""
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    times = Counter(stems.values())
    return {name: stem if times[stem] == 1 else name for name, stem in stems.items()}
