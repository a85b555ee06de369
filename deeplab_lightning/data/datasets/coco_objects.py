"""Assign the objects of a COCO file to its images, and find what is wrong or unusual about them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datasets.coco_file import CocoFile, Id, ImageEntry, ObjectEntry
from deeplab_lightning.data.datasets.segmentations import (
    Size,
    area,
    box_polygons,
    extent,
    points,
    segmentation_fault,
    to_rle,
    union_area,
)
from deeplab_lightning.data.problems import Problem

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

    def drawn_id(self, crowd: str) -> int:
        """Return the train id to draw the object with, which is 255 for a crowd region if `crowd` is `ignore`."""
        return IGNORE_INDEX if self.is_crowd and crowd == "ignore" else self.train_id


def assign_objects(
    path: Path, file: CocoFile, entries: Sequence[ImageEntry], sizes: Sequence[Size], train_ids: Mapping[Id, int]
) -> tuple[list[list[Annotation]], list[Problem]]:
    """Assign the objects of a file to its images.

    Args:
        path: The file's path, for messages.
        file: Its entries.
        entries: The images' entries, in the order of the data set.
        sizes: The size of each, (0, 0) if it is unknown.
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
                problems.append(_unknown_image(path, entry, position_of))
            continue
        name, size = entries[position].file_name, sizes[position]
        if size == (0, 0):
            continue  # its file cannot be read, and its entry says nothing: the image is left out
        found, todo = _fault(entry, size, train_ids)
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
        where = f"{path}, {entry.label} of {name}"
        problems.append(Problem(where, found, f"{todo}; {fate}.", () if box else (name,)))
    if num_normalised > _NORMALISED_SHARE * num_objects:
        names = [entry.file_name for entry in entries]
        problems.append(_normalised_problem(path, num_normalised, num_objects, names, objects))
    return objects, problems


def _unknown_image(path: Path, entry: ObjectEntry, known: Mapping[Id, int]) -> Problem:
    """Describe an annotation whose image is not in the file."""
    if entry.image_id is None:
        found = entry.fault or "image_id is missing or null"
    else:
        found = f"unknown image_id {entry.image_id!r}"
    example = f" The file's image ids are such as {next(iter(known))!r}." if known else ""
    where = f"{path}, {entry.label}"
    return Problem(where, found, f"Remove it, or add the image's entry.{example}")


def _fault(entry: ObjectEntry, size: Size, categories: Mapping[Id, int]) -> tuple[str | None, str]:
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


def _normalised_problem(
    path: Path, found: int, total: int, image_names: Sequence[str], objects: Sequence[Sequence[Annotation]]
) -> Problem:
    """Describe objects whose coordinates are fractions of the image's size."""
    names = tuple(
        name
        for name, drawn in zip(image_names, objects, strict=True)
        if any((bounds := extent(item.segmentation)) is not None and bounds.is_normalised for item in drawn)
    )
    return Problem(
        str(path),
        f"{found} of {total} objects cover no pixel; coordinates between 0 and 1 look normalised",
        "Multiply x by the width and y by the height of the image.",
        names,
    )


def object_remarks(
    objects: Sequence[Sequence[Annotation]], sizes: Sequence[Size], *, overlap: str, crowd: str
) -> Iterator[str]:
    """Describe overlaps, polygons at the border, images without objects, and crowd regions.

    Args:
        objects: The objects of each image.
        sizes: The size of each image.
        overlap: `smaller_on_top` or `file_order`.
        crowd: `ignore` or `class`.
    """
    yield from _overlap_remarks(objects, sizes, overlap)
    yield from _border_remarks(objects, sizes)
    if empty := sum(not drawn for drawn in objects):
        yield f"{empty} of {len(objects)} images have no object: all background."
    is_skipped = [object_.train_id == IGNORE_INDEX for drawn in objects for object_ in drawn]
    is_crowd = [object_.is_crowd for drawn in objects for object_ in drawn]
    if crowds := sum(is_one and not skipped for is_one, skipped in zip(is_crowd, is_skipped, strict=True)):
        fate = "ignored" if crowd == "ignore" else "labelled as their class"
        yield f"{crowds} crowd regions are {fate}."


def _overlap_remarks(objects: Sequence[Sequence[Annotation]], sizes: Sequence[Size], overlap: str) -> Iterator[str]:
    overlapping = shared_pixels = total_pixels = 0
    for drawn, size in zip(objects, sizes, strict=True):
        rles = [to_rle(object_.segmentation, size) for object_ in drawn]
        union = union_area(rles)
        shared = sum(map(area, rles)) - union
        total_pixels += union
        shared_pixels += shared
        overlapping += shared > 0
    if overlapping:
        rule = "the smaller object is on top" if overlap == "smaller_on_top" else "the later object is on top"
        yield (
            f"objects overlap in {overlapping} of {len(objects)} images "
            f"(repeated cover is {shared_pixels / max(total_pixels, 1):.1%} of their area): {rule}."
        )


def _border_remarks(objects: Sequence[Sequence[Annotation]], sizes: Sequence[Size]) -> Iterator[str]:
    border = outside = 0
    for drawn, (height, width) in zip(objects, sizes, strict=True):
        for object_ in drawn:
            corners = points(object_.segmentation)
            if len(corners) and not (object_.is_crowd and object_.train_id == IGNORE_INDEX):  # no skipped ones
                border += bool((corners <= 0).any() or (corners >= (width, height)).any())
                outside += bool((corners < 0).any() or (corners > (width, height)).any())
    if border:
        yield f"{border} polygons reach the image border ({outside} extend beyond it and are clipped)."
