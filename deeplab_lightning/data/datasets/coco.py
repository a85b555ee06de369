"""COCO JSON annotations, the format of TACO and of most annotation tools."""

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
_RASTER_VERSION = 1  # part of the cache key: raise it when the same annotations give another mask
Rle = dict[str, Any]


class Annotation(NamedTuple):
    """One object: its train id (255 if ignored), its segmentation as in the JSON, and `iscrowd`."""

    train_id: int
    segmentation: Any
    is_crowd: bool


class CocoDataset(SegmentationDataset):
    """Pictures with objects in one COCO JSON: polygons of several parts, RLE, compressed RLE.

    A pixel under several objects belongs to the smaller one (`overlap`); a crowd region lies under
    all objects. Images without annotations are background. Categories of one name are one class; a
    category that no object uses and that others name as their supercategory is left out. Classes
    stand in the order of their first category id, after the background.

    Args:
        annotations: The JSON file.
        images: Folder that the JSON's `file_name` entries are relative to; the JSON's own folder if null.
        class_map: Category name or id -> class name, to merge and rename; null drops the category's
            objects to ignore, `background` paints them as background. `"*"` stands for the categories
            not named; without it they keep their own names.
        colors: Class name -> (R, G, B) in 0-255; the VOC palette where not given.
        background: `class` makes pixels without object class 0, `ignore` makes them count nowhere.
        overlap: `smaller_on_top`, or `file_order` for the later object on top.
        crowd: `ignore` makes regions with `iscrowd: 1` count nowhere, as in COCO's own evaluation;
            `class` paints them as their category.
        on_error: `raise` stops at bad files and annotations, `skip` leaves them out and lists them once.

    Raises:
        FileNotFoundError: If the JSON or the image folder does not exist.
        DataError: If the JSON is not COCO, holds no image, maps an unknown category, or, with
            `on_error: raise`, has annotations of unknown images or categories, polygons that are none,
            RLE of another size than their image, or images that are missing or of another size.
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
        self._used = Counter(entry.get("category_id") for entry in content["annotations"])
        category_to_class = self._map_categories(class_map)
        self.classes, train_ids = _class_table(category_to_class, colors or {}, background)

        records = sorted(content["images"], key=lambda record: str(record.get("file_name")))
        if not records:
            raise DataError(f"{self.json_path}: holds no image. Export it again with the images included.")
        self.names = [str(record.get("file_name")) for record in records]
        self.paths = [self.image_folder / name for name in self.names]
        self.sizes = [(int(record.get("height", 0)), int(record.get("width", 0))) for record in records]
        by_image: dict[Any, list[Annotation]] = {record["id"]: [] for record in records}
        problems = list(self._file_problems(records))
        pictures = {r["id"]: (name, size) for r, name, size in zip(records, self.names, self.sizes, strict=True)}
        for entry in content["annotations"]:
            if problem := self._annotation_problem(entry, pictures, train_ids):
                problems.append(problem)
            else:
                is_crowd = bool(entry.get("iscrowd", 0))
                by_image[entry["image_id"]].append(
                    Annotation(train_ids[entry["category_id"]], entry["segmentation"], is_crowd)
                )
        self.objects = [by_image[record["id"]] for record in records]
        self.report(problems)

    @property
    def source(self) -> str:
        return str(self.json_path)

    def read_mask(self, index: int) -> Tensor:
        path = cache_folder() / "masks" / f"{self._mask_key(index)}.png"
        if path.is_file():
            try:
                return to_tensor(read_mask(path))
            except ValueError:  # a damaged cache file is made again
                path.unlink(missing_ok=True)
        mask = self._rasterise(index)
        # Pillow filters the rows of grey PNG files but not those with a palette, which read 3 times as fast.
        picture = Image.fromarray(mask)
        picture.putpalette([value for color in voc_palette(256) for value in color])
        try_cache(path, lambda file: picture.save(file, format="PNG", compress_level=1))
        return to_tensor(mask)

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """(K,) annotations of each class in image `index`, crowd regions not counted."""
        return self._count(index)

    def _count(self, index: int) -> npt.NDArray[np.int64]:
        ids = [item.train_id for item in self.objects[index] if not item.is_crowd and item.train_id != IGNORE_INDEX]
        return np.bincount(np.array(ids, dtype=np.int64), minlength=self.classes.num_classes)

    def annotated(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        height, width = self.sizes[index]
        areas = np.zeros(IGNORE_INDEX + 1)
        rles = [_to_rle(object_.segmentation, self.sizes[index]) for object_ in self.objects[index]]
        for object_, rle in zip(self.objects[index], rles, strict=True):
            areas[_train_id(object_, self.crowd)[0]] += int(rle_tools.area(rle))
        if self.background == "class":
            areas[0] += height * width - (int(rle_tools.area(rle_tools.merge(rles))) if rles else 0)
        return self._count(index), areas[: self.classes.num_classes] / (height * width)

    def fingerprint(self, index: int) -> str:
        stat = self.paths[index].stat()
        return content_key(self.paths[index].absolute(), stat.st_size, stat.st_mtime_ns, self._mask_key(index))

    def remarks(self) -> list[str]:
        return [*self._category_oddities(), *self._object_oddities()]

    def _keep(self, indices: Sequence[int]) -> None:
        super()._keep(indices)
        self.sizes = [self.sizes[i] for i in indices]
        self.objects = [self.objects[i] for i in indices]

    def _mask_key(self, index: int) -> str:
        name = self.names[index]
        if name not in self._mask_keys:  # writing the objects out takes a third of the time to read the mask
            self._mask_keys[name] = self._made_mask_key(index)
        return self._mask_keys[name]

    def _made_mask_key(self, index: int) -> str:
        objects = json.dumps(self.objects[index], sort_keys=True)
        return content_key(_RASTER_VERSION, self.sizes[index], objects, self.background, self.overlap, self.crowd)

    def _rasterise(self, index: int) -> npt.NDArray[np.uint8]:
        size = self.sizes[index]
        mask = np.full(size, 0 if self.background == "class" else IGNORE_INDEX, dtype=np.uint8)
        layers = [
            (*_train_id(object_, self.crowd), _to_rle(object_.segmentation, size)) for object_ in self.objects[index]
        ]
        if self.overlap == "smaller_on_top":
            layers.sort(key=lambda layer: -int(rle_tools.area(layer[2])))
        layers.sort(key=lambda layer: not layer[1])  # crowds first, the rest stays in order
        for train_id, _, rle in layers:
            mask[rle_tools.decode(rle).astype(bool)] = train_id
        return mask

    def _map_categories(self, class_map: Mapping[str, str | None] | None) -> dict[Any, str | None]:
        """Category id -> class name, None for ignored; unused parents are left out."""
        given = {str(key): value for key, value in (class_map or {}).items()}
        known = {str(c[key]) for c in self._categories for key in ("id", "name")} | {"*"}
        if unknown := sorted(set(given) - known):
            raise DataError(
                f"{self.json_path}: class_map names categories {unknown} that the file does not hold. "
                f"It holds: {', '.join(sorted({str(c['name']) for c in self._categories}))}."
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
        parents = {c.get("supercategory") for c in self._categories if c.get("supercategory") != c["name"]}
        return [(c["id"], str(c["name"])) for c in self._categories if c["name"] in parents and not self._used[c["id"]]]

    def _file_problems(self, records: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
        times = Counter(self.names)
        for name, path, size, record in zip(self.names, self.paths, self.sizes, records, strict=True):
            if times[name] > 1:
                yield Problem(
                    f"{self.json_path}, image {record.get('id')}",
                    f"file_name {name} stands {times[name]} times",
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
                yield Problem(str(path), str(error).partition(": ")[2], "Replace the file.", (name,))
            else:
                if actual != size:
                    yield size_problem(name, path, actual, f"{self.json_path.name} says", size)

    def _annotation_problem(
        self,
        entry: Mapping[str, Any],
        images: Mapping[Any, tuple[str, tuple[int, int]]],
        categories: Mapping[Any, int],
    ) -> Problem | None:
        where = f"{self.json_path}, annotation {entry.get('id')}"
        if entry.get("image_id") not in images:
            return Problem(where, f"unknown image_id {entry.get('image_id')}", "Remove it or add the image's entry.")
        if entry.get("category_id") not in categories:
            return Problem(
                where,
                f"unknown category_id {entry.get('category_id')}",
                f"The file's category ids are {sorted(categories)}; add the category or correct the id.",
            )
        if found := _segmentation_fault(entry.get("segmentation")):
            return Problem(where, found, "Draw the object again or remove the annotation.")
        name, size = images[entry["image_id"]]
        if isinstance(rle := entry["segmentation"], Mapping) and rle["size"] != list(size):
            return Problem(
                f"{where} of {name}",
                f"an RLE is for a picture of {rle['size']} (height, width), but the image is {list(size)}",
                "Export the annotations again for the pictures as they are, or remove the annotation.",
                (name,),
            )
        return None

    def _category_oddities(self) -> Iterator[str]:
        names = Counter(str(c["name"]) for c in self._categories)
        for id_, name in self._unused_parents():
            yield f"category {id_} ({name}) is the parent of others and has no object: left out."
        for name, times in names.items():
            if times > 1:
                ids = [c["id"] for c in self._categories if c["name"] == name]
                yield f"category name {name} stands {times} times (ids {ids}): one class."
        parents = {id_ for id_, _ in self._unused_parents()}
        unused = [str(c["name"]) for c in self._categories if not self._used[c["id"]] and c["id"] not in parents]
        if unused:
            yield f"{len(unused)} categories have no object: {', '.join(unused)}."
        ids = sorted(c["id"] for c in self._categories)
        if ids and ids != list(range(ids[0], ids[0] + len(ids))):
            yield f"category ids have gaps: {ids[0]} to {ids[-1]} for {len(ids)} categories; train ids have none."

    def _object_oddities(self) -> Iterator[str]:
        overlapping = border = outside = 0
        shared_pixels = total_pixels = 0
        for objects, size in zip(self.objects, self.sizes, strict=True):
            rles = [_to_rle(object_.segmentation, size) for object_ in objects]
            union = int(rle_tools.area(rle_tools.merge(rles))) if rles else 0
            total_pixels += union
            twice = sum(int(rle_tools.area(rle)) for rle in rles) - union
            shared_pixels += twice
            overlapping += twice > 0
            for object_ in objects:
                points = _points(object_.segmentation)
                if len(points):
                    border += bool((points <= 0).any() or (points >= (size[1], size[0])).any())
                    outside += bool((points < 0).any() or (points > (size[1], size[0])).any())
        if overlapping:
            rule = "the smaller object is on top" if self.overlap == "smaller_on_top" else "the later object is on top"
            yield (
                f"objects overlap in {overlapping} of {len(self)} images "
                f"({shared_pixels / max(total_pixels, 1):.1%} of their pixels are covered again): {rule}."
            )
        if border:
            yield f"{border} polygons reach the picture's border ({outside} go beyond it and are cut there)."
        if empty := sum(not objects for objects in self.objects):
            yield f"{empty} of {len(self)} images have no object: all background."
        if crowds := sum(object_.is_crowd for objects in self.objects for object_ in objects):
            fate = "they count nowhere" if self.crowd == "ignore" else "painted as their class"
            yield f"{crowds} crowd regions: {fate}."


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"no such annotation file: {path.absolute()}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). Export the annotations again.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise DataError(f"{path}: is not a COCO file, it lacks {', '.join(missing)}. Export it as COCO segmentation.")
    return dict(content)


def _class_table(
    category_to_class: Mapping[Any, str | None], colors: Mapping[str, tuple[int, int, int]], background: str
) -> tuple[ClassTable, dict[Any, int]]:
    """The table, and category id -> train id (255 for ignored categories)."""
    names = [BACKGROUND] if background == "class" else []
    names += dict.fromkeys(name for name in category_to_class.values() if name not in (None, BACKGROUND))  # type: ignore[arg-type]
    outside = 0 if background == "class" else IGNORE_INDEX
    train_ids = {
        id_: IGNORE_INDEX if name is None else outside if name == BACKGROUND else names.index(name)
        for id_, name in category_to_class.items()
    }
    table = ClassTable(names)
    palette = [colors.get(name, default) for name, default in zip(names, table.colors or (), strict=True)]
    if unknown := sorted(set(colors) - set(names)):
        raise DataError(f"colors are given for {unknown}, which are no classes. The classes are {', '.join(names)}.")
    raw_ids = {id_: train for id_, train in train_ids.items() if train != IGNORE_INDEX and isinstance(id_, int)}
    return ClassTable(names, palette, raw_ids, [i for i in (IGNORE_INDEX,) if i not in raw_ids]), train_ids


def _segmentation_fault(segmentation: Any) -> str | None:
    """What is wrong with a segmentation, or None."""
    if isinstance(segmentation, Mapping):
        ok = "counts" in segmentation and "size" in segmentation
        return None if ok else f"an RLE without counts or size (it has {sorted(segmentation)})"
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


def _to_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    """Any COCO segmentation as compressed RLE of a (height, width) picture."""
    height, width = size
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            return dict(rle_tools.frPyObjects(dict(segmentation), height, width))
        return {"size": [height, width], "counts": str(segmentation["counts"]).encode()}
    return dict(rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width)))


def _train_id(object_: Annotation, crowd: str) -> tuple[int, bool]:
    is_ignored = object_.is_crowd and crowd == "ignore"
    return (IGNORE_INDEX if is_ignored else object_.train_id), object_.is_crowd


def _points(segmentation: Any) -> npt.NDArray[np.float64]:
    """(P, 2) polygon points x, y in pixels; none for RLE."""
    if isinstance(segmentation, Mapping):
        return np.zeros((0, 2))
    return np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
