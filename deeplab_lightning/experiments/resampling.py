"""Resample images or groups of images, for the intervals of an experiment's mIoU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deeplab_lightning.experiments.significance import (
    MIN_BOOTSTRAP_UNITS,
    Figure,
    bootstrap,
    jackknife,
    leave_out,
    pooled_iou,
)
from deeplab_lightning.metrics.per_image import PerImageCounts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Resampled:
    """Hold figures of the experiments, such as the IoU of each class, over resampled images.

    Attributes:
        figures: (M, R, F) figures of M experiments over the same R resamples.
        is_jackknife: Whether each resample leaves one group out; otherwise they are drawn with replacement.
        notes: Limits of the intervals, one sentence each.
    """

    figures: Floats
    is_jackknife: bool
    notes: list[str]

    def interval(self, values: Floats, observed: float) -> tuple[float, float]:
        """Return the 95 % interval of a figure from its (R,) values; nan if the figure is."""
        if np.isnan(observed):
            return observed, observed
        if self.is_jackknife:
            found = jackknife(values, observed)
            return found.low, found.high
        low, high = np.nanquantile(values, [0.025, 0.975])
        return float(low), float(high)


def resample(
    known: Sequence[PerImageCounts], groups: Sequence[str] | None, num_resamples: int, *, figure: Figure = pooled_iou
) -> Resampled:
    """Resample images or groups by the bootstrap, or leave them out one by one if there are few."""
    units = known[0].names if groups is None else groups
    count = len(set(units))
    if count >= MIN_BOOTSTRAP_UNITS:
        return Resampled(bootstrap(known, figure=figure, groups=groups, num_resamples=num_resamples), False, [])
    kind = "images" if groups is None else "groups of images"
    note = f"with only {count} {kind}, intervals over images come from leaving out one at a time (jackknife)."
    if count < 2:
        note = f"no intervals over images: there is only one {'image' if groups is None else 'group'}."
    return Resampled(leave_out(known, units, figure=figure), True, [note])
