"""Recognise by their names the images that were cut from one photo, or made from one."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

_COPY = re.compile(r"^(.+)\.rf\.[0-9a-f]{16,}\.")
_NAMED = re.compile(
    r"^(.+?)[_. -](?:tile|crop|patch)[_. -]?\d+(?:[_. -]\d+)*\."
    r"|^(.+?)[_. -](?:x\d+[_. -]?y|y\d+[_. -]?x|r(?:ow)?\d+[_. -]?c(?:ol)?)\d+\.",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"^(.+?)[_-](\d{1,5})[_-](\d{1,5})\.")
_MIN_STEP = 16  # pixels between two crops; photos whose names end in two numbers have no common step


class Crops(NamedTuple):
    """Hold the images that were made from one photo.

    Attributes:
        names: Keys of the images.
        pattern: Pattern for `PatternGroups` that keeps them in one fold.
    """

    names: list[str]
    pattern: str


def find_crops(names: Sequence[str], pixels: Sequence[int]) -> list[Crops]:
    """Find images whose names say that they were made from one photo.

    These are copies as Roboflow exports them (`photo_jpg.rf.<hash>.jpg`), numbered tiles (`photo_tile_3.png`,
    `photo_x0_y512.png`, `photo_r1_c2.png`), and names that end in the place of the crop in pixels (`photo_0_512.png`).
    In the last, the places must be multiples of one step that is no larger than the crops, which frames of a video and
    times of photos are not.

    Args:
        names: Keys of all images.
        pixels: Number of pixels of each image.
    """
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, key in enumerate(names):
        path = PurePosixPath(key)
        for expression in (_COPY, _NAMED, _PLAIN):
            if match := expression.search(path.name):
                photo = str(path.parent / next(filter(None, match.groups())))
                found[photo, expression.pattern].append(index)
                if expression is _PLAIN:
                    places[photo, expression.pattern] += [int(match[2]), int(match[3])]
                break
    return [
        Crops([names[index] for index in indices], _PATTERNS[key[1]])
        for key, indices in found.items()
        if len(indices) > 1 and (key not in places or _are_places(places[key], min(pixels[i] for i in indices)))
    ]


_PATTERNS = {
    _COPY.pattern: r"^(.+)\.rf\.",
    _NAMED.pattern: r"(?i)^(.+?)[_. -](?:tile|crop|patch|x|y|r|row)[_. -]?\d",
    _PLAIN.pattern: r"^(.+?)[_-]\d+[_-]\d+\.",
}


def _are_places(numbers: Sequence[int], pixels: int) -> bool:
    """Check whether numbers are places of crops: multiples of a step that is no longer than twice the crop's side."""
    step = math.gcd(*numbers)
    return _MIN_STEP <= step <= 2 * math.sqrt(max(pixels, 1))
