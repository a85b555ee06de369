"""Which image goes into which fold. Pure NumPy: no torch, no Lightning."""

from typing import Literal

import numpy as np
import numpy.typing as npt

FoldMethod = Literal["iterstrat", "random"]


def stratified_folds(
    objects: npt.ArrayLike,
    pixels: npt.ArrayLike,
    n_folds: int,
    *,
    seed: int = 0,
    method: FoldMethod = "iterstrat",
) -> npt.NDArray[np.int64]:
    """Assign every image to one of `n_folds` validation folds.

    Args:
        objects: (N, K) objects of each foreground class in each image.
        pixels: (N, K) pixels of each foreground class in each image.
        n_folds: Number of folds, at least 2 and at most N.
        seed: Decides the partition among equally good ones.
        method: `iterstrat` balances the number of images that hold each class (Sechidis et al. 2011,
            iterative stratification on presence); `random` balances fold sizes only.

    Returns:
        (N,) fold indices in [0, n_folds).

    Raises:
        ValueError: For fewer than 2 folds, more folds than images, shapes that differ, an unknown
            method, or entries that are negative or not finite.
    """
    counts, areas = np.asarray(objects, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    if counts.ndim != 2 or counts.shape != areas.shape:
        raise ValueError(f"objects and pixels must both be (N, K), got {counts.shape} and {areas.shape}.")
    for name, values in (("objects", counts), ("pixels", areas)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{name} must be finite and not negative.")
    num_images = len(counts)
    if not 2 <= n_folds <= num_images:
        raise ValueError(f"n_folds must be at least 2 and at most the number of images ({num_images}), got {n_folds}.")
    if method == "random":
        order = np.random.default_rng(seed).permutation(num_images)
        folds = np.empty(num_images, dtype=np.int64)
        folds[order] = np.arange(num_images) % n_folds
        return folds
    if method == "iterstrat":
        return _iterative_stratification((counts > 0) | (areas > 0), n_folds, seed)
    raise ValueError(f"method must be 'iterstrat' or 'random', got {method!r}.")


def _iterative_stratification(presence: npt.NDArray[np.bool_], n_folds: int, seed: int) -> npt.NDArray[np.int64]:
    # Imported late: scikit-learn takes a second, and a fold file makes it unnecessary.
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    # A column of empty images: keeps them balanced too, and the package refuses a single column.
    labels = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1).astype(np.int64)
    splitter = MultilabelStratifiedKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(labels), dtype=np.int64)
    for fold, (_, validation) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        folds[validation] = fold
    return folds
