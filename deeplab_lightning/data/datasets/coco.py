"""Read COCO JSON annotations, the format of TACO and of most annotation tools."""

import json
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from deeplab_lightning.data.cache import cache_folder, content_key, try_cache
from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable, voc_palette
from deeplab_lightning.data.datasets.base import MaskFacts, SegmentationDataset, size_problem, to_tensor
from deeplab_lightning.data.datasets.coco_file import Category, CocoFile, Id, ImageEntry, ObjectEntry
from deeplab_lightning.data.datasets.segmentations import (
    Size,
    area,
    box_polygons,
    decode,
    extent,
    points,
    segmentation_fault,
    to_rle,
    union_area,
)
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.images import image_size
from deeplab_lightning.data.problems import OnError, Problem
from deeplab_lightning.errors import DataError, MissingFileError

BACKGROUND = "background"
_CHECKSUM = "crc32"  # key of the checksum of a mask's labels in a PNG file of the cache
_RASTER_VERSION = 2  # part of the cache key: increase it when the same annotations give another mask
_NORMALISED_SHARE = 0.01  # of the objects: fewer with coordinates between 0 and 1 are specks in a corner


class Annotation(NamedTuple):
    """Hold one object.

    Attributes:
        train_id: Train id of its class; 255 if its category is ignored, or the annotation was skipped.
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
        self._categories = sorted(file.categories, key=lambda c: (isinstance(c.id, str), c.id))
        self._num_annotations = Counter(entry.category_id for entry in file.objects)
        mapped = self._map_categories(class_map or {}, has_class_list=classes is not None)
        self.classes, train_ids = _class_table(mapped, classes, colors or {}, background, self.json_path)

        if not file.images and not file.problems:
            raise DataError(f"{self.json_path}: holds no image. Export it again with the images included.")
        entries, sizes, file_problems = self._open_files(file.images)
        self.names = [entry.file_name for entry in entries]
        self.paths = [self.image_folder / name for name in self.names]
        self.sizes = sizes
        self.objects, object_problems = self._assign_objects(entries, file, train_ids)
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
            areas[_train_id(object_, self.crowd)[0]] += area(rle)
        if self.background == "class":
            areas[0] += height * width - union_area(rles)
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
            (*_train_id(object_, self.crowd), to_rle(object_.segmentation, size)) for object_ in self.objects[index]
        ]
        if self.overlap == "smaller_on_top":
            layers.sort(key=lambda layer: -area(layer[2]))
        layers.sort(key=lambda layer: not layer[1])  # crowd regions first; the sort is stable
        for train_id, _, rle in layers:
            mask[decode(rle)] = train_id
        return mask

    def _map_categories(self, class_map: Mapping[str, str | None], *, has_class_list: bool) -> dict[Id, str | None]:
        """Map category ids to class names, None for ignored categories; unused parents are left out."""
        given = {str(key): value for key, value in class_map.items()}
        by_id = {str(category.id): category for category in self._categories}
        names = {category.name for category in self._categories}
        # A class list belongs to several files, of which this one may lack categories.
        if (unknown := sorted(set(given) - set(by_id) - names - {"*"})) and not has_class_list:
            raise DataError(
                f"{self.json_path}: class_map names categories {unknown}, which are not in the file. Its categories "
                f"are: {', '.join(sorted(names))}. If this file lacks one that others have, give all of them `classes`."
            )
        for key in given:
            if key in names and ((key in by_id and by_id[key].name != key) or key == "*"):
                meant = "all categories that are not named" if key == "*" else f"the id of {by_id[key].name}"
                raise DataError(
                    f"{self.json_path}: the class_map key {key!r} is {meant} and the name of a category. "
                    "Rename the category in the file."
                )
        parents = {category.id for category in self._unused_parents()}
        mapped: dict[Id, str | None] = {}
        for id_, name, _ in self._categories:
            keys = [key for key in dict.fromkeys((str(id_), name)) if key in given]
            if len({given[key] for key in keys}) > 1:
                both = " and ".join(f"{key!r} ({given[key]})" for key in keys)
                raise DataError(f"{self.json_path}: the class_map keys {both} mean one category. Keep one of them.")
            if keys:
                mapped[id_] = given[keys[0]]
            elif id_ not in parents:
                mapped[id_] = given.get("*", name)
        return mapped

    def _unused_parents(self) -> list[Category]:
        """List the categories without objects that are the supercategory of others."""
        parents = {c.supercategory for c in self._categories if c.supercategory != c.name}
        return [c for c in self._categories if not self._num_annotations[c.id] and c.name in parents]

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

    def _assign_objects(
        self, entries: Sequence[ImageEntry], file: CocoFile, train_ids: Mapping[Id, int]
    ) -> tuple[list[list[Annotation]], list[Problem]]:
        """Assign the objects to their images.

        Args:
            entries: The images' entries, in the order of `names`.
            file: The JSON file.
            train_ids: Mapping from category id to train id.

        Returns:
            The objects of each image, with the boxes of faulty ones as ignored regions, and the problems of the
            annotations that cannot be used.
        """
        position_of: dict[Id, int] = {entry.id: position for position, entry in enumerate(entries)}
        objects: list[list[Annotation]] = [[] for _ in entries]
        problems: list[Problem] = []
        num_objects = num_normalised = 0
        for entry in file.objects:
            position = position_of.get(entry.image_id)
            if position is None:
                if entry.image_id not in file.left_out:
                    problems.append(self._unknown_image(entry, position_of))
                continue
            name, size = self.names[position], self.sizes[position]
            if size == (0, 0):
                continue  # its file cannot be read, and its entry says nothing: the image is left out
            found, todo = self._fault(entry, size, train_ids)
            if found is None:
                objects[position].append(Annotation(train_ids[entry.category_id], entry.segmentation, entry.is_crowd))
                bounds = extent(entry.segmentation)
                num_objects += 1
                num_normalised += bounds is not None and bounds.is_normalised
                continue
            box = box_polygons(entry.bbox, size)
            if box is not None:
                objects[position].append(Annotation(IGNORE_INDEX, box, True))
            fate = "on_error: skip ignores its box" if box else f"on_error: skip leaves {name} out"
            where = f"{self.json_path}, {entry.label} of {name}"
            problems.append(Problem(where, found, f"{todo}; {fate}.", () if box else (name,)))
        if num_normalised > _NORMALISED_SHARE * num_objects:
            problems.append(self._normalised_problem(num_normalised, num_objects, objects))
        return objects, problems

    def _unknown_image(self, entry: ObjectEntry, known: Mapping[Id, int]) -> Problem:
        """Describe an annotation whose image is not in the file."""
        if entry.image_id is None:
            found = entry.fault or "image_id is missing or null"
        else:
            found = f"unknown image_id {entry.image_id!r}"
        example = f" The file's image ids are such as {next(iter(known))!r}." if known else ""
        where = f"{self.json_path}, {entry.label}"
        return Problem(where, found, f"Remove it, or add the image's entry.{example}")

    def _fault(self, entry: ObjectEntry, size: Size, categories: Mapping[Id, int]) -> tuple[str | None, str]:
        """Describe the fault of an annotation, None if it can be used, and what to do, without a full stop."""
        if entry.fault is not None:
            return entry.fault, "Correct the entry"
        if entry.category_id not in categories:
            found = "category_id is missing or null"
            if entry.category_id is not None:
                found = f"unknown category_id {entry.category_id!r}"
            return found, f"The file's category ids are {list(categories)}. Add the category, or correct the id"
        found_fault = segmentation_fault(entry.segmentation, size)
        return found_fault, "Draw the object again, or remove the annotation"

    def _normalised_problem(self, found: int, total: int, objects: Sequence[Sequence[Annotation]]) -> Problem:
        """Describe objects whose coordinates are fractions of the image's size."""
        names = tuple(
            name
            for name, drawn in zip(self.names, objects, strict=True)
            if any((bounds := extent(item.segmentation)) is not None and bounds.is_normalised for item in drawn)
        )
        return Problem(
            str(self.json_path),
            f"{found} of {total} objects cover no pixel; coordinates between 0 and 1 look normalised",
            "Multiply x by the width and y by the height of the image.",
            names,
        )

    def _category_remarks(self) -> Iterator[str]:
        """Describe categories without objects, with the same name, or with gaps between their ids."""
        names = Counter(c.name for c in self._categories)
        parents = self._unused_parents()
        for category in parents:
            yield f"category {category.id} ({category.name}) is the parent of others and has no object: it is left out."
        for name, times in names.items():
            if times > 1:
                ids = [c.id for c in self._categories if c.name == name]
                yield f"category name {name} is used {times} times (ids {ids}); these are one class."
        unused = [c.name for c in self._categories if not self._num_annotations[c.id] and c not in parents]
        if unused:
            yield f"{len(unused)} categories have no object: {', '.join(unused)}."
        numbers = [c.id for c in self._categories if isinstance(c.id, int)]
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            yield (
                f"category ids have gaps: {numbers[0]} to {numbers[-1]} for {len(numbers)} categories; "
                "train ids have no gaps."
            )

    def _object_remarks(self) -> Iterator[str]:
        """Describe overlaps, polygons at the border, images without objects, and crowd regions."""
        yield from self._overlap_remarks()
        yield from self._border_remarks()
        if empty := sum(not objects for objects in self.objects):
            yield f"{empty} of {len(self)} images have no object: all background."
        is_skipped = [object_.train_id == IGNORE_INDEX for objects in self.objects for object_ in objects]
        is_crowd = [object_.is_crowd for objects in self.objects for object_ in objects]
        if crowds := sum(crowd and not skipped for crowd, skipped in zip(is_crowd, is_skipped, strict=True)):
            fate = "ignored" if self.crowd == "ignore" else "labelled as their class"
            yield f"{crowds} crowd regions are {fate}."

    def _overlap_remarks(self) -> Iterator[str]:
        overlapping = shared_pixels = total_pixels = 0
        for objects, size in zip(self.objects, self.sizes, strict=True):
            rles = [to_rle(object_.segmentation, size) for object_ in objects]
            union = union_area(rles)
            shared = sum(map(area, rles)) - union
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
                drawn = points(object_.segmentation)
                if len(drawn) and not (object_.is_crowd and object_.train_id == IGNORE_INDEX):  # no skipped ones
                    border += bool((drawn <= 0).any() or (drawn >= (width, height)).any())
                    outside += bool((drawn < 0).any() or (drawn > (width, height)).any())
        if border:
            yield f"{border} polygons reach the image border ({outside} extend beyond it and are clipped)."


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


def _class_table(
    category_to_class: Mapping[Id, str | None],
    class_list: Sequence[str] | None,
    colors: Mapping[str, tuple[int, int, int]],
    background: str,
    path: Path,
) -> tuple[ClassTable, dict[Id, int]]:
    """Build the class table, and the mapping from category id to train id (255 for ignored categories)."""
    names = [BACKGROUND] if background == "class" else []
    found = dict.fromkeys(name for name in category_to_class.values() if name not in (None, BACKGROUND))
    if class_list is not None and (unlisted := sorted(str(name) for name in set(found) - set(class_list))):
        raise DataError(
            f"{path}: holds the classes {unlisted}, which are not in `classes` ({', '.join(class_list)}). "
            "Add them there, or map their categories in class_map."
        )
    names += [str(name) for name in (found if class_list is None else class_list) if name != BACKGROUND]
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


def _train_id(object_: Annotation, crowd: str) -> tuple[int, bool]:
    """Return the train id to draw an object with, and whether it is a crowd region."""
    is_ignored = object_.is_crowd and crowd == "ignore"
    return (IGNORE_INDEX if is_ignored else object_.train_id), object_.is_crowd
