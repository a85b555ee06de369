"""Find the class table of masks by the values or colours that they hold and a file that names the classes."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from deeplab_lightning.data.classes import IGNORE_INDEX, MAX_CLASSES
from deeplab_lightning.data.datasets.base import count_values
from deeplab_lightning.data.init.blends import Blend, blend_error, confirm_blends, find_blends, solid_values
from deeplab_lightning.data.init.class_files import Color, NamedClass
from deeplab_lightning.data.mask_files import RawMask, read_raw_mask
from deeplab_lightning.errors import DataError

_MAX_NAMED = 8  # values in one message
_VOID_COLORS = ((224, 224, 224), (224, 224, 192))  # that `ClassTable.encode_colors` ignores


class MaskValues(NamedTuple):
    """Hold what all masks of a data set hold.

    Attributes:
        pixels: Number of pixels of each raw value; in colour masks, of each colour as R * 65536 + G * 256 + B.
        has_colors: Whether they are colour masks.
        palette: The colours R, G, B of the raw values 0, 1, ... in the first mask with a palette, else None.
        first: The first mask with each value.
        blends: Values that look like blends of two classes.
    """

    pixels: dict[int, int]
    has_colors: bool
    palette: bytes | None
    first: dict[int, Path]
    blends: list[Blend]

    def refuse_blends(self) -> None:
        """Refuse masks with blends.

        Raises:
            DataError: If there is one.
        """
        if self.blends:
            raise blend_error(self.blends, self.first, has_colors=self.has_colors)

    def text(self) -> str:
        """Write the values or colours for a message."""
        values = sorted(self.pixels)
        shown = ", ".join(str(_color(value) if self.has_colors else value) for value in values[:_MAX_NAMED])
        others = f" and {len(values) - _MAX_NAMED} more" if len(values) > _MAX_NAMED else ""
        return f"{'colours (R, G, B)' if self.has_colors else 'values'} {shown}{others}"


class FoundClasses(NamedTuple):
    """Hold a class table.

    Attributes:
        arguments: Arguments of `ClassTable`.
        values: What stands in the masks for each class, a text.
        reason: Where the names are from.
    """

    arguments: dict[str, Any]
    values: list[str]
    reason: str


def read_mask_values(paths: Sequence[Path]) -> MaskValues:
    """Read all masks and count the pixels of each value.

    Args:
        paths: The mask files.

    Raises:
        UserError: If a mask cannot be read, or only some of them are colour masks.
    """
    pixels: Counter[int] = Counter()
    first: dict[int, Path] = {}
    solid: set[int] = set()
    palettes: list[bytes] = []
    kinds: dict[bool, Path] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, own in zip(paths, pool.map(_contents, paths), strict=True):
            pixels.update(own.pixels)
            first |= dict.fromkeys(own.pixels.keys() - first.keys(), path)
            solid.update(own.solid)
            kinds.setdefault(own.has_colors, path)
            palettes += [own.palette] if own.palette is not None and not palettes else []
    if len(kinds) > 1:
        raise DataError(f"{kinds[True]} is a colour mask, and {kinds[False]} is none: convert them to one kind.")
    has_colors = True in kinds
    counts = dict(sorted(pixels.items()))
    if has_colors and all(len(set(_color(value))) == 1 for value in pixels):  # values in three channels
        has_colors, counts = False, {value & 255: number for value, number in counts.items()}
        first, solid = {value & 255: path for value, path in first.items()}, {value & 255 for value in solid}

    def ids_of(value: int) -> npt.NDArray[Any]:
        ids: npt.NDArray[Any] = read_raw_mask(first[value]).ids
        return ids if has_colors else ids & 255

    blends = confirm_blends(find_blends(counts, solid, has_colors=has_colors), ids_of)
    values = MaskValues(counts, has_colors, palettes[0] if palettes else None, first, blends)
    if len(pixels) > MAX_CLASSES + 1:
        values.refuse_blends()
        kind = "colours" if has_colors else "values"
        raise DataError(f"the masks hold {len(pixels)} {kind}, and at most {MAX_CLASSES} classes are possible.")
    return values


class _Contents(NamedTuple):
    """Hold what one mask holds: pixels of each value, values that fill 3 x 3 pixels, palette, and whether in colour."""

    pixels: dict[int, int]
    solid: list[int]
    palette: bytes | None
    has_colors: bool


def _contents(path: Path) -> _Contents:
    raw: RawMask = read_raw_mask(path)
    return _Contents(count_values(raw.ids), solid_values(raw.ids), raw.palette, raw.has_colors)


def find_classes(values: MaskValues, files: Mapping[str, list[NamedClass]]) -> FoundClasses:
    """Choose the class table that fits the masks: of the file that names their classes, or with numbered names.

    Args:
        values: What the masks hold.
        files: Classes by the name of their file.

    Raises:
        DataError: If several files fit, one names a class too few, or no file fits and some values look like blends.
    """
    fitting = {
        name: found for name, classes in files.items() if classes and (found := _fit(values, classes, name)) is not None
    }
    if len(fitting) > 1:
        raise DataError(f"{' and '.join(fitting)} both name the classes of the masks, differently. Keep one of them.")
    if fitting:
        return next(iter(fitting.values()))
    values.refuse_blends()
    others = [
        f"{name} names {len(classes)} classes that do not fit" if classes else f"{name} is not text in UTF-8"
        for name, classes in files.items()
    ]
    reason = "; ".join(others) or "no file names them"
    return _colors_by_number(values, reason) if values.has_colors else _values_by_number(values, reason)


def _fit(values: MaskValues, classes: Sequence[NamedClass], file: str) -> FoundClasses | None:
    """Build the class table of a file; None if the masks hold something else."""
    if values.has_colors:
        return _fit_colors(values, classes, file)
    named = _by_palette(values, classes) or {
        index if entry.id is None else entry.id: entry for index, entry in enumerate(classes)
    }
    if set(values.pixels) == {0, 255} and len(named) == 2:
        named = dict(zip((0, 255), named.values(), strict=True))
    unknown = sorted(set(values.pixels) - set(named) - {IGNORE_INDEX})
    if unknown == [len(named)] and sorted(named) == list(range(len(named))):
        if not any(entry.name == "background" for entry in classes):
            raise DataError(
                f"{file} names {len(named)} classes, and the masks hold the {values.text()}. Add a line to it: "
                f"background as the first if 0 is no class, or void as the last if {unknown[0]} is none."
            )
    elif unknown:
        return None
    void = [value for value, entry in named.items() if entry.is_void]
    ignored = sorted({*void, *unknown, *({IGNORE_INDEX} - set(named))})
    return _table({value: entry for value, entry in named.items() if value not in void}, ignored, f"named by {file}")


def _table(named: Mapping[int, NamedClass], ignored: Sequence[int], reason: str) -> FoundClasses:
    """Build the table of raw values with names, of which several may share one."""
    names = list(dict.fromkeys(entry.name for entry in named.values()))
    colors = {entry.name: list(entry.color) for entry in reversed(list(named.values())) if entry.color}
    raw_ids = {value: names.index(entry.name) for value, entry in named.items()}
    arguments: dict[str, Any] = {"names": names}
    if len(colors) == len(names):
        arguments["colors"] = [colors[name] for name in names]
    if raw_ids != {index: index for index in range(len(names))}:
        arguments["raw_ids"] = raw_ids
    arguments["ignore_ids"] = list(ignored)
    texts = [", ".join(str(value) for value, id_ in raw_ids.items() if id_ == index) for index in range(len(names))]
    return FoundClasses(arguments, [f"value {text}" for text in texts], reason)


def _by_palette(values: MaskValues, classes: Sequence[NamedClass]) -> dict[int, NamedClass] | None:
    """Assign the values to the classes by the colours of the palette; None if they do not all have a class."""
    of_color: dict[Color | None, NamedClass] = {entry.color: entry for entry in classes if entry.color is not None}
    found = {value: of_color.get(_palette_color(values.palette, value)) for value in values.pixels}
    named = {value: entry for value, entry in found.items() if entry is not None}
    return named if named and set(values.pixels) <= {*named, IGNORE_INDEX} else None


def _palette_color(palette: bytes | None, value: int) -> Color | None:
    color = tuple((palette or b"")[3 * value : 3 * value + 3])
    return color if len(color) == 3 else None


def _values_by_number(values: MaskValues, reason: str) -> FoundClasses:
    """Name the values by their numbers; 0 and 1, or 0 and 255, are background and foreground.

    255 is void, unless the values are spread evenly from 0 to 255 as grey tones of classes are.
    """
    found = sorted(values.pixels)
    is_spread = len(found) > 1 and found[-1] == IGNORE_INDEX and _is_even([0, *found] if found[0] else found)
    kept = [value for value in found if value != IGNORE_INDEX or is_spread]
    names = ["background", "foreground"] if len(kept) == 2 and kept[0] == 0 and kept[1] in {1, 255} else None
    classes = zip(kept, names or [f"class_{value}" for value in kept], strict=True)
    named = {value: NamedClass(name, value, _shown(values, value)) for value, name in classes}
    if not names:
        reason += "; if one means void, as 11 in CamVid, delete its name and put its value into ignore_ids"
    ignored = [] if is_spread else [IGNORE_INDEX]
    return _table(named, ignored, reason)


def _shown(values: MaskValues, value: int) -> Color | None:
    """Return the colour of a value in the palette, where this shows colours and not grey tones."""
    palette = values.palette or b""
    is_grey = all(palette[i] == palette[i + 1] == palette[i + 2] for i in range(0, len(palette) - 2, 3))
    return None if is_grey else _palette_color(palette, value)


def _is_even(values: Sequence[int]) -> bool:
    steps = [high - low for low, high in pairwise(values)]
    return max(steps) - min(steps) <= 2


def _fit_colors(values: MaskValues, classes: Sequence[NamedClass], file: str) -> FoundClasses | None:
    """Build the class table of a file with colours; None if the masks hold others."""
    colors = {entry.color: entry.name for entry in classes if entry.color is not None}
    found = {_color(value) for value in values.pixels} - set(_VOID_COLORS)
    void = [
        f"; {entry.name} is a class, since colour masks cannot ignore a colour" for entry in classes if entry.is_void
    ]
    return _color_table(colors, f"named by {file}{''.join(void)}") if found <= set(colors) else None


def _colors_by_number(values: MaskValues, reason: str) -> FoundClasses:
    """Name the colours by their numbers, and black the background."""
    found = [color for color in map(_color, values.pixels) if color not in _VOID_COLORS]
    names = {color: f"class_{index}" if any(color) else "background" for index, color in enumerate(found)}
    return _color_table(names, reason)


def _color_table(name_of: Mapping[Color, str], reason: str) -> FoundClasses:
    """Build the table of colours with names.

    A mask whose colours are all grey is read as raw ids first, so these are given for the grey colours.
    """
    names = list(dict.fromkeys(name_of.values()))
    color_of = {name: color for color, name in reversed(list(name_of.items()))}
    colors = [color_of[name] for name in names]
    arguments = {
        "names": names,
        "colors": [list(color) for color in colors],
        "raw_ids": {color[0]: index for index, color in enumerate(colors) if len(set(color)) == 1},
        "ignore_ids": [],
    }
    return FoundClasses(arguments, [f"colour {list(color)}" for color in colors], reason)


def _color(value: int) -> Color:
    """Return R, G, B of a packed colour."""
    return value >> 16, (value >> 8) & 255, value & 255
