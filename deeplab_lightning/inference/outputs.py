"""Describe predicted masks as COCO JSON and as the CSV files of competitions."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle_tools

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.transforms import resize_mask
from deeplab_lightning.errors import UserError
from deeplab_lightning.inference.calibration_file import read_temperature
from deeplab_lightning.tables import csv_text

CsvFormat = Literal["ids", "rle"]
_CSV_SIZE = 256  # pixels, of the competition on recyclable litter
_HEADERS = {"ids": ["image_id", "PredictionString"], "rle": ["ImageId", "ClassId", "EncodedPixels"]}
Mask = npt.NDArray[np.uint8]


class Outputs(NamedTuple):
    """Say what is written of predicted images besides their masks.

    Attributes:
        overlays: Whether the masks are blended into the images.
        probabilities: `npz` for the probabilities of all classes as float16, `uint8` for 0-255, None for none.
        confidence: Whether the highest probability of each pixel is written.
        temperature: Temperature of both: a number, or a file of `deeplab calibrate`; None for 1.
        coco: Name of a COCO JSON file in the folder of the predictions; None for none.
        csv: Name of a CSV file there; None for none.
        csv_size: Height and width of its masks in pixels; None for 256 with class ids, and the image's own with runs.
        csv_format: `ids` or `rle`, see `csv_rows`.
    """

    overlays: bool = True
    probabilities: Literal["npz", "uint8"] | None = None
    confidence: bool = False
    temperature: str | None = None
    coco: str | None = None
    csv: str | None = None
    csv_size: int | None = None
    csv_format: CsvFormat | None = None

    def check(self) -> "Outputs":
        """Return these outputs.

        Raises:
            ValueError: If there are options of a CSV file without its name, or a temperature without probabilities or
                one that cannot be read.
        """
        if self.temperature is not None and self.probabilities is None and not self.confidence:
            raise UserError("--temperature changes what --probabilities or --confidence writes; give one of them.")
        if self.temperature is not None:
            read_temperature(self.temperature)
        if self.csv is None and (self.csv_size is not None or self.csv_format is not None):
            raise UserError("--csv_size and --csv_format need the name of the file, such as --csv submission.csv.")
        return self

    def csv_rows(self, name: str, mask: Mask, classes: ClassTable) -> list[list[Any]]:
        """Return the rows of an image.

        With `ids` it is one row of image and class ids with spaces between them, row by row. With `rle` there is one
        row per class without the background, with the runs of its pixels: pairs of first pixel, from 1, and length,
        where pixels are numbered column by column. A class that is absent has no runs.

        Args:
            name: Key of the image.
            mask: (H, W) train ids.
            classes: The class table.
        """
        size = self.csv_size or (_CSV_SIZE if self.csv_format != "rle" else None)
        small = mask if size is None else resize_mask(torch.from_numpy(mask), (size, size)).numpy()
        if self.csv_format != "rle":
            return [[name, " ".join(map(str, small.reshape(-1).tolist()))]]
        return [[name, train_id, run_lengths(small == train_id)] for train_id in foreground(classes)]

    def csv_header(self) -> list[str]:
        """Return the names of the columns."""
        return _HEADERS[self.csv_format or "ids"]


def foreground(classes: ClassTable) -> range:
    """Return the train ids of the classes, without a class `background` at 0."""
    return range(int(classes.names[0] == "background"), classes.num_classes)


def run_lengths(is_class: npt.NDArray[np.bool_]) -> str:
    """Return the runs of the pixels (H, W) of a class as Kaggle does: first pixel from 1, length, column by column."""
    pixels = np.concatenate([[False], is_class.reshape(-1, order="F"), [False]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1  # first pixels of runs and of gaps
    changes[1::2] -= changes[::2]
    return " ".join(map(str, changes.tolist()))


class CsvPart(NamedTuple):
    """Hold the rows of an image as compressed text, since the ids of thousands of images fill the memory.

    Attributes:
        name: Key of the image.
        text: Compressed rows.
    """

    name: str
    text: bytes

    @classmethod
    def of(cls, name: str, rows: list[list[Any]]) -> "CsvPart":
        """Compress the rows of an image."""
        return cls(name, zlib.compress(csv_text(rows).encode(), 1))


def csv_parts(header: list[str], parts: Iterable[CsvPart]) -> Iterator[bytes]:
    """Return the text of a CSV file in parts, in the order of the images' keys."""
    yield csv_text([header]).encode()
    for part in sorted(parts):
        yield zlib.decompress(part.text)


class CocoPart(NamedTuple):
    """Hold the regions of an image.

    Attributes:
        name: Key of the image.
        size: (height, width) in pixels.
        regions: Category id, RLE, area and box of each class in the image.
    """

    name: str
    size: tuple[int, int]
    regions: list[dict[str, Any]]

    @classmethod
    def of(cls, name: str, mask: Mask, classes: ClassTable) -> "CocoPart":
        """Describe a mask (H, W) of train ids: one annotation per class, without the background, as in COCO-Stuff."""
        regions = []
        for train_id in foreground(classes):
            is_class = mask == train_id
            if is_class.any():
                rle = rle_tools.encode(np.asfortranarray(is_class))
                area, box = int(rle_tools.area(rle)), [float(value) for value in rle_tools.toBbox(rle)]
                runs = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
                regions.append({"category_id": train_id + 1, "segmentation": runs, "area": area, "bbox": box})
        return cls(name, (mask.shape[0], mask.shape[1]), regions)


def coco_text(parts: Iterable[CocoPart], classes: ClassTable) -> str:
    """Return a COCO JSON file, whose images are named relative to the folder that was predicted."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (height, width), regions) in enumerate(sorted(parts, key=lambda part: part.name), start=1):
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for region in regions:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **region})
    categories = [{"id": train_id + 1, "name": classes.names[train_id]} for train_id in foreground(classes)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}) + "\n"
