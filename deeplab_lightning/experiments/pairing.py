"""Pair experiments by the folds and the images that they have in common."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.contributions import Contributions, image_margins, margins
from deeplab_lightning.experiments.entries import Entry
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def shared_images(
    labels: Sequence[str], results: Sequence[CrossValidation]
) -> tuple[Sequence[PerImageConfusion | None], list[str]]:
    """Return the matrices of the images that all experiments held out, and notes.

    If any experiment has no per-image matrices, there are none for all of them, since they cannot be paired.
    """
    unknown = [label for label, result in zip(labels, results, strict=True) if result.images is None]
    if unknown:
        return [None] * len(results), [f"no intervals over images: no image_matrices.npz of {', '.join(unknown)}."]
    images = [result.images for result in results if result.images is not None]
    shared = sorted(set.intersection(*(set(matrices.names) for matrices in images)))
    if not shared:
        stems = {frozenset(PurePosixPath(name).with_suffix("") for name in matrices.names) for matrices in images}
        hint = " Their names differ in the endings alone; were the files converted?" if len(stems) == 1 else ""
        raise DataError(f"the experiments share no held-out image: {', '.join(labels)}.{hint}")
    notes = []
    if any(len(matrices.names) > len(shared) for matrices in images):
        notes.append(f"only the {len(shared)} images that all experiments held out are compared.")
    sets = [matrices.keep(shared) for matrices in images]
    return sets, notes


def are_folds_compared(base: Entry, entry: Entry) -> bool:
    """Check whether both have folds in common that repeat the training."""
    return len(common_folds(base.cv, entry.cv, entry.images)) > 1


def count_other_truths(base: PerImageConfusion, own: PerImageConfusion, repeats: tuple[int, int]) -> int:
    """Count the images whose truth holds other numbers of pixels in two experiments of some numbers of seeds."""
    return int((_truth(base) * repeats[1] != _truth(own) * repeats[0]).any(axis=1).sum())


def _truth(images: PerImageConfusion) -> Ints:
    """Return the (N, K) pixels of each class in the truth of each image."""
    k = images.num_classes
    gather = csr_matrix(np.kron(np.eye(k, dtype=np.int64), np.ones((k, 1), dtype=np.int64)))
    return np.asarray((images.counts @ gather).todense())


def by_fold_contributions(base: Entry, own: CrossValidation, images: PerImageConfusion | None) -> Contributions | None:
    """Split the difference from the baseline into the folds that both have finished; None if the folds differ.

    Args:
        base: The baseline.
        own: The experiment.
        images: Matrices of the shared images of the experiment; None if unknown.
    """
    places = common_folds(base.cv, own, images)
    if not places:
        return None
    if base.images is None or images is None:
        rows_a, rows_b = map(list, zip(*places, strict=True))
        return Contributions.of(margins(base.cv.matrices[rows_a]), margins(own.matrices[rows_b]))
    unit_of = {own.folds[row]: unit for unit, (_, row) in enumerate(places)}
    names = [name for name in images.names if own.fold_of[name] in unit_of]
    units = np.array([unit_of[own.fold_of[name]] for name in names])
    return Contributions.of(image_margins(base.images.keep(names), units), image_margins(images.keep(names), units))


def common_folds(a: CrossValidation, b: CrossValidation, shared: PerImageConfusion | None) -> list[tuple[int, int]]:
    """Return the rows of the folds that both have finished and that hold shared images, if such are known.

    Empty if a fold holds out different images in A and B.
    """
    places = [(a.folds.index(fold), b.folds.index(fold)) for fold in a.folds if fold in b.folds]
    if a.n_folds != b.n_folds:
        return []
    if a.images is None or b.images is None:
        # Two splits with the same number of pixels of each class in each fold are taken for the same split.
        is_same = all(np.array_equal(a.matrices[i].sum(axis=-1), b.matrices[j].sum(axis=-1)) for i, j in places)
        return places if is_same else []
    held_out = [{n: f for n, f in cv.fold_of.items() if f in a.folds and f in b.folds} for cv in (a, b)]
    if held_out[0] != held_out[1]:
        return []
    of_shared = set(b.folds) if shared is None else {b.fold_of[name] for name in shared.names}
    return [(i, j) for i, j in places if b.folds[j] in of_shared]


def read_groups(folder: Path, names: Sequence[str]) -> list[str] | None:
    """Return the group of each image; None if any image has no group."""
    labels = ExperimentFolder(folder).read_groups()
    chosen = [labels.get(name, "") for name in names]
    return chosen if all(chosen) else None
