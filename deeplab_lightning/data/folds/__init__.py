"""Assign images to folds. Uses NumPy and SciPy only, neither torch nor Lightning."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, issparse

from deeplab_lightning.data.folds.partition import FoldWeights, Ints, Partition
from deeplab_lightning.errors import UserError

FoldMethod = Literal["balanced", "iterstrat", "random", "group"]

_MAX_VALUE = 1e100  # of an entry
_RESTARTS, _MAX_GROUPS_TO_RESTART = 10, 200


def stratified_folds(
    objects: npt.ArrayLike,
    pixels: npt.ArrayLike,
    n_folds: int,
    *,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    method: FoldMethod = "balanced",
    weights: FoldWeights | None = None,
) -> Ints:
    """Assign every image to one of `n_folds` validation folds.

    `balanced` distributes the objects and pixels of each class, and the images, as evenly as possible over the
    folds: a greedy pass starts with the rarest class (as Sechidis et al. 2011 do for presence), then images
    are exchanged between pairs of folds as long as this lowers the sum of squared relative deviations.

    Args:
        objects: (N, K) number of objects of each foreground class in each image.
        pixels: (N, K) area of each foreground class in each image, in pixels or fractions of the image.
        n_folds: Number of folds, at least 2 and at most N.
        groups: (N,) labels; images with the same label stay in one fold. Not with `iterstrat` and `random`.
        seed: Seed of the choice between equally good partitions.
        method: `balanced`; `iterstrat` for iterative stratification on presence; `random` for equal sizes
            only; `group` for scikit-learn's GroupKFold.
        weights: Weights of the deviations with `balanced`; `FoldWeights()` if None.

    Returns:
        (N,) fold indices in [0, n_folds).

    Raises:
        ValueError: If there are fewer than 2 folds, more folds than images or groups, different shapes,
            entries or sums that are negative or not finite, an unknown method, groups for a method without groups, or
            no groups for `group`.

    Notes:
        Without groups, the sizes of balanced folds differ by at most one. Permuting the images permutes
        the folds (images with equal content are interchangeable), and permuting the classes changes
        nothing. The exception are images that differ only in how they share classes with others that look alike,
        such as the edges of a hexagon and of two triangles where the corners are classes: colour refinement
        cannot tell them apart, and ties are broken by their order in the input. A data set passes its images
        in the order of their names. Features are integers whose sums are exact in float64, so the result
        depends neither on the BLAS nor on the number of threads. Of more than 64 folds, each is compared with the
        15 that differ most from it, so that the time grows with the number of folds and not with its square.
        A class in fewer images (or groups) than folds is in as many folds as it has images, unless other rare
        classes of these images prevent it.
    """
    counts, areas = _sparse("objects", objects), _sparse("pixels", pixels)
    num_images = counts.shape[0]
    if counts.shape != areas.shape:
        raise UserError(f"objects and pixels must both be (N, K), got {counts.shape} and {areas.shape}.")
    if not 2 <= n_folds <= num_images:
        raise UserError(f"n_folds must be at least 2 and at most the number of images ({num_images}), got {n_folds}.")
    labels = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    if labels is not None and len(labels) != num_images:
        raise UserError(f"groups must hold one label per image ({num_images}), got {len(labels)}.")
    if labels is not None and labels.max() + 1 < n_folds:
        raise UserError(f"there are {labels.max() + 1} groups for {n_folds} folds. Use fewer folds or smaller groups.")
    if method == "balanced":
        return _balanced_folds(counts, areas, n_folds, labels, seed, weights or FoldWeights())
    if method == "group":
        if labels is None:
            raise UserError("method 'group' needs groups, got None.")
        return _group_k_fold(labels, n_folds)
    if labels is not None:
        raise UserError(f"method {method!r} takes no groups. Use 'balanced' or 'group'.")
    if method == "random":
        folds = np.empty(num_images, dtype=np.int64)
        folds[np.random.default_rng(seed).permutation(num_images)] = np.arange(num_images) % n_folds
        return folds
    if method == "iterstrat":
        return _iterative_stratification((counts + areas).toarray() > 0, n_folds, seed)
    raise UserError(f"method must be 'balanced', 'iterstrat', 'random' or 'group', got {method!r}.")


def _sparse(name: str, values: npt.ArrayLike | csr_matrix) -> csr_matrix:
    """Convert (N, K) values to a sparse float64 matrix, since most are zero in large data sets."""
    table: Any = values if issparse(values) else np.asarray(values)
    if table.ndim != 2:
        raise UserError(f"{name} must be (N, K), got {table.shape}.")
    matrix = csr_matrix(table, dtype=np.float64)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise UserError(f"{name} must be finite and not negative.")
    if matrix.nnz and matrix.data.max() > _MAX_VALUE:
        raise UserError(f"{name} must be at most {_MAX_VALUE:g}, got {matrix.data.max():g}: sums would not be finite.")
    return matrix


def _balanced_folds(
    counts: csr_matrix, areas: csr_matrix, n_folds: int, labels: Ints | None, seed: int, weights: FoldWeights
) -> Ints:
    """Assign images to folds by the method `balanced`, independently of their order.

    Args:
        counts: (N, K) objects.
        areas: (N, K) areas.
        n_folds: Number of folds.
        labels: (N,) number of each image's group, or None.
        seed: Seed of the choice between equally good partitions.
        weights: Weights of the deviations.

    Returns:
        (N,) fold of each image.
    """
    order = np.argsort(_content_keys(counts, areas), kind="stable")
    counts, areas = counts[order], areas[order]
    sizes = np.ones(len(order))
    if labels is not None:
        # Units are whole groups, numbered by their first image in the canonical order.
        _, first, labels = np.unique(labels[order], return_index=True, return_inverse=True)
        labels = np.argsort(np.argsort(first))[labels.reshape(-1)]
        num_groups = int(labels.max()) + 1
        gather = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), (num_groups, len(labels)))
        counts, areas, sizes = gather @ counts, gather @ areas, gather @ sizes
    rng = np.random.default_rng(seed)
    is_grouped = labels is not None
    restarts = _RESTARTS if is_grouped and len(sizes) <= _MAX_GROUPS_TO_RESTART else 1
    best: Partition | None = None
    for attempt in range(restarts):
        partition = Partition(counts, areas, sizes, n_folds, weights, is_grouped=is_grouped)
        partition.assign_greedily(rng, is_shuffled=attempt > 0)
        partition.exchange(rng)
        if best is None or partition.cost() < best.cost():
            best = partition
    assert best is not None
    folds = np.empty(len(order), dtype=np.int64)
    folds[order] = best.folds if labels is None else best.folds[labels]
    return folds


def _content_keys(counts: csr_matrix, areas: csr_matrix) -> npt.NDArray[np.uint64]:
    """Hash each image's content to a number that depends on the order of neither images nor classes.

    As in colour refinement (Weisfeiler and Leman 1968), a class is identified by the values in its images, an
    image by the values in its classes, and this is done twice. Sums of hashes modulo 2^64 do not depend on
    the order of their terms.
    """
    entries = [(matrix.tocoo(), salt) for matrix, salt in ((counts, 1), (areas, 2))]
    images = np.zeros(counts.shape[0], dtype=np.uint64)
    for _ in range(2):
        classes = np.zeros(counts.shape[1], dtype=np.uint64)
        for matrix, salt in entries:
            np.add.at(classes, matrix.col, _mixed(_mixed(matrix.data.view(np.uint64), salt) ^ images[matrix.row], 3))
        images = np.zeros(counts.shape[0], dtype=np.uint64)
        for matrix, salt in entries:
            np.add.at(images, matrix.row, _mixed(_mixed(matrix.data.view(np.uint64), salt) ^ classes[matrix.col], 4))
    return images


def _mixed(keys: npt.NDArray[np.uint64], salt: int) -> npt.NDArray[np.uint64]:
    """Hash 64-bit numbers by the finaliser of SplitMix64 (Steele et al. 2014)."""
    keys = keys + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _group_k_fold(labels: Ints, n_folds: int) -> Ints:
    from sklearn.model_selection import GroupKFold  # imported here, since it takes a second

    folds = np.empty(len(labels), dtype=np.int64)
    for fold, (_, validation) in enumerate(GroupKFold(n_folds).split(labels, groups=labels)):
        folds[validation] = fold
    return folds


def _iterative_stratification(presence: npt.NDArray[np.bool_], n_folds: int, seed: int) -> Ints:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold  # imported here, since it imports sklearn

    # The column of empty images balances them too, and avoids a single column, which the package refuses.
    labels = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1).astype(np.int64)
    splitter = MultilabelStratifiedKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(labels), dtype=np.int64)
    for fold, (_, validation) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        folds[validation] = fold
    return folds
