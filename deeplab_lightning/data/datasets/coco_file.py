"""Read a COCO JSON file into checked entries, whatever tool wrote it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_lightning.data.datasets.segmentations import Size
from deeplab_lightning.data.problems import Problem
from deeplab_lightning.errors import DataError, MissingFileError

Id = int | str
_SECTIONS = ("images", "annotations", "categories")
_CROWD = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_MAX_NAMED = 5  # entries in one message


class Category(NamedTuple):
    """Hold one category: its id, its name and the name of its parent."""

    id: Id
    name: str
    supercategory: str | None


class ImageEntry(NamedTuple):
    """Hold one image: its id, its path as in the file, and (height, width) in pixels if the file says it."""

    id: Id
    file_name: str
    size: Size | None


class ObjectEntry(NamedTuple):
    """Hold one object.

    Attributes:
        label: The entry for messages, such as `annotation 7`.
        image_id: Id of its image.
        category_id: Id of its category.
        segmentation: Polygons or RLE as in the file, not checked.
        bbox: The box as in the file, not checked.
        is_crowd: Whether it is a crowd region (`iscrowd: 1`).
        fault: What is wrong with the entry itself, or None.
    """

    label: str
    image_id: Any
    category_id: Any
    segmentation: Any
    bbox: Any
    is_crowd: bool
    fault: str | None


@dataclass
class CocoFile:
    """Hold the entries of a COCO file.

    Ids are compared as they were meant: 1, 1.0 and "1" are one id.

    Attributes:
        path: The JSON file.
        categories: The categories in the order of the file, with unique ids.
        images: The images in the order of the file, with unique ids and paths, without those of `problems`.
        objects: The objects in the order of the file; those with a fault say so.
        problems: The problems of the entries in `images`, and the ids of annotations that repeat.
        left_out: The ids of the entries in `images` that are left out.
    """

    path: Path
    categories: list[Category] = field(default_factory=list)
    images: list[ImageEntry] = field(default_factory=list)
    objects: list[ObjectEntry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: set[Id] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> "CocoFile":
        """Read a COCO file.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If it is not COCO, or a category cannot be used.
        """
        content = _read_json(path)
        file = cls(path)
        file._read_categories(content["categories"])
        file._read_images(content["images"])
        file._read_objects(content["annotations"])
        return file

    def _read_categories(self, entries: Sequence[Any]) -> None:
        found: dict[Id, list[int]] = defaultdict(list)
        for position, entry in enumerate(entries):
            where = f"{self.path}, categories[{position}]"
            fields = _fields(entry, where, "id", "name")
            id_ = _id(fields["id"], f"{where}, id")
            found[id_].append(position)
            parent = entry.get("supercategory")
            self.categories.append(Category(id_, str(fields["name"]), None if parent is None else str(parent)))
        for id_, positions in found.items():
            if len(positions) > 1:
                names = ", ".join(self.categories[position].name for position in positions)
                raise DataError(
                    f"{self.path}: the category id {id_} is used by {len(positions)} entries ({names}). "
                    "Give each category an id of its own, and its annotations that id."
                )

    def _read_images(self, entries: Sequence[Any]) -> None:
        read: list[ImageEntry] = []
        for position, entry in enumerate(entries):
            where = f"{self.path}, images[{position}]"
            try:
                read.append(_image(entry, where))
            except DataError as error:
                name = entry.get("file_name") if isinstance(entry, Mapping) else None
                self.problems.append(
                    Problem.from_error(error, "Correct the entry, or remove it.", *([str(name)] if name else []))
                )
        by_id: dict[Id, list[str]] = defaultdict(list)
        by_name: dict[str, list[Id]] = defaultdict(list)
        for image in read:
            by_id[image.id].append(image.file_name)
            by_name[image.file_name].append(image.id)
        for id_, names in by_id.items():
            if len(names) > 1:
                self.problems.append(
                    Problem(
                        f"{self.path}, image {id_}",
                        f"the image id {id_} is used by {len(names)} entries ({_some(names)})",
                        "Give each image an id of its own, and its annotations that id.",
                        tuple(names),
                    )
                )
        for name, ids in by_name.items():
            if len(ids) > 1:
                self.problems.append(
                    Problem(
                        f"{self.path}, images {_some(ids)}",
                        f"file_name {name} is used by {len(ids)} entries",
                        "Keep one entry and move the annotations to it.",
                        (name,),
                    )
                )
        self.images = [image for image in read if len(by_id[image.id]) == len(by_name[image.file_name]) == 1]
        self.left_out = {image.id for image in read} - {image.id for image in self.images}

    def _read_objects(self, entries: Sequence[Any]) -> None:
        used: dict[Any, list[int]] = defaultdict(list)
        for position, entry in enumerate(entries):
            if isinstance(entry, Mapping) and entry.get("id") is not None:
                used[_loose_id(entry["id"])].append(position)
        self.problems += [
            Problem(
                f"{self.path}, annotation {id_}",
                f"the annotation id {id_} is used by {len(positions)} entries "
                f"({_some(f'annotations[{position}]' for position in positions)})",
                "Give each annotation an id of its own; on_error: skip keeps the objects.",
            )
            for id_, positions in used.items()
            if len(positions) > 1
        ]
        self.objects = [_object(entry, position) for position, entry in enumerate(entries)]


def _read_json(path: Path) -> dict[str, list[Any]]:
    """Read the JSON file and check that it has the sections of COCO.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: If it is not COCO.
    """
    if path.is_dir():
        raise MissingFileError(f"{path.absolute()} is a folder. Set annotations to the JSON file in it.")
    if not path.is_file():
        raise MissingFileError(f"no such annotation file: {path.absolute()}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty, not JSON. Export the annotations again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: is not JSON ({reason}). Export the annotations again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not a COCO file: it holds a {_kind(content)}. Export it as COCO segmentation.")
    missing = [key for key in _SECTIONS if key not in content]
    if missing:
        raise DataError(f"{path}: is not a COCO file: it lacks {', '.join(missing)}. Export it as COCO segmentation.")
    for key in _SECTIONS:
        if not isinstance(content[key], list):
            raise DataError(f"{path}: {key} must be a list of entries, got {_kind(content[key])}. Export it again.")
    return {key: content[key] for key in _SECTIONS}


def _fields(entry: Any, where: str, *keys: str) -> Mapping[str, Any]:
    """Return an entry after checking that it holds values under the keys.

    Raises:
        DataError: If it does not.
    """
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: must be an object with {' and '.join(keys)}, got {_kind(entry)}.")
    for key in keys:
        if entry.get(key) is None or entry.get(key) == "":
            raise DataError(f"{where}: {key} is {'missing' if key not in entry else _kind(entry[key])}.")
    return entry


def _image(entry: Any, where: str) -> ImageEntry:
    """Read one entry of `images`.

    Raises:
        DataError: If it cannot be used.
    """
    fields = _fields(entry, where, "id", "file_name")
    name = str(fields["file_name"])
    if "\0" in name:
        raise DataError(f"{where}: file_name holds a NUL character.")
    height, width = (_length(fields.get(key), f"{where}, {key}") for key in ("height", "width"))
    size = None if height is None or width is None else (height, width)
    return ImageEntry(_id(fields["id"], f"{where}, id"), name, size)


def _object(entry: Any, position: int) -> ObjectEntry:
    """Read one entry of `annotations`, at a position of the list."""
    if not isinstance(entry, Mapping):
        return ObjectEntry(f"annotations[{position}]", None, None, None, None, False, f"an entry of {_kind(entry)}")
    label = f"annotations[{position}]" if entry.get("id") is None else f"annotation {entry['id']}"
    fault = None
    crowd = entry.get("iscrowd")
    is_crowd = False if crowd is None else _CROWD.get(str(crowd).strip().lower())
    if is_crowd is None:
        is_crowd, fault = False, f"iscrowd must be 0 or 1, got {crowd!r} ({_kind(crowd)})"
    return ObjectEntry(
        label,
        _loose_id(entry.get("image_id")),
        _loose_id(entry.get("category_id")),
        entry.get("segmentation"),
        entry.get("bbox"),
        is_crowd,
        fault,
    )


def _id(value: Any, where: str) -> Id:
    """Return an id as it was meant: 1, 1.0 and "1" are 1, and other text stays text.

    Raises:
        DataError: If the value is no id.
    """
    found = _loose_id(value)
    is_whole = isinstance(found, int) and not isinstance(found, bool)
    if isinstance(value, str) or is_whole:
        return found
    raise DataError(f"{where}: must be a whole number or text, got {_kind(value)} {value!r}.")


def _loose_id(value: Any) -> Any:
    """Return an id as it was meant, and the text of anything that is no id."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        is_number = text.isdecimal() and len(text) < 19 and str(int(text)) == text  # "007" is text
        return int(text) if is_number else text
    return value if value is None or isinstance(value, bool) else repr(value)


def _length(value: Any, where: str) -> int | None:
    """Return a height or width in pixels; None if it is not known.

    Raises:
        DataError: If the value is no length.
    """
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < 1e9 or number != int(number):
        raise DataError(f"{where}: must be a number of pixels, got {value!r}.")
    return int(number) or None


def _kind(value: Any) -> str:
    """Name the type of a JSON value as JSON does."""
    if value is None:
        return "null"
    names = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def _some(values: Iterable[Any]) -> str:
    """List the first values, and the number of the others."""
    texts = [str(value) for value in values]
    others = f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return ", ".join(texts[:_MAX_NAMED]) + others
