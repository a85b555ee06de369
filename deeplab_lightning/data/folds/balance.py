"""How even folds are: the figures of a split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.tables import csv_text

Floats = npt.NDArray[np.float64]

_MAX_FOR_PIGEONHOLES = 20  # images of a class in a fold; among more, no few decide
_WORTH_SAYING = 0.2  # bound from which a class counts as one that cannot be balanced


@dataclass(frozen=True)
class Balance:
    """Figures of a split over its folds.

    Attributes:
        sizes: (n_folds,) images.
        images: (n_folds, K) images that hold each class.
        objects: (n_folds, K) objects.
        pixels: (n_folds, K) pixels, or whatever areas were given.
        object_deviation: (n_folds, K) |objects - even share| / even share; nan for classes without objects.
        pixel_deviation: (n_folds, K) likewise.
        divergence: (n_folds,) Jensen-Shannon divergence (base 2, in [0, 1]) between the fold's and the
            whole set's distribution of foreground pixels over the classes.
    """

    sizes: npt.NDArray[np.int64]
    images: Floats
    objects: Floats
    pixels: Floats
    object_deviation: Floats
    pixel_deviation: Floats
    divergence: Floats

    def summary(self) -> dict[str, float]:
        """Mean and largest deviations over the classes with at least as many images as folds, and the rest.

        `object_mean`, `object_max`, `pixel_mean`, `pixel_max` (fractions of the even share),
        `divergence_max`, `size_min`, `size_max`. Deviations are nan if there is no such class.
        """
        can = self.images.sum(axis=0) >= len(self.sizes)
        figures = {}
        for name, deviation in (("object", self.object_deviation), ("pixel", self.pixel_deviation)):
            figures[f"{name}_mean"] = float(deviation[:, can].mean()) if can.any() else np.nan
            figures[f"{name}_max"] = float(deviation[:, can].max()) if can.any() else np.nan
        figures["divergence_max"] = float(self.divergence.max())
        return {**figures, "size_min": float(self.sizes.min()), "size_max": float(self.sizes.max())}

    def rows(self, classes: Sequence[str]) -> list[dict[str, int | float | str]]:
        """A row per fold and class: fold, class, images, objects, area, object_deviation, area_deviation."""
        columns = (self.images, self.objects, self.pixels, self.object_deviation, self.pixel_deviation)
        names = ("images", "objects", "area", "object_deviation", "area_deviation")
        return [
            {
                "fold": fold,
                "class": name,
                **{key: float(values[fold, index]) for key, values in zip(names, columns, strict=True)},
            }
            for fold in range(len(self.sizes))
            for index, name in enumerate(classes)
        ]

    def to_csv(self, classes: Sequence[str]) -> str:
        """The rows as CSV with a header."""
        rows = self.rows(classes)
        return csv_text([[*rows[0]], *([f"{v:.6g}" if isinstance(v, float) else v for v in r.values()] for r in rows)])


def fold_balance(objects: npt.ArrayLike, pixels: npt.ArrayLike, folds: npt.ArrayLike, n_folds: int) -> Balance:
    """Measure a split.

    Args:
        objects: (N, K) objects of each foreground class in each image.
        pixels: (N, K) pixels, or shares of the picture.
        folds: (N,) fold of each image.
        n_folds: Number of folds.
    """
    counts, areas = np.asarray(objects, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    assigned = np.asarray(folds)
    members = assigned[None, :] == np.arange(n_folds)[:, None]  # (n_folds, N)
    images, counts, areas = (members @ values for values in (((counts > 0) | (areas > 0)) * 1.0, counts, areas))
    return Balance(
        sizes=members.sum(axis=1),
        images=images,
        objects=counts,
        pixels=areas,
        object_deviation=_deviation(counts),
        pixel_deviation=_deviation(areas),
        divergence=_jensen_shannon(areas),
    )


@dataclass(frozen=True)
class UnbalanceableClass:
    """A class that no split can balance well.

    Attributes:
        index: The class.
        reason: Why, in a few words.
        num_images: Images that hold it.
        num_groups: Groups that hold it; images without groups.
        num_objects: Its objects.
        object_bound: Largest deviation of objects over the folds that is the best possible; nan if absent.
        pixel_bound: Likewise of pixels.
        object_reached: Largest deviation of objects of the split at hand.
        pixel_reached: Likewise of pixels.
    """

    index: int
    reason: str
    num_images: int
    num_groups: int
    num_objects: int
    object_bound: float
    pixel_bound: float
    object_reached: float
    pixel_reached: float


def unbalanceable_classes(
    objects: npt.ArrayLike,
    pixels: npt.ArrayLike,
    folds: npt.ArrayLike,
    n_folds: int,
    groups: Sequence[str] | None = None,
) -> list[UnbalanceableClass]:
    """The classes whose best possible deviation, alone, is above 0.2, with the reason and what was reached.

    Args:
        objects: (N, K) objects of each foreground class in each image.
        pixels: (N, K) pixels, or shares of the picture.
        folds: (N,) fold of each image.
        n_folds: Number of folds.
        groups: (N,) labels of what stays together.
    """
    counts, areas = np.asarray(objects, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    presence = (counts > 0) | (areas > 0)
    balance = fold_balance(counts, areas, folds, n_folds)
    num_images, num_objects = presence.sum(axis=0), counts.sum(axis=0)
    if groups is not None:
        labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        gather = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
        counts, areas = gather @ counts, gather @ areas
    num_groups = ((counts > 0) | (areas > 0)).sum(axis=0)
    object_bounds, pixel_bounds = lower_bounds(counts, n_folds)[0], lower_bounds(areas, n_folds)[0]
    unit = "image" if groups is None else "group"
    found = []
    for index in range(counts.shape[1]):
        bounds = object_bounds[index], pixel_bounds[index]
        biggest, what = max(
            (float(values[:, index].max()) * n_folds / max(float(values[:, index].sum()), 1e-300), name)
            for values, name in ((counts, "objects"), (areas, "area"))
        )
        if num_images[index] == 0:
            reason = "absent"
        elif num_images[index] < n_folds:
            reason = "fewer images than folds"
        elif num_groups[index] < n_folds:
            reason = "fewer groups than folds"
        elif max(bounds) <= _WORTH_SAYING:
            continue
        elif biggest > 1 + _WORTH_SAYING:
            reason = f"one {unit} holds {biggest:.1f} times a fold's share of its {what}"
        else:
            reason = f"a few {unit}s hold most of it" if bounds[1] > bounds[0] else "too few objects to divide"
        found.append(
            UnbalanceableClass(
                index=index,
                reason=reason,
                num_images=int(num_images[index]),
                num_groups=int(num_groups[index]),
                num_objects=int(num_objects[index]),
                object_bound=float(bounds[0]),
                pixel_bound=float(bounds[1]),
                object_reached=float(balance.object_deviation[:, index].max()),
                pixel_reached=float(balance.pixel_deviation[:, index].max()),
            )
        )
    return found


def lower_bounds(values: npt.ArrayLike, n_folds: int) -> tuple[Floats, Floats]:
    """The deviations below which no split can get a class, even if it had nothing else to balance.

    Lower bounds by counting, for the largest and for the mean deviation over the folds: whole objects cannot
    be divided, a picture with more than a fold's share overfills its fold and starves the others, fewer
    pictures than folds leave folds empty, and among j n_folds + 1 pictures some j + 1 share a fold.

    Args:
        values: (N, K) objects or pixels of each class in each image, or in each group.
        n_folds: Number of folds.

    Returns:
        (K,) of the largest and (K,) of the mean deviation, as fractions of the even share; nan for classes
        without any.
    """
    columns = np.asarray(values, dtype=np.float64).T
    bounds = [_lower_bounds(np.sort(column[column > 0])[::-1], n_folds) for column in columns]
    return np.array([largest for largest, _ in bounds]), np.array([mean for _, mean in bounds])


def _lower_bounds(sizes: Floats, n_folds: int) -> tuple[float, float]:
    """Of one class; `sizes` positive, largest first."""
    if len(sizes) == 0:
        return np.nan, np.nan
    share = float(sizes.sum()) / n_folds
    largest = [0.0, sizes[0] / share - 1]
    mean = [2 * float(np.maximum(sizes - share, 0).sum()) / (n_folds * share)]
    mean.append(2 * max(n_folds - len(sizes), 0) / n_folds)
    if len(sizes) < n_folds:
        largest.append(1.0)
    if np.array_equal(sizes, np.rint(sizes)):
        fraction = share - np.floor(share)
        largest.append(max(fraction, 1 - fraction) / share if fraction > 0 else 0.0)
        mean.append(2 * fraction * (1 - fraction) / share)
    for r in range(1, min(n_folds, len(sizes))):  # the r largest lie in at most r folds
        largest.append(1 - float(sizes[r:].sum()) / ((n_folds - r) * share))
    for j in range(1, min((len(sizes) - 1) // n_folds, _MAX_FOR_PIGEONHOLES) + 1):
        largest.append(float(sizes[j * n_folds - j : j * n_folds + 1].sum()) / share - 1)
    return max(largest), max(mean)


def _deviation(sums: Floats) -> Floats:
    share = sums.mean(axis=0)
    return np.divide(np.abs(sums - share), share, out=np.full_like(sums, np.nan), where=share > 0)


def _jensen_shannon(sums: Floats) -> Floats:
    """Of each row's distribution against that of all rows together."""
    whole = sums.sum(axis=0) / max(float(sums.sum()), 1e-300)
    rows = np.divide(
        sums, sums.sum(axis=1, keepdims=True), out=np.zeros_like(sums), where=sums.sum(axis=1, keepdims=True) > 0
    )
    middle = (rows + whole) / 2

    def relative_entropy(p: Floats) -> Floats:
        ratio = np.divide(p, middle, out=np.ones_like(middle), where=p > 0)
        return np.asarray((p * np.log2(ratio)).sum(axis=1))

    return (relative_entropy(rows) + relative_entropy(np.broadcast_to(whole, rows.shape))) / 2
