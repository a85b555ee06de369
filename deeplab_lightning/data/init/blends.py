"""Recognise masks that were resized with interpolation, which blends the values or colours of classes at borders."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from deeplab_lightning.errors import DataError

_MAX_SOLID = 64  # values whose blends are looked for, the most frequent ones
_MAX_LOOSE = 2000  # values that are looked at, the most frequent ones
_ROUNDING = 1.0  # by which a channel of a blend may differ from the line between two colours
_MAX_FILES = 3  # in one message
_MAX_CONFIRMED = 12  # blends that are looked at in a mask
_REACH = 7  # pixels of the window around a blend in which both of its ends lie, also in masks enlarged threefold
_SHARE = 0.6  # of a blend's pixels that lie between both ends; a thin class mostly lies within one other


class Blend(NamedTuple):
    """Hold a raw value that lies between two others."""

    value: int
    low: int
    high: int


def solid_values(ids: npt.NDArray[Any]) -> list[int]:
    """Return the values of a mask that fill 3 x 3 pixels somewhere, as classes do and blends at borders do not.

    Args:
        ids: (H, W) integers.
    """
    along = (ids[:, :-2] == ids[:, 1:-1]) & (ids[:, 1:-1] == ids[:, 2:])  # (H, W-2)
    down = (ids[:-2] == ids[1:-1]) & (ids[1:-1] == ids[2:])  # (H-2, W)
    is_solid = along[:-2] & along[1:-1] & along[2:] & down[:, 1:-1]  # (H-2, W-2)
    found: list[int] = np.unique(ids[1:-1, 1:-1][is_solid]).tolist()
    return found


def find_blends(pixels: Mapping[int, int], solid: Collection[int], *, has_colors: bool) -> list[Blend]:
    """Find the values that are solid in no mask, and lie between two that are and have more pixels.

    Thin objects may have any value, too. So there are none unless half of the values that are not solid lie so, and
    without colours, where chance is larger, at least as many as there are solid values.

    Args:
        pixels: Number of pixels of each raw value.
        solid: Values that are solid in some mask.
        has_colors: Whether the values are colours, R * 65536 + G * 256 + B.
    """
    ordered = sorted(pixels, key=lambda value: -pixels[value])
    ends = [value for value in ordered if value in solid][:_MAX_SOLID]
    loose = [value for value in ordered if value not in solid][:_MAX_LOOSE]
    points = _channels(loose, has_colors=has_colors)
    counts = np.array([pixels[value] for value in loose])
    found: dict[int, Blend] = {}
    for low, high in combinations(ends, 2):
        start, stop = _channels([low, high], has_colors=has_colors)
        way = stop - start
        place = (points - start) @ way / (way @ way)  # 0 at one end, 1 at the other
        off = np.abs(start + place[:, None] * way - points).max(axis=1, initial=0)
        is_between = (place > 0) & (place < 1) & (off <= _ROUNDING) & (counts < min(pixels[low], pixels[high]))
        for index in np.flatnonzero(is_between):
            found.setdefault(loose[index], Blend(loose[index], low, high))
    is_evidence = 2 * len(found) >= len(loose) and (has_colors or len(found) >= max(2, len(ends)))
    return list(found.values()) if is_evidence else []


def confirm_blends(blends: Sequence[Blend], ids_of: Callable[[int], npt.NDArray[Any]]) -> list[Blend]:
    """Return the blends if most of them lie between pixels of both ends, and none otherwise.

    Args:
        blends: The blends that the values alone suggest.
        ids_of: Returns the (H, W) values of a mask that holds a value.
    """
    looked_at = list(blends)[:_MAX_CONFIRMED]
    confirmed = sum(_lies_between(ids_of(blend.value), blend) for blend in looked_at)
    return list(blends) if 2 * confirmed > len(looked_at) else []


def _lies_between(ids: npt.NDArray[Any], blend: Blend) -> bool:
    """Check whether most pixels of a blend have both ends nearby."""
    near = [ndimage.maximum_filter(ids == end, size=_REACH) for end in (blend.low, blend.high)]
    return bool((near[0] & near[1])[ids == blend.value].mean() >= _SHARE)


def _channels(values: Collection[int], *, has_colors: bool) -> npt.NDArray[np.float64]:
    """Return values as (N, 3) colours, or as (N, 1) numbers."""
    numbers = np.array(list(values), dtype=np.int64)[:, None]
    return (numbers >> [16, 8, 0] & 255 if has_colors else numbers).astype(np.float64)


def blend_error(blends: Collection[Blend], first: Mapping[int, Path], *, has_colors: bool) -> DataError:
    """Build the error for masks with blends.

    Args:
        blends: The blends, at least one.
        first: The first mask with each value.
        has_colors: Whether the values are colours.
    """
    files = sorted({str(first[blend.value]) for blend in blends})
    shown = ", ".join(files[:_MAX_FILES]) + (f" and {len(files) - _MAX_FILES} more" if len(files) > _MAX_FILES else "")
    value, low, high = (_text(value, has_colors=has_colors) for value in min(blends))
    kind, table = ("colour", "class_dict.csv (name,r,g,b)") if has_colors else ("value", "classes.csv (id,name)")
    return DataError(
        f"{shown}: {len(blends)} {kind}{'s' if len(blends) > 1 else ''} in lines too thin for a class, such as {value} "
        f"between {low} and {high}. Interpolation blends classes at their borders: resize the original masks with "
        f"nearest neighbour. If all are classes, name them in a file beside the masks, {table}."
    )


def _text(value: int, *, has_colors: bool) -> str:
    channels = _channels([value], has_colors=has_colors)[0].astype(int).tolist()
    return str(tuple(channels)) if has_colors else str(value)
