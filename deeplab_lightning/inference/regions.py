"""Replace regions of a class that are too small to be an object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from deeplab_lightning.errors import UserError

_EIGHT = np.ones((3, 3), dtype=bool)  # a pixel touches its 8 neighbours
_BAND = 1 << 24  # pixels that are counted at once
Labels = npt.NDArray[np.uint8]


class RegionFilter:
    """Replace small connected regions of each class by the class with which they share the longest border.

    Pixels of a class that touch, also at a corner, are one region. Regions below the smallest area of their class are
    taken away, all at once; those that touch each other then count as one hole, whichever their classes. A hole gets
    the class of most of the pixel edges around it, the first class if several have as many. No region is below the
    smallest area of its class afterwards. Labels stay as they are if no region is large enough.

    Args:
        areas: K smallest areas in pixels, one per class; 0 keeps all regions of the class.

    Raises:
        ValueError: If an area is negative.
    """

    def __init__(self, areas: Sequence[int]) -> None:
        if min(areas, default=0) < 0:
            raise UserError(f"--min_area must not be negative, got {min(areas)}.")
        self.areas = list(areas)

    @classmethod
    def parse(cls, given: str | int | Mapping[str, int] | None, names: Sequence[str]) -> "RegionFilter | None":
        """Read `64` for all classes, or `bottle=64,can=20` for some; None for no filter.

        Args:
            given: The option, or a mapping from class name to area in pixels.
            names: K class names.

        Raises:
            ValueError: If it is something else, names an unknown class, or an area is negative.
        """
        if given is None:
            return None
        if isinstance(given, Mapping):
            areas: dict[str, Any] = dict(given)
        elif "=" in str(given):
            areas = {name.strip(): area for name, _, area in (part.rpartition("=") for part in str(given).split(","))}
        else:
            areas = dict.fromkeys(names, given)
        if unknown := [name for name in areas if name not in names]:
            raise UserError(f"--min_area names no class {unknown[0]!r}. The classes are {', '.join(names)}.")
        try:
            return cls([int(areas.get(name, 0)) for name in names])
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--min_area must be a number of pixels, such as 64, or one per class, such as {names[-1]}=64, got "
                f"{given!r}."
            ) from error

    def __call__(self, labels: Tensor) -> Tensor:
        """Filter labels (B, H, W) uint8."""
        filtered = [torch.from_numpy(self.filtered(own)) for own in labels.cpu().numpy()]
        return torch.stack(filtered).to(labels.device)

    def filtered(self, labels: Labels) -> Labels:
        """Return labels (H, W) without small regions; the labels themselves if there is none."""
        is_small = np.zeros(labels.shape, dtype=bool)
        for train_id, area in enumerate(self.areas):
            if area > 1:
                _mark_small(labels == train_id, area, is_small)
        if not is_small.any() or is_small.all():
            return labels
        holes, count = ndimage.label(is_small, _EIGHT)  # (H, W) int32, 0 outside
        edges = np.zeros((count + 1) * len(self.areas), dtype=np.int64)
        for here, there in _NEIGHBOURS:
            at_border = is_small[here] & ~is_small[there]
            places = holes[here][at_border].astype(np.int64) * len(self.areas) + labels[there][at_border]
            edges += np.bincount(places, minlength=len(edges))
        chosen = edges.reshape(-1, len(self.areas)).argmax(axis=1).astype(np.uint8)
        result = labels.copy()
        result[is_small] = chosen[holes[is_small]]
        return result

    def describe(self) -> list[int]:
        """Return the smallest area of each class, for a record."""
        return self.areas


_NEIGHBOURS = (  # a pixel and the one above, below, left and right of it
    (np.s_[1:, :], np.s_[:-1, :]),
    (np.s_[:-1, :], np.s_[1:, :]),
    (np.s_[:, 1:], np.s_[:, :-1]),
    (np.s_[:, :-1], np.s_[:, 1:]),
)


def _mark_small(is_class: npt.NDArray[np.bool_], area: int, is_small: npt.NDArray[np.bool_]) -> None:
    """Set `is_small` where a class has regions below an area."""
    regions, count = ndimage.label(is_class, _EIGHT)  # (H, W) int32
    flat = regions.reshape(-1)
    areas = np.zeros(count + 1, dtype=np.int64)
    for start in range(0, len(flat), _BAND):  # bincount copies what it counts as int64
        areas += np.bincount(flat[start : start + _BAND], minlength=count + 1)
    below = areas < area
    below[0] = False
    if below.any():
        is_small |= below[regions]
