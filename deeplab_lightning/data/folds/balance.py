"""Measure how evenly the folds of a split share images, objects and areas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.tables import csv_text

Floats = npt.NDArray[np.float64]

_FIGURES = ("images", "objects", "area", "object_deviation", "area_deviation")  # columns of a table of the folds
_MAX_PIGEONHOLES = 20  # images of a class per fold; with more, single images hardly matter
_MIN_BOUND = 0.2  # a class with a larger lower bound of its deviation cannot be balanced


@dataclass(frozen=True)
class Balance:
    """Hold the sums of each fold and their deviation from the even share.

    Attributes:
        sizes: (n_folds,) number of images.
        images: (n_folds, K) number of images that hold each class.
        objects: (n_folds, K) number of objects of each class.
        pixels: (n_folds, K) area of each class, in the unit of the areas given: pixels or fractions.
        object_deviation: (n_folds, K) |objects - even share| / even share; nan for classes without objects.
        pixel_deviation: (n_folds, K) |pixels - even share| / even share; nan for classes without pixels.
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
        """Summarise the deviations of the classes with at least as many images as folds.

        A class without objects or without area counts only in the other of the two.

        Returns:
            `object_mean`, `object_max`, `pixel_mean` and `pixel_max`, fractions of the even share, nan if there
            is no such class; `divergence_max` over the folds; `size_min` and `size_max`, numbers of images.
        """
        is_divisible = self.images.sum(axis=0) >= len(self.sizes)
        figures = {}
        for name, deviation in (("object", self.object_deviation), ("pixel", self.pixel_deviation)):
            chosen = deviation[:, is_divisible & ~np.isnan(deviation).any(axis=0)]
            figures[f"{name}_mean"] = float(chosen.mean()) if chosen.size else np.nan
            figures[f"{name}_max"] = float(chosen.max()) if chosen.size else np.nan
        figures["divergence_max"] = float(self.divergence.max())
        return {**figures, "size_min": float(self.sizes.min()), "size_max": float(self.sizes.max())}

    def rows(self, class_names: Sequence[str]) -> list[dict[str, int | float | str]]:
        """List one row per fold and class.

        Args:
            class_names: Names of the K classes.

        Returns:
            Rows with fold, class, images, objects, area, object_deviation and area_deviation.
        """
        columns = (self.images, self.objects, self.pixels, self.object_deviation, self.pixel_deviation)
        return [
            {
                "fold": fold,
                "class": name,
                **{key: float(values[fold, index]) for key, values in zip(_FIGURES, columns, strict=True)},
            }
            for fold in range(len(self.sizes))
            for index, name in enumerate(class_names)
        ]

    def to_csv(self, class_names: Sequence[str]) -> str:
        """Format the rows as CSV with a header."""
        rows = self.rows(class_names)
        formatted = ([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
        return csv_text([["fold", "class", *_FIGURES], *formatted])


def fold_balance(objects: npt.ArrayLike, pixels: npt.ArrayLike, folds: npt.ArrayLike, n_folds: int) -> Balance:
    """Measure the balance of a split.

    Args:
        objects: (N, K) number of objects of each foreground class in each image.
        pixels: (N, K) area of each foreground class in each image, in pixels or fractions of the image.
        folds: (N,) fold of each image, in [0, n_folds).
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


def balance_fault(rows: Sequence[Mapping[str, str]]) -> str | None:
    """Return what is wrong with rows of `Balance.to_csv`, whose deviations follow from the sums; None if nothing is."""
    by_class: dict[str, list[list[float]]] = {}
    try:
        for row in rows:
            by_class.setdefault(row["class"], []).append([float(row[key]) for key in ("fold", *_FIGURES)])
    except (KeyError, TypeError, ValueError) as error:
        return f"a row without its numbers ({error})"
    for name, values in by_class.items():
        table = np.array(values)  # (n_folds, 6)
        if table[:, 0].tolist() != list(range(len(table))) or not np.isfinite(table[:, 1:4]).all():
            return f"the folds of {name} are not whole"
        # The file holds six digits.
        if not np.allclose(table[:, 4:], _deviation(table[:, 2:4]), rtol=1e-3, atol=1e-4, equal_nan=True):
            return f"the deviations of {name} are not those of its objects and area"
    return None


@dataclass(frozen=True)
class UnbalanceableClass:
    """Describe a class that no split can balance well.

    Deviations are fractions of the even share, the largest over the folds.

    Attributes:
        class_index: Index of the class, in [0, K).
        reason: Short explanation.
        num_images: Number of images that hold the class.
        num_groups: Number of groups that hold it; the number of images without groups.
        num_objects: Number of its objects.
        object_bound: Lower bound of the deviation of objects in any split; nan without objects.
        pixel_bound: Lower bound of the deviation of areas in any split; nan without area.
        object_deviation: Deviation of objects in the given split; nan without objects.
        pixel_deviation: Deviation of areas in the given split; nan without area.
    """

    class_index: int
    reason: str
    num_images: int
    num_groups: int
    num_objects: int
    object_bound: float
    pixel_bound: float
    object_deviation: float
    pixel_deviation: float


def unbalanceable_classes(
    objects: npt.ArrayLike,
    pixels: npt.ArrayLike,
    folds: npt.ArrayLike,
    n_folds: int,
    groups: Sequence[str] | None = None,
) -> list[UnbalanceableClass]:
    """Find the classes that no split can balance to within a deviation of 0.2.

    A class is listed if it is in fewer images or groups than there are folds, or if the lower bound of its
    deviation is above 0.2, even when no other class has to be balanced.

    Args:
        objects: (N, K) number of objects of each foreground class in each image.
        pixels: (N, K) area of each foreground class in each image, in pixels or fractions of the image.
        folds: (N,) fold of each image, in [0, n_folds).
        n_folds: Number of folds.
        groups: (N,) labels; images with the same label stay in one fold.

    Returns:
        The classes in their order, each with the reason and the deviations.
    """
    counts, areas = np.asarray(objects, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    balance = fold_balance(counts, areas, folds, n_folds)
    num_images, num_objects = _num_holders(counts, areas), counts.sum(axis=0)
    if groups is not None:
        counts, areas = _group_sums(groups, counts, areas)
    num_groups = _num_holders(counts, areas)
    object_bounds, pixel_bounds = lower_bounds(counts, n_folds)[0], lower_bounds(areas, n_folds)[0]
    found = []
    for index in range(counts.shape[1]):
        bounds = float(object_bounds[index]), float(pixel_bounds[index])
        if num_images[index] == 0:
            reason = "absent"
        elif num_images[index] < n_folds:
            reason = "fewer images than folds"
        elif num_groups[index] < n_folds:
            reason = "fewer groups than folds"
        elif max(np.nan_to_num(bounds)) <= _MIN_BOUND:
            continue
        else:
            unit = "image" if groups is None else "group"
            reason = _reason_for_bound(bounds, {"objects": counts[:, index], "area": areas[:, index]}, n_folds, unit)
        found.append(
            UnbalanceableClass(
                class_index=index,
                reason=reason,
                num_images=int(num_images[index]),
                num_groups=int(num_groups[index]),
                num_objects=int(num_objects[index]),
                object_bound=bounds[0],
                pixel_bound=bounds[1],
                object_deviation=float(balance.object_deviation[:, index].max()),
                pixel_deviation=float(balance.pixel_deviation[:, index].max()),
            )
        )
    return found


def _num_holders(counts: Floats, areas: Floats) -> npt.NDArray[np.int64]:
    """Count the images or groups that hold each class: (N, K) objects and areas to (K,)."""
    return np.asarray(((counts > 0) | (areas > 0)).sum(axis=0))


def _group_sums(groups: Sequence[str], *values: Floats) -> tuple[Floats, ...]:
    """Sum (N, K) values over the images of each group: (number of groups, K)."""
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    gather = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    return tuple(gather @ value for value in values)


def _reason_for_bound(bounds: tuple[float, float], values: Mapping[str, Floats], n_folds: int, unit: str) -> str:
    """Explain why the lower bound of a class's deviation is large.

    Args:
        bounds: Lower bounds of the deviation of objects and of areas.
        values: The (N,) objects and areas of the class in each unit, by the noun for the message.
        n_folds: Number of folds.
        unit: `image` or `group`.
    """
    # 1e-300 only avoids a division by zero for a class without objects or without area.
    shares = {noun: float(v.max()) * n_folds / max(float(v.sum()), 1e-300) for noun, v in values.items()}
    share, noun = max((share, noun) for noun, share in shares.items())
    if share > 1 + _MIN_BOUND:
        return f"one {unit} holds {share:.1f} times a fold's share of its {noun}"
    by_objects, by_area = np.nan_to_num(bounds)
    return f"a few {unit}s hold most of it" if by_area > by_objects else "too few objects to divide"


def lower_bounds(values: npt.ArrayLike, n_folds: int) -> tuple[Floats, Floats]:
    """Compute lower bounds of the deviation of each class that hold for every split.

    They bound the largest and the mean deviation over the folds, even if no other class has to be balanced, and
    come from counting: whole objects cannot be divided, an image with more than a fold's share overfills its
    fold and leaves too little for the others, fewer images than folds leave folds empty, and of any
    j n_folds + 1 images at least j + 1 share a fold.

    Args:
        values: (N, K) objects or pixels of each class in each image, or in each group.
        n_folds: Number of folds.

    Returns:
        (K,) bounds of the largest and (K,) of the mean deviation, as fractions of the even share; nan for
        absent classes.
    """
    columns = np.asarray(values, dtype=np.float64).T
    bounds = [_lower_bounds(np.sort(column[column > 0])[::-1], n_folds) for column in columns]
    return np.array([largest for largest, _ in bounds]), np.array([mean for _, mean in bounds])


def _lower_bounds(sizes: Floats, n_folds: int) -> tuple[float, float]:
    """Compute the bounds of one class from its positive `sizes` in descending order."""
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
    for r in range(1, min(n_folds, len(sizes))):  # the r largest are in at most r folds
        largest.append(1 - float(sizes[r:].sum()) / ((n_folds - r) * share))
    for j in range(1, min((len(sizes) - 1) // n_folds, _MAX_PIGEONHOLES) + 1):
        largest.append(float(sizes[j * n_folds - j : j * n_folds + 1].sum()) / share - 1)
    return max(largest), max(mean)


def _deviation(sums: Floats) -> Floats:
    """Compute |sum - even share| / even share of (n_folds, K) sums; nan for absent classes."""
    share = sums.mean(axis=0)
    return np.divide(np.abs(sums - share), share, out=np.full_like(sums, np.nan), where=share > 0)


def _jensen_shannon(sums: Floats) -> Floats:
    """Compute the divergence (base 2) between each row's distribution and that of the sum of all rows."""
    whole = sums.sum(axis=0) / max(float(sums.sum()), 1e-300)
    rows = np.divide(
        sums, sums.sum(axis=1, keepdims=True), out=np.zeros_like(sums), where=sums.sum(axis=1, keepdims=True) > 0
    )
    middle = (rows + whole) / 2

    def relative_entropy(p: Floats) -> Floats:
        ratio = np.divide(p, middle, out=np.ones_like(middle), where=p > 0)
        return np.asarray((p * np.log2(ratio)).sum(axis=1))

    return (relative_entropy(rows) + relative_entropy(np.broadcast_to(whole, rows.shape))) / 2
