"""How even folds are: the figures of a split."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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
