"""Find the regions of an image where networks that were not trained on it contradict its labels."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle_tools
from scipy import ndimage
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX

_EIGHT = np.ones((3, 3), dtype=bool)  # a pixel touches its 8 neighbours
_REACH = 0.004  # distance of a region's core from its edge, as a fraction of the image's diagonal
_MIN_REACH = 2  # pixels
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


class Region(NamedTuple):
    """Hold a connected region that has one label and for which the networks predict one other class.

    Attributes:
        label: Train id of its label.
        predicted: Train id of the class that is predicted.
        area: Number of its pixels.
        box: (left, top, width, height) in pixels.
        rle: Compressed COCO RLE of its pixels.
        core: Share of the image's pixels that its core has, see `find_regions`.
        margin: Mean over the core of the predicted class's probability minus the label's, in [0, 1].
    """

    label: int
    predicted: int
    area: int
    box: tuple[int, int, int, int]
    rle: dict[str, Any]
    core: float
    margin: float

    def decode(self) -> Bools:
        """Return the pixels of the region, (H, W)."""
        pixels: Bools = rle_tools.decode({**self.rle, "counts": self.rle["counts"].encode()}).astype(bool)
        return pixels


def find_regions(probabilities: Tensor, mask: npt.NDArray[np.uint8], *, min_area: int) -> tuple[list[Region], Counts]:
    """Find the regions of one image whose labels are contradicted, in no order.

    Pixels that touch, also at a corner, and have the same label and the same other class with the highest probability
    are one region. Labels and predictions differ by a few pixels along every border, so a region counts only if it has
    a core: pixels all of whose neighbours within .4 % of the image's diagonal, and at least 2 pixels, are in the region
    too. Evidence is taken from the core alone. Ignored pixels are in no region.

    Args:
        probabilities: (K, H, W) float, out of fold.
        mask: (H, W) train ids, or 255 for ignored pixels.
        min_area: Pixels of the smallest region.

    Returns:
        The regions, and (K, K) pixel counts of the image, rows label, columns prediction.
    """
    num_classes = len(probabilities)
    is_void = mask == IGNORE_INDEX
    highest, found = probabilities.max(dim=0)
    labels = torch.from_numpy(np.where(is_void, 0, mask)).to(found.device).long()
    margins = (highest - probabilities.gather(0, labels[None])[0]).cpu().numpy()  # (H, W)
    codes = (mask.astype(np.int32) * num_classes + found.cpu().numpy()).astype(np.int32)  # a pair of classes each
    counts = np.bincount(codes[~is_void], minlength=num_classes**2).reshape(num_classes, num_classes)
    codes[is_void | (codes % num_classes == mask)] = -1
    reach = max(_MIN_REACH, round(_REACH * math.hypot(*mask.shape)))
    is_core = _is_core(codes, reach)
    regions = []
    for code in np.unique(codes[is_core]).tolist():
        numbers, _ = ndimage.label(codes == code, _EIGHT)
        for number, window in enumerate(ndimage.find_objects(numbers), start=1):
            inside = numbers[window] == number
            core = inside & is_core[window]
            if np.count_nonzero(inside) >= min_area and core.any():
                regions.append(_region(divmod(code, num_classes), inside, window, mask.shape, core, margins[window]))
    return regions, counts


def _is_core(codes: Codes, reach: int) -> Bools:
    """Mark the pixels of (H, W) with a code from 0 that all pixels of the square around them have too."""
    side = 2 * reach + 1
    lowest, highest = ndimage.minimum_filter(codes, side), ndimage.maximum_filter(codes, side)
    is_core: Bools = (lowest == highest) & (codes >= 0)
    return is_core


def _region(
    pair: tuple[int, int],
    inside: Bools,
    window: tuple[slice, slice],
    size: tuple[int, ...],
    core: Bools,
    margins: npt.NDArray[np.float32],
) -> Region:
    rows, columns = window
    pixels = np.zeros(size, dtype=np.uint8, order="F")
    pixels[window] = inside
    rle = rle_tools.encode(pixels)
    return Region(
        *pair,
        area=int(np.count_nonzero(inside)),
        box=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
        rle={"size": list(size), "counts": rle["counts"].decode("ascii")},
        core=float(np.count_nonzero(core)) / (size[0] * size[1]),
        margin=float(margins[core].mean(dtype=np.float64)),
    )
