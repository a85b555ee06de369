"""The class table: what a data set's pixels mean. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import UserError

IGNORE_INDEX = 255
"""Train id of pixels that count nowhere: not in the loss, not in a metric. The same in all data sets;
what differs between them is which raw ids map to it."""

_UNKNOWN = 254  # marks raw ids outside the table while encoding
MAX_CLASSES = 253


def voc_palette(num_colors: int) -> list[tuple[int, int, int]]:
    """The colours of the PASCAL VOC development kit: the bits of the index spread over R, G and B."""
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
    """Names, colours and ids of the classes of a data set.

    Args:
        names: Class names in the order of their train ids 0..K-1; at most 253.
        colors: One (R, G, B) in 0-255 per class for pictures of masks; the VOC palette if null.
        raw_ids: Raw id in the files -> train id. Several raw ids may share a train id. If null, raw
            ids are train ids.
        ignore_ids: Raw ids of pixels that count nowhere (void, border).

    Raises:
        ValueError: For no, too many or duplicate names, a wrong number of colours, a train id outside
            [0, K), or a raw id that is both a class and ignored.
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
            raise UserError(f"class names must differ; these stand more than once: {', '.join(twice)}.")
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
            raise UserError(f"raw ids {both} are both a class and ignored; take them out of one of the two.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "colors", tuple(tuple(int(v) for v in c) for c in colors))
        object.__setattr__(self, "raw_ids", dict(sorted(raw_ids.items())))
        object.__setattr__(self, "ignore_ids", tuple(sorted(self.ignore_ids)))

    @property
    def num_classes(self) -> int:
        """K, without void."""
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """Train id of ignored pixels: 255."""
        return IGNORE_INDEX

    def encode(self, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Raw ids -> train ids.

        Args:
            raw: (H, W) unsigned integers of 8 or 16 bits.

        Returns:
            The (H, W) uint8 train ids, and the raw values that the table does not hold (ascending;
            their pixels are ignored in the mask).
        """
        table = np.full(int(np.iinfo(raw.dtype).max) + 1, _UNKNOWN, dtype=np.uint8)
        for raw_id, train_id in dict(self.raw_ids or {}).items():
            if 0 <= raw_id < len(table):
                table[raw_id] = train_id
        table[[i for i in self.ignore_ids if 0 <= i < len(table)]] = IGNORE_INDEX
        mask = table[raw]
        outside = mask == _UNKNOWN
        if not outside.any():
            return mask, []
        unknown = [int(value) for value in np.unique(raw[outside])]
        mask[outside] = IGNORE_INDEX
        return mask, unknown

    def flat_palette(self) -> list[int]:
        """256 x 3 values for a palette PNG: the classes' colours, light grey for ignored pixels."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: self.num_classes] = np.asarray(self.colors)
        palette[IGNORE_INDEX] = 224
        return [int(v) for v in palette.reshape(-1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, as they may stand in YAML, JSON and checkpoints."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors or ()],
            "raw_ids": dict(self.raw_ids or {}),
            "ignore_ids": list(self.ignore_ids),
        }
