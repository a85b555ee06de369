"""Write predictions as masks in the class palette and as overlays."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from deeplab_lightning.data.batch import Unreadable
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.video import write_video
from deeplab_lightning.drawing import overlay, palette_image, viewable
from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.files import unused_path, write_atomically, write_text
from deeplab_lightning.inference.calibration_file import read_temperature
from deeplab_lightning.inference.outputs import CocoPart, CsvPart, Outputs, coco_text, csv_parts
from deeplab_lightning.labels import Found, Wanted
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import PredictionFolder, RunFolder, prediction_stems, refuse_output_among_images
from deeplab_lightning.tables import table_console

_JPEG_QUALITY = 92
_JPEG_SIDE = 65_500  # pixels; libjpeg takes no more


class PredictionWriter(L.Callback):
    """Write a palette PNG and an overlay of each predicted image, at the image's own size.

    The PNG's values are train ids and its palette holds the class colours. Subfolders of the images are kept, and
    `predictions.csv` names the files of each image.

    Args:
        output_dir: Folder of the files; `predictions` in the run's folder if null, numbered if it exists.
        outputs: What is written besides the masks.
    """

    def __init__(self, output_dir: str | None = None, outputs: Outputs = Outputs()) -> None:  # noqa: B008
        self.output_dir, self.outputs = output_dir, outputs.check()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the folder, the same on all processes, and the file name of each image."""
        default = RunFolder(trainer.default_root_dir).predictions
        chosen = Path(self.output_dir) if self.output_dir else unused_path(default)
        data = getattr(trainer, "datamodule", None)
        refuse_output_among_images(chosen, getattr(data, "predict_images", None))
        self._files = PredictionFolder(trainer.strategy.broadcast(chosen))
        loader: Any = trainer.predict_dataloaders
        dataset = loader.dataset.dataset.reopened()  # the loader is elsewhere in a video
        self._dataset, self._index_of = dataset, {name: index for index, name in enumerate(dataset.names)}
        self._stems = prediction_stems(dataset.names)
        wanted = self.outputs
        if wanted.temperature is not None and getattr(pl_module, "postprocess", None) is not None:
            raise UserError(
                "--temperature is that of the network's own probabilities, but there is a model.postprocess: leave out "
                "one of them, such as by --model.postprocess null."
            )
        self._coco_file = None if wanted.coco is None else self._files.own_file(wanted.coco, "--coco")
        self._csv_file = None if wanted.csv is None else self._files.own_file(wanted.csv, "--csv")
        if self._coco_file is not None and self._coco_file == self._csv_file:
            raise UserError(f"--coco and --csv must be two files, got {wanted.csv} for both.")
        has = {"overlay": wanted.overlays, "confidence": wanted.confidence, "probabilities": wanted.probabilities}
        self._kinds = ["mask", *(kind for kind, is_written in has.items() if is_written)]
        if trainer.is_global_zero:
            self._files.begin(self._stems, self._kinds)
        kinds: dict[str | None, Any] = {None: None, "npz": "float16", "uint8": "uint8"}
        temperature = 1.0 if wanted.temperature is None else read_temperature(wanted.temperature)
        pl_module.wanted = Wanted(wanted.confidence, kinds[wanted.probabilities], temperature)  # type: ignore[assignment]
        self._unreadable: list[Unreadable] = []
        self._coco: list[CocoPart] = []
        self._csv: list[CsvPart] = []

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
        for name, labels in outputs:
            mask, classes = labels.numpy(), pl_module.classes
            if self.outputs.overlays:
                self._write_overlay(name, mask, classes)
            self._write_probabilities(self._stems[name], pl_module.found.pop(name))
            if self._coco_file is not None:
                self._coco.append(CocoPart.of(name, mask, classes))
            if self._csv_file is not None:
                self._csv.append(CsvPart.of(name, self.outputs.csv_rows(name, mask, classes)))
            # The mask is written last, so that it exists only if all files of its image are complete.
            palette = palette_image(mask, classes)
            write_atomically(self._files.mask(self._stems[name]), partial(palette.save, format="PNG"))

    def _write_overlay(self, name: str, mask: npt.NDArray[np.uint8], classes: ClassTable) -> None:
        image = self._dataset.read_image(self._index_of[name]).permute(1, 2, 0).numpy()
        drawn = _for_jpeg(Image.fromarray(overlay(viewable(image), mask, classes)))
        path = self._files.overlay(self._stems[name])
        write_atomically(path, partial(drawn.save, format="JPEG", quality=_JPEG_QUALITY))

    def _write_probabilities(self, stem: str, found: Found) -> None:
        """Write the confidence as a grey PNG, and the probabilities as `probabilities` (K, H, W) in an archive."""
        if found.confidence is not None:
            grey = Image.fromarray(found.confidence.cpu().numpy())
            write_atomically(self._files.confidence(stem), partial(grey.save, format="PNG"))
        if found.probabilities is not None:
            values = found.probabilities.cpu().numpy()
            path = self._files.probabilities(stem)
            write_atomically(path, lambda file: np.savez_compressed(file, probabilities=values))

    def _write_videos(self) -> list[Path]:
        """Join the overlays of each video's frames to a video, and return the files."""
        written = []
        for path, video in self._dataset.videos.items():
            names = [n for n, p in zip(self._dataset.names, self._dataset.paths, strict=True) if p.parent == path]
            overlays = [file for name in names if (file := self._files.overlay(self._stems[name])).is_file()]
            target = self._files.overlay_video(Path(self._stems[names[0]]).parent)
            frames = (np.asarray(Image.open(file)) for file in overlays)
            if overlays:
                write_atomically(target, partial(write_video, frames, rate=video.rate))
                written.append(target)
        return written

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the number of images and the folders.

        Raises:
            DataError: If images could not be read; all others are written.
        """
        assert isinstance(pl_module, SegmentationModule)
        pl_module.wanted = Wanted()
        unreadable = _of_all_processes(self._unreadable)
        coco, csv = _of_all_processes(self._coco), _of_all_processes(self._csv)
        if trainer.is_global_zero:
            if self._coco_file is not None:
                write_text(self._coco_file, coco_text(coco, pl_module.classes))
            if self._csv_file is not None:
                parts = csv_parts(self.outputs.csv_header(), csv)
                write_atomically(self._csv_file, lambda file: file.writelines(parts))
            console = table_console()
            console.print(f"{len(self._stems) - len(unreadable)} images predicted.")
            console.print(f"masks:    {self._files.masks}", markup=False, soft_wrap=True)
            if self.outputs.overlays:
                console.print(f"overlays: {self._files.overlays}", markup=False, soft_wrap=True)
            videos = self._write_videos() if self.outputs.overlays else []
            for path in filter(None, (self._coco_file, self._csv_file, *videos)):
                console.print(f"written:  {path}", markup=False, soft_wrap=True)
        if unreadable:
            missing = {item.name for item in unreadable}
            if trainer.is_global_zero:
                read = {name: stem for name, stem in self._stems.items() if name not in missing}
                self._files.begin(read, self._kinds)
            reasons = "\n".join(item.reason for item in sorted(unreadable))
            raise DataError(f"{len(unreadable)} of {len(self._stems)} images could not be read:\n{reasons}")


def _for_jpeg(image: Image.Image) -> Image.Image:
    """Shrink an image that has more rows or columns than a JPEG file takes."""
    image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    return image


def _of_all_processes(items: list[Any]) -> list[Any]:
    """Collect the items of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    gathered: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return [item for own in gathered for item in own]
