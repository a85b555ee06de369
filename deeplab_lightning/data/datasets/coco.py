"""Read COCO JSON annotations, the format of TACO and of most annotation tools."""

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from deeplab_lightning.data.cache import cache_folder, content_key, try_cache
from deeplab_lightning.data.classes import IGNORE_INDEX, voc_palette
from deeplab_lightning.data.datasets.base import MaskFacts, SegmentationDataset, size_problem, to_tensor
from deeplab_lightning.data.datasets.coco_classes import CocoCategories
from deeplab_lightning.data.datasets.coco_file import CocoFile, ImageEntry
from deeplab_lightning.data.datasets.coco_objects import assign_objects, object_remarks
from deeplab_lightning.data.datasets.segmentations import Size, area, decode, to_rle, union_area
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.images import image_size
from deeplab_lightning.data.problems import OnError, Problem
from deeplab_lightning.errors import DataError, MissingFileError

_CHECKSUM = "crc32"  # key of the checksum of a mask's labels in a PNG file of the cache
_RASTER_VERSION = 2  # part of the cache key: increase it when the same annotations give another mask


class CocoDataset(SegmentationDataset):
    """Read images and objects from one COCO JSON file.

    Objects may be polygons of several parts, RLE or compressed RLE. A pixel covered by several objects belongs
    to the smallest of them (see `overlap`); crowd regions are below all objects. Images without annotations
    are background. Categories with the same name are one class. A category that has no object and is the
    supercategory of others is left out. Classes are ordered by their first category id, after the background.

    Args:
        annotations: The JSON file.
        images: Folder that the JSON's `file_name` entries are relative to; the JSON's own folder if null.
        classes: Class names in the order of their train ids, `background` excepted, for a file that lacks a
            category of the others, such as a validation part; the classes of the file's categories if null.
        class_map: Mapping from category name or id to class name, to merge and rename categories. Null
            ignores the pixels of the category's objects, `background` makes them background. `"*"` is the
            key for all categories that are not named; without it they keep their own names.
        colors: Mapping from class name to (R, G, B) in 0-255; classes that are not named take their colour
            from the VOC palette.
        background: `class` makes pixels without object class 0; `ignore` ignores them in the loss and in
            all metrics.
        overlap: `smaller_on_top`, or `file_order` for the later object on top.
        crowd: `ignore` ignores regions with `iscrowd: 1`, as COCO's own evaluation does; `class` gives them
            the class of their category.
        on_error: `raise` stops at faulty files and annotations, `skip` leaves them out and lists them once.
            The box of a skipped annotation is ignored, or its image left out if it has no box, so that no
            object becomes background.

    Raises:
        FileNotFoundError: If the JSON file or the image folder does not exist.
        DataError: If the JSON is not COCO, holds no image, maps an unknown category, or two keys of
            `class_map` mean one category. With `on_error: raise` also for repeated ids, annotations of unknown
            images or categories, invalid polygons, RLE whose runs do not fill their image, and images that are
            missing or have another size.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        class_map: Mapping[str, str | None] | None = None,
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        background: Literal["class", "ignore"] = "class",
        overlap: Literal["smaller_on_top", "file_order"] = "smaller_on_top",
        crowd: Literal["ignore", "class"] = "ignore",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(on_error)
        self.json_path = Path(annotations).expanduser()
        self.image_folder = Path(images).expanduser() if images is not None else self.json_path.parent
        if self.image_folder.exists() and not self.image_folder.is_dir():
            raise MissingFileError(f"{self.image_folder.absolute()} is a file. Set images to the folder of the images.")
        if not self.image_folder.is_dir():
            raise MissingFileError(f"no such image folder: {self.image_folder.absolute()}")
        self.background, self.overlap, self.crowd = background, overlap, crowd
        self._mask_keys: dict[str, str] = {}
        file = CocoFile.read(self.json_path)
        self._categories = CocoCategories(file, self.json_path)
        self.classes, train_ids = self._categories.class_table(class_map or {}, classes, colors or {}, background)
        if not file.images and not file.problems:
            raise DataError(f"{self.json_path}: holds no image. Export it again with the images included.")
        entries, sizes, file_problems = self._open_files(file.images)
        self.names = [entry.file_name for entry in entries]
        self.paths = [self.image_folder / name for name in self.names]
        self.sizes = sizes
        self.objects, object_problems = assign_objects(self.json_path, file, entries, sizes, train_ids)
        self.report([*file.problems, *file_problems, *object_problems])

    @property
    def source(self) -> str:
        """Return the JSON file."""
        return str(self.json_path)

    def read_mask(self, index: int) -> Tensor:
        """Read the train ids of image `index` from the cache, or rasterise its objects: (H, W) uint8."""
        path = cache_folder() / "masks" / f"{self._mask_key(index)}.png"
        if path.is_file():
            if (cached := _cached_mask(path)) is not None:
                return to_tensor(cached)
            warnings.warn(f"{path} is damaged and is made again.", stacklevel=2)
        mask = self._rasterise(index)
        # Pillow filters the rows of grey PNG files but not of palette PNG files, which are read 3 times as fast.
        image = Image.fromarray(mask)
        image.putpalette([value for color in voc_palette(256) for value in color])
        checksum = PngInfo()
        checksum.add_text(_CHECKSUM, _checksum(mask))
        try_cache(path, lambda file: image.save(file, format="PNG", compress_level=1, pnginfo=checksum))
        return to_tensor(mask)

    def inspect_mask(self, index: int) -> MaskFacts:
        """Read the mask of image `index`, and count its objects that cover no pixel."""
        drawn = (area(to_rle(object_.segmentation, self.sizes[index])) for object_ in self.objects[index])
        return super().inspect_mask(index)._replace(num_invisible=sum(pixels == 0 for pixels in drawn))

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Count the annotations of each class in image `index` without crowd regions: (K,) int64."""
        return self._count_annotations(index)

    def measure_annotations(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Compute object counts and area fractions of image `index` from its annotations."""
        height, width = self.sizes[index]
        areas = np.zeros(IGNORE_INDEX + 1)
        rles = [to_rle(object_.segmentation, self.sizes[index]) for object_ in self.objects[index]]
        for object_, rle in zip(self.objects[index], rles, strict=True):
            areas[object_.drawn_id(self.crowd)] += area(rle)
        if self.background == "class":
            areas[0] += height * width - union_area(rles)
        return self._count_annotations(index), areas[: self.classes.num_classes] / (height * width)

    def fingerprint(self, index: int) -> str:
        """Return a key of the image file, the objects of image `index` and the rules for drawing them."""
        stat = self.paths[index].stat()
        return content_key(self.paths[index].absolute(), stat.st_size, stat.st_mtime_ns, self._mask_key(index))

    def remarks(self) -> list[str]:
        """Describe unusual categories and objects, one sentence each."""
        of_objects = object_remarks(self.objects, self.sizes, overlap=self.overlap, crowd=self.crowd)
        return [*self._categories.remarks(), *of_objects]

    def _keep(self, indices: Sequence[int]) -> None:
        super()._keep(indices)
        self.sizes = [self.sizes[i] for i in indices]
        self.objects = [self.objects[i] for i in indices]

    def _count_annotations(self, index: int) -> npt.NDArray[np.int64]:
        ids = [item.train_id for item in self.objects[index] if not item.is_crowd and item.train_id != IGNORE_INDEX]
        return np.bincount(np.array(ids, dtype=np.int64), minlength=self.classes.num_classes)

    def _mask_key(self, index: int) -> str:
        """Return a key of everything that the mask of image `index` depends on."""
        name = self.names[index]
        if name not in self._mask_keys:  # formatting the objects takes a third of the time to read the mask
            objects = json.dumps(self.objects[index], sort_keys=True)
            self._mask_keys[name] = content_key(
                _RASTER_VERSION, self.sizes[index], objects, self.background, self.overlap, self.crowd
            )
        return self._mask_keys[name]

    def _rasterise(self, index: int) -> npt.NDArray[np.uint8]:
        """Draw the objects of image `index` on a mask (H, W) of train ids."""
        size = self.sizes[index]
        mask = np.full(size, 0 if self.background == "class" else IGNORE_INDEX, dtype=np.uint8)
        layers = [
            (object_.drawn_id(self.crowd), object_.is_crowd, to_rle(object_.segmentation, size))
            for object_ in self.objects[index]
        ]
        if self.overlap == "smaller_on_top":
            layers.sort(key=lambda layer: -area(layer[2]))
        layers.sort(key=lambda layer: not layer[1])  # crowd regions first; the sort is stable
        for train_id, _, rle in layers:
            mask[decode(rle)] = train_id
        return mask

    def _open_files(self, images: Sequence[ImageEntry]) -> tuple[list[ImageEntry], list[Size], list[Problem]]:
        """Read the headers of the image files.

        Returns:
            The entries sorted by name; the size of each, from its file where the entry has none; and a problem for each
            file that cannot be read or has another size than its entry, with the size (0, 0) if it is unknown.
        """
        entries = sorted(images, key=lambda entry: entry.file_name)
        sizes: list[Size] = []
        problems: list[Problem] = []
        index: FolderIndex | None = None
        for entry in entries:
            name, path = entry.file_name, self.image_folder / entry.file_name
            actual = entry.size or (0, 0)
            try:
                actual = image_size(path)
            except FileNotFoundError:
                index = index or FolderIndex(self.image_folder)
                todo = index.hint(name) or "Add the file, or check data.dataset.init_args.images."
                problems.append(Problem(str(path), "no such image", todo, (name,)))
            except (OSError, ValueError) as error:
                problems.append(Problem.from_error(error, "Replace the file.", name))
            else:
                if entry.size is not None and actual != entry.size:
                    problems.append(size_problem(name, path, actual, f"{self.json_path.name} says", entry.size))
            sizes.append(actual if entry.size is None else entry.size)
        return entries, sizes, problems


def _checksum(mask: npt.NDArray[np.uint8]) -> str:
    return str(zlib.crc32(np.ascontiguousarray(mask).data))


def _cached_mask(path: Path) -> npt.NDArray[np.uint8] | None:
    """Read a mask from the cache; None if the file is damaged."""
    try:
        with Image.open(path) as file:
            mask: npt.NDArray[np.uint8] = np.asarray(file)
            return mask if file.info.get(_CHECKSUM) == _checksum(mask) else None
    except Exception:  # Pillow raises errors of many kinds for damaged files
        return None
