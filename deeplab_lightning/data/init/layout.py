"""Describe how a data set lies in a folder, and name its parts by the words in folder and file names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from deeplab_lightning.errors import DataError

PARTS = ("train", "val", "test")
_PART_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_CONTENT = r"(?:annot|annotations?|masks?|labels?|gt|segm?|images?|imgs?)?"  # as in trainannot
_PART = re.compile(rf"({'|'.join(_PART_OF_WORD)}){_CONTENT}")
_T = TypeVar("_T")
BY_HAND = (
    "To write the config by hand, start from configs/data/coco.yaml (COCO JSON), camvid.yaml, voc.yaml, "
    "cityscapes.yaml or binary.yaml (mask folders)"
)


class Layout(NamedTuple):
    """Hold what was recognised in a folder.

    Attributes:
        class_path: Name of the data set's class.
        parts: Arguments of the data set's class for each part, with paths relative to the folder; `train` comes first.
        reason: What was seen, as the start of a sentence.
        notes: What was left out, one sentence each.
    """

    class_path: str
    parts: dict[str, dict[str, Any]]
    reason: str
    notes: list[str]


def part_of(path: str) -> str | None:
    """Return the part of a data set that a path names: train, val, test, or None.

    Args:
        path: Path with `/`, such as `labels/train2017` or `trainannot`.
    """
    found = (_PART.fullmatch(word) for word in re.findall("[a-z]+", path.lower()))
    return next((_PART_OF_WORD[match[1]] for match in found if match), None)


def without_part(path: str) -> str:
    """Replace the word that names the part in a path by `*`, so that the files of one data set get one name."""
    return re.sub("[A-Za-z]+", lambda match: "*" if part_of(match[0]) else match[0], path)


def ordered_parts(found: Mapping[str | None, _T]) -> dict[str, _T] | None:
    """Order parts, where a single one is trained on whatever its name; None if there are several without `train`.

    Args:
        found: What belongs to each part.
    """
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    return {part: found[part] for part in PARTS if part in found} if "train" in found else None


def refusal(folder: Path, found: str) -> DataError:
    """Build the error for a folder that cannot be understood.

    Args:
        folder: The folder.
        found: What was seen, a clause.
    """
    return DataError(f"{folder}: {found}. {BY_HAND}.")
