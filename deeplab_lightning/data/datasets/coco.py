"""Read COCO JSON annotations, the format of TACO and of most annotation tools."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as rle_tools
from torch import Tensor

from deeplab_lightning.data.cache import cache_folder, content_key, try_cache
from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable, voc_palette
from deeplab_lightning.data.datasets.base import SegmentationDataset, size_problem, to_tensor
from deeplab_lightning.data.images import image_size, read_mask
from deeplab_lightning.data.problems import OnError, Problem
from deeplab_lightning.errors import DataError, MissingFileError

BACKGROUND = "background"
_RASTER_VERSION = 1  # part of the cache key: increase it when the same annotations give another mask
Rle = dict[str, Any]
Size = tuple[int, int]  # (height, width) in pixels


class Annotation(NamedTuple):
    """Hold one object.

    Attributes:
        train_id: Train id of its class; 255 if its category is ignored.
        segmentation: Polygons or RLE as in the JSON file.
        is_crowd: Whether it is a crowd region (`iscrowd: 1`).
    """

    train_id: int
    segmentation: Any
    is_crowd: bool


class CocoDataset(SegmentationDataset):
    """Read images and objects from one COCO JSON file.

    Objects may be polygons of several parts, RLE or compressed RLE. A pixel covered by several objects belongs
    to the smallest of them (see `overlap`); crowd regions are below all objects. Images without annotations
    are background. Categories with the same name are one class. A category that has no object and is the
    supercategory of others is left out. Classes are ordered by their first category id, after the background.

    Args:
        annotations: The JSON file.
        images: Folder that the JSON's `file_name` entries are relative to; the JSON's own folder if null.
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

    Raises:
        FileNotFoundError: If the JSON file or the image folder does not exist.
        DataError: If the JSON is not COCO, holds no image or maps an unknown category. With `on_error: raise`
            also for annotations of unknown images or categories, invalid polygons, RLE of another size than
            their image, and images that are missing or have another size.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        *,
        class_map: Mapping[str, str | None] | None = None,
        colors: Mapping[str, tuple[int, int, int]] | None = None,
        background: Literal["class", "ignore"] = "class",
        overlap: Literal["smaller_on_top", "file_order"] = "smaller_on_top",
        crowd: Literal["ignore", "class"] = "ignore",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(on_error)
        self.json_path = Path(annotations)
        self.image_folder = Path(images) if images is not None else self.json_path.parent
        if not self.image_folder.is_dir():
            raise MissingFileError(f"no such image folder: {self.image_folder.absolute()}")
        self.background, self.overlap, self.crowd = background, overlap, crowd
        self._mask_keys: dict[str, str] = {}
        content = _read_json(self.json_path)
        self._categories: list[dict[str, Any]] = content["categories"]
        self._num_annotations = Counter(entry.get("category_id") for entry in content["annotations"])
        self.classes, train_ids = _class_table(self._map_categories(class_map), colors or {}, background)

        records = sorted(content["images"], key=lambda record: str(record.get("file_name")))
        if not records:
            raise DataError(f"{self.json_path}: holds no image. Export it again with the images included.")
        self.names = [str(record.get("file_name")) for record in records]
        self.paths = [self.image_folder / name for name in self.names]
        self.sizes = [(int(record.get("height", 0)), int(record.get("width", 0))) for record in records]
        self.objects, faulty_annotations = self._assign_objects(records, content["annotations"], train_ids)
        self.report([*self._file_problems(records), *faulty_annotations])

    @property
    def source(self) -> str:
        """Return the JSON file."""
        return str(self.json_path)

    def read_mask(self, index: int) -> Tensor:
        """Read the train ids of image `index` from the cache, or rasterise its objects: (H, W) uint8."""
        path = cache_folder() / "masks" / f"{self._mask_key(index)}.png"
        if path.is_file():
            try:
                return to_tensor(read_mask(path))
            except ValueError:  # the cache file is damaged: write it again
                path.unlink(missing_ok=True)
        mask = self._rasterise(index)
        # Pillow filters the rows of grey PNG files but not of palette PNG files, which are read 3 times as fast.
        image = Image.fromarray(mask)
        image.putpalette([value for color in voc_palette(256) for value in color])
        try_cache(path, lambda file: image.save(file, format="PNG", compress_level=1))
        return to_tensor(mask)

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Count the annotations of each class in image `index` without crowd regions: (K,) int64."""
        return self._count_annotations(index)

    def measure_annotations(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Compute object counts and area fractions of image `index` from its annotations."""
        height, width = self.sizes[index]
        areas = np.zeros(IGNORE_INDEX + 1)
        rles = [_to_rle(object_.segmentation, self.sizes[index]) for object_ in self.objects[index]]
        for object_, rle in zip(self.objects[index], rles, strict=True):
            areas[_train_id(object_, self.crowd)[0]] += int(rle_tools.area(rle))
        if self.background == "class":
            areas[0] += height * width - (int(rle_tools.area(rle_tools.merge(rles))) if rles else 0)
        return self._count_annotations(index), areas[: self.classes.num_classes] / (height * width)

    def fingerprint(self, index: int) -> str:
        """Return a key of the image file, the objects of image `index` and the rules for drawing them."""
        stat = self.paths[index].stat()
        return content_key(self.paths[index].absolute(), stat.st_size, stat.st_mtime_ns, self._mask_key(index))

    def remarks(self) -> list[str]:
        """Describe unusual categories and objects, one sentence each."""
        return [*self._category_remarks(), *self._object_remarks()]

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
            (*_train_id(object_, self.crowd), _to_rle(object_.segmentation, size)) for object_ in self.objects[index]
        ]
        if self.overlap == "smaller_on_top":
            layers.sort(key=lambda layer: -int(rle_tools.area(layer[2])))
        layers.sort(key=lambda layer: not layer[1])  # crowd regions first; the sort is stable
        for train_id, _, rle in layers:
            mask[rle_tools.decode(rle).astype(bool)] = train_id
        return mask

    def _map_categories(self, class_map: Mapping[str, str | None] | None) -> dict[Any, str | None]:
        """Map category ids to class names, None for ignored categories; unused parents are left out."""
        given = {str(key): value for key, value in (class_map or {}).items()}
        known = {str(c[key]) for c in self._categories for key in ("id", "name")} | {"*"}
        if unknown := sorted(set(given) - known):
            raise DataError(
                f"{self.json_path}: class_map names categories {unknown}, which are not in the file. "
                f"Its categories are: {', '.join(sorted({str(c['name']) for c in self._categories}))}."
            )
        parents = {id_ for id_, _ in self._unused_parents()}
        mapped: dict[Any, str | None] = {}
        for category in sorted(self._categories, key=lambda c: c["id"]):
            id_, name = category["id"], str(category["name"])
            keys = [key for key in (str(id_), name) if key in given]
            if keys:
                mapped[id_] = given[keys[0]]
            elif id_ not in parents:
                mapped[id_] = given.get("*", name)
        return mapped

    def _unused_parents(self) -> list[tuple[Any, str]]:
        """List (id, name) of the categories without objects that are the supercategory of others."""
        parents = {c.get("supercategory") for c in self._categories if c.get("supercategory") != c["name"]}
        unused = [c for c in self._categories if not self._num_annotations[c["id"]]]
        return [(c["id"], str(c["name"])) for c in unused if c["name"] in parents]

    def _assign_objects(
        self,
        records: Sequence[Mapping[str, Any]],
        annotations: Sequence[Mapping[str, Any]],
        train_ids: Mapping[Any, int],
    ) -> tuple[list[list[Annotation]], list[Problem]]:
        """Assign the annotations to their images.

        Args:
            records: The images' entries, in the order of `names`.
            annotations: The annotations' entries.
            train_ids: Mapping from category id to train id.

        Returns:
            The objects of each image, and the problems of the annotations that cannot be used.
        """
        by_image: dict[Any, list[Annotation]] = {record["id"]: [] for record in records}
        images = {r["id"]: (name, size) for r, name, size in zip(records, self.names, self.sizes, strict=True)}
        problems = []
        for entry in annotations:
            if problem := self._annotation_problem(entry, images, train_ids):
                problems.append(problem)
            else:
                is_crowd = bool(entry.get("iscrowd", 0))
                by_image[entry["image_id"]].append(
                    Annotation(train_ids[entry["category_id"]], entry["segmentation"], is_crowd)
                )
        return [by_image[record["id"]] for record in records], problems

    def _file_problems(self, records: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
        """Find duplicate entries, files that cannot be read, and sizes that differ from the JSON file."""
        times = Counter(self.names)
        for name, path, size, record in zip(self.names, self.paths, self.sizes, records, strict=True):
            if times[name] > 1:
                yield Problem(
                    f"{self.json_path}, image {record.get('id')}",
                    f"file_name {name} is used by {times[name]} entries",
                    "Keep one entry and move the annotations to it.",
                    (name,),
                )
                continue
            try:
                actual = image_size(path)
            except FileNotFoundError:
                yield Problem(
                    str(path),
                    "no such image",
                    "Add the file, or check data.dataset.init_args.images.",
                    (name,),
                )
            except ValueError as error:
                yield Problem.from_error(error, "Replace the file.", name)
            else:
                if actual != size:
                    yield size_problem(name, path, actual, f"{self.json_path.name} says", size)

    def _annotation_problem(
        self, entry: Mapping[str, Any], images: Mapping[Any, tuple[str, Size]], categories: Mapping[Any, int]
    ) -> Problem | None:
        """Check one annotation.

        Args:
            entry: The annotation's entry.
            images: Mapping from image id to name and size.
            categories: Mapping from category id to train id.

        Returns:
            The problem, or None if the annotation can be used.
        """
        where = f"{self.json_path}, annotation {entry.get('id')}"
        if entry.get("image_id") not in images:
            return Problem(where, f"unknown image_id {entry.get('image_id')}", "Remove it, or add the image's entry.")
        if entry.get("category_id") not in categories:
            return Problem(
                where,
                f"unknown category_id {entry.get('category_id')}",
                f"The file's category ids are {sorted(categories)}. Add the category, or correct the id.",
            )
        if found := _segmentation_fault(entry.get("segmentation")):
            return Problem(where, found, "Draw the object again, or remove the annotation.")
        name, size = images[entry["image_id"]]
        if isinstance(rle := entry["segmentation"], Mapping) and rle["size"] != list(size):
            return Problem(
                f"{where} of {name}",
                f"an RLE is for an image of {rle['size']} (height, width), but the image is {list(size)}",
                "Export the annotations again for the present images, or remove the annotation.",
                (name,),
            )
        return None

    def _category_remarks(self) -> Iterator[str]:
        """Describe categories without objects, with the same name, or with gaps between their ids."""
        names = Counter(str(c["name"]) for c in self._categories)
        for id_, name in self._unused_parents():
            yield f"category {id_} ({name}) is the parent of others and has no object, so it is left out."
        for name, times in names.items():
            if times > 1:
                ids = [c["id"] for c in self._categories if c["name"] == name]
                yield f"category name {name} is used {times} times (ids {ids}); these are one class."
        parents = {id_ for id_, _ in self._unused_parents()}
        unused = [
            str(c["name"]) for c in self._categories if not self._num_annotations[c["id"]] and c["id"] not in parents
        ]
        if unused:
            yield f"{len(unused)} categories have no object: {', '.join(unused)}."
        ids = sorted(c["id"] for c in self._categories)
        if ids and ids != list(range(ids[0], ids[0] + len(ids))):
            yield f"category ids have gaps: {ids[0]} to {ids[-1]} for {len(ids)} categories; train ids have no gaps."

    def _object_remarks(self) -> Iterator[str]:
        """Describe overlaps, polygons at the border, images without objects, and crowd regions."""
        yield from self._overlap_remarks()
        yield from self._border_remarks()
        if empty := sum(not objects for objects in self.objects):
            yield f"{empty} of {len(self)} images have no object: all background."
        if crowds := sum(object_.is_crowd for objects in self.objects for object_ in objects):
            fate = "ignored" if self.crowd == "ignore" else "labelled as their class"
            yield f"{crowds} crowd regions are {fate}."

    def _overlap_remarks(self) -> Iterator[str]:
        overlapping = shared_pixels = total_pixels = 0
        for objects, size in zip(self.objects, self.sizes, strict=True):
            rles = [_to_rle(object_.segmentation, size) for object_ in objects]
            union = int(rle_tools.area(rle_tools.merge(rles))) if rles else 0
            shared = sum(int(rle_tools.area(rle)) for rle in rles) - union
            total_pixels += union
            shared_pixels += shared
            overlapping += shared > 0
        if overlapping:
            rule = "the smaller object is on top" if self.overlap == "smaller_on_top" else "the later object is on top"
            yield (
                f"objects overlap in {overlapping} of {len(self)} images "
                f"(repeated cover is {shared_pixels / max(total_pixels, 1):.1%} of their area): {rule}."
            )

    def _border_remarks(self) -> Iterator[str]:
        border = outside = 0
        for objects, (height, width) in zip(self.objects, self.sizes, strict=True):
            for object_ in objects:
                points = _points(object_.segmentation)
                if len(points):
                    border += bool((points <= 0).any() or (points >= (width, height)).any())
                    outside += bool((points < 0).any() or (points > (width, height)).any())
        if border:
            yield f"{border} polygons reach the image border ({outside} extend beyond it and are clipped)."


def _read_json(path: Path) -> dict[str, Any]:
    """Read the JSON file and check that it is COCO."""
    if not path.is_file():
        raise MissingFileError(f"no such annotation file: {path.absolute()}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). Export the annotations again.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise DataError(f"{path}: is not a COCO file: it lacks {', '.join(missing)}. Export it as COCO segmentation.")
    return dict(content)


def _class_table(
    category_to_class: Mapping[Any, str | None], colors: Mapping[str, tuple[int, int, int]], background: str
) -> tuple[ClassTable, dict[Any, int]]:
    """Build the class table, and the mapping from category id to train id (255 for ignored categories)."""
    names = [BACKGROUND] if background == "class" else []
    names += dict.fromkeys(name for name in category_to_class.values() if name not in (None, BACKGROUND))
    outside = 0 if background == "class" else IGNORE_INDEX
    train_ids = {
        id_: IGNORE_INDEX if name is None else outside if name == BACKGROUND else names.index(name)
        for id_, name in category_to_class.items()
    }
    table = ClassTable(names)
    palette = [colors.get(name, default) for name, default in zip(names, table.colors or (), strict=True)]
    if unknown := sorted(set(colors) - set(names)):
        raise DataError(f"colors are given for {unknown}, which are not classes. The classes are {', '.join(names)}.")
    raw_ids = {id_: train for id_, train in train_ids.items() if train != IGNORE_INDEX and isinstance(id_, int)}
    return ClassTable(names, palette, raw_ids, [i for i in (IGNORE_INDEX,) if i not in raw_ids]), train_ids


def _segmentation_fault(segmentation: Any) -> str | None:
    """Describe the fault of a segmentation, or return None if it is valid."""
    if isinstance(segmentation, Mapping):
        is_complete = "counts" in segmentation and "size" in segmentation
        return None if is_complete else f"an RLE without counts or size (it has {sorted(segmentation)})"
    if not isinstance(segmentation, list) or not segmentation:
        return "no segmentation (a box alone cannot train segmentation)"
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(isinstance(v, (int, float)) for v in polygon):
            return "a segmentation that is neither polygons nor RLE"
        if len(polygon) % 2:
            return f"a polygon with an odd number of coordinates ({len(polygon)})"
        if len(polygon) < 6:
            return f"a polygon with {len(polygon) // 2} points (at least 3 are needed)"
    return None


def _to_rle(segmentation: Any, size: Size) -> Rle:
    """Convert any COCO segmentation to compressed RLE for an image of (height, width) pixels."""
    height, width = size
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            return dict(rle_tools.frPyObjects(dict(segmentation), height, width))
        return {"size": [height, width], "counts": str(segmentation["counts"]).encode()}
    return dict(rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width)))


def _train_id(object_: Annotation, crowd: str) -> tuple[int, bool]:
    """Return the train id to draw an object with, and whether it is a crowd region."""
    is_ignored = object_.is_crowd and crowd == "ignore"
    return (IGNORE_INDEX if is_ignored else object_.train_id), object_.is_crowd


def _points(segmentation: Any) -> npt.NDArray[np.float64]:
    """Return the (P, 2) polygon points x, y in pixels; none for RLE."""
    if isinstance(segmentation, Mapping):
        return np.zeros((0, 2))
    return np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
