"""Describe the classes of a data set: names, colours and ids. Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import UserError

IGNORE_INDEX = 255
"""Train id of pixels that are ignored in the loss and in all metrics. It is the same for all data sets;
they differ in the raw ids that map to it."""

_UNKNOWN = 254  # marks raw ids outside the table while encoding
MAX_CLASSES = 253
_VOID_COLORS = ((224, 224, 224), (224, 224, 192))  # ours, and that of VOC's colour masks


def voc_palette(num_colors: int) -> list[tuple[int, int, int]]:
    """Compute the colours of the PASCAL VOC development kit.

    The bits of the index are spread over R, G and B: its lowest three bits become the highest bits of the
    three channels, and so on.

    Args:
        num_colors: Number of colours.

    Returns:
        One (R, G, B) in 0-255 per index.
    """
    colors = []
    for index in range(num_colors):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((rgb[0], rgb[1], rgb[2]))
    return colors


@dataclass(frozen=True)
class ClassTable:
    """Describe the classes of a data set by their names, colours and ids.

    Args:
        names: Class names in the order of their train ids 0..K-1; at most 253.
        colors: One (R, G, B) in 0-255 per class for drawing masks; the VOC palette if null.
        raw_ids: Mapping from raw ids in the mask files to train ids. Several raw ids may share a train id.
            If null, raw ids are train ids.
        ignore_ids: Raw ids of pixels to ignore in the loss and in all metrics (void, border).

    Raises:
        ValueError: If there are no, too many or duplicate names, a wrong number of colours, a train id
            outside [0, K), or a raw id that is both a class and ignored.
    """

    names: Sequence[str]
    colors: Sequence[Sequence[int]] | None = None
    raw_ids: Mapping[int, int] | None = None
    ignore_ids: Sequence[int] = (IGNORE_INDEX,)

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        if not 1 <= len(names) <= MAX_CLASSES:
            raise UserError(f"a class table needs 1 to {MAX_CLASSES} names, got {len(names)}.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"class names must be unique; these are used more than once: {', '.join(twice)}.")
        colors = voc_palette(len(names)) if self.colors is None else self.colors
        if len(colors) != len(names) or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in colors):
            raise UserError(
                f"colors must hold one (R, G, B) in 0-255 for each of the {len(names)} classes, got {colors}."
            )
        raw_ids = self.raw_ids
        if raw_ids is None:
            raw_ids = {i: i for i in range(len(names)) if i not in self.ignore_ids}
        wrong = {raw: train for raw, train in raw_ids.items() if not 0 <= train < len(names)}
        if wrong:
            raise UserError(f"raw_ids must map to train ids in [0, {len(names)}), got {wrong}.")
        both = sorted(set(raw_ids) & set(self.ignore_ids))
        if both:
            raise UserError(
                f"raw ids {both} are both a class and ignored. Remove them from raw_ids or from ignore_ids."
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "colors", tuple(tuple(int(v) for v in c) for c in colors))
        object.__setattr__(self, "raw_ids", dict(sorted(raw_ids.items())))
        object.__setattr__(self, "ignore_ids", tuple(sorted(self.ignore_ids)))

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes without void."""
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """Return the train id of ignored pixels: 255."""
        return IGNORE_INDEX

    def encode(self, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Convert raw ids to train ids.

        Args:
            raw: (H, W) integers of any type.

        Returns:
            The (H, W) uint8 train ids, and the raw values that are not in the table, ascending. Their
            pixels are ignored in the mask.
        """
        known = dict(self.raw_ids or {}) | dict.fromkeys(self.ignore_ids, IGNORE_INDEX)
        if raw.dtype == np.uint8 or raw.dtype == np.uint16:
            table = np.full(int(np.iinfo(raw.dtype).max) + 1, _UNKNOWN, dtype=np.uint8)
            for raw_id, train_id in known.items():
                if 0 <= raw_id < len(table):
                    table[raw_id] = train_id
            mask = table[raw]
        else:  # too many possible values for a table
            values, positions = np.unique(raw, return_inverse=True)
            ids = np.array([known.get(int(value), _UNKNOWN) for value in values], dtype=np.uint8)
            mask = ids[positions].reshape(raw.shape)
        outside = mask == _UNKNOWN
        if not outside.any():
            return mask, []
        unknown = [int(value) for value in np.unique(raw[outside])]
        mask[outside] = IGNORE_INDEX
        return mask, unknown

    def encode_colors(self, packed: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int, int]]]:
        """Convert a mask that shows classes by their colours to train ids.

        A mask with equal channels may hold raw ids instead. They are tried first if `raw_ids` were given, else after
        the colours: an image without any object is black, and black may be the colour of any class. Light grey and
        VOC's (224, 224, 192) are ignored pixels, as in masks that are drawn with `flat_palette` or by VOC.

        Args:
            packed: (H, W) integers, R * 65536 + G * 256 + B.

        Returns:
            The (H, W) uint8 train ids, and the colours that are not in the table. Their pixels are ignored.
        """
        values, positions = np.unique(packed, return_inverse=True)
        channels = np.stack([values >> 16, (values >> 8) & 255, values & 255], axis=1)
        known = dict.fromkeys(_VOID_COLORS, IGNORE_INDEX)
        known |= {tuple(color): index for index, color in enumerate(self.colors or ())}  # type: ignore[misc]
        colors = [(int(r), int(g), int(b)) for r, g, b in channels]
        is_by_color = self._has_default_ids and all(color in known for color in colors)
        if not is_by_color and (channels == channels[:, :1]).all():
            ids, unknown = self.encode(channels[:, 0].astype(np.uint8))
            if not unknown:
                return ids[positions].reshape(packed.shape), []
        ids = np.array([known.get(color, IGNORE_INDEX) for color in colors], dtype=np.uint8)
        return ids[positions].reshape(packed.shape), [color for color in colors if color not in known]

    @property
    def _has_default_ids(self) -> bool:
        """Check whether raw ids are train ids."""
        return all(raw == train for raw, train in (self.raw_ids or {}).items())

    def flat_palette(self) -> list[int]:
        """Return the 256 x 3 values of a palette PNG: the classes' colours, and light grey for ignored pixels."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: self.num_classes] = np.asarray(self.colors)
        palette[IGNORE_INDEX] = _VOID_COLORS[0]
        return [int(v) for v in palette.reshape(-1)]

    def to_dict(self) -> dict[str, Any]:
        """Convert the table to plain lists and dictionaries for YAML, JSON and checkpoints."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors or ()],
            "raw_ids": dict(self.raw_ids or {}),
            "ignore_ids": list(self.ignore_ids),
        }


def class_mismatch(tables: Mapping[str, ClassTable]) -> str | None:
    """Describe how the class tables of data sets differ; None if all have the same classes in the same order.

    Args:
        tables: The class tables by the data sets' keys in the configuration, the one to train on first.
    """
    if not tables:
        return None
    first, *others = tables
    names = list(tables[first].names)
    for key in others:
        own = list(tables[key].names)
        if own == names:
            continue
        differing = ", ".join(sorted(set(own) ^ set(names))) or "their order"
        listed = ", ".join(dict.fromkeys(name for name in [*names, *own] if name != "background"))
        return (
            f"{key} has the classes {own}, but {first} has {names} (different: {differing}). "
            f"Set the same class table for both; for COCO files, set init_args.classes of both to [{listed}]."
        )
    return None


def moved_class(trained: Sequence[str], names: Sequence[str]) -> str | None:
    """Describe a class that has another index than in the training, so that every figure would be of another class.

    Args:
        trained: Class names of the training, by index.
        names: Class names of the data, by index.

    Returns:
        A clause; None if every name that both have has the same index in both.
    """
    for index, name in enumerate(names):
        if name in trained and (place := list(trained).index(name)) != index:
            return f"{name} is class {place} there and class {index} here"
    return None
