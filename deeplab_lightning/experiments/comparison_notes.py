"""Say what limits a comparison, one sentence each."""

import math
from collections.abc import Sequence

import numpy as np

from deeplab_lightning.data.digest import is_other_data
from deeplab_lightning.experiments.entries import Entry


def data_notes(entries: Sequence[Entry]) -> list[str]:
    """Name the experiments whose images or labels are not those of the baseline, by their digests."""
    others = [entry.label for entry in entries if is_other_data(entry.cv.digest, entries[0].cv.digest)]
    if not others:
        return []
    return [f"by their digests, the data of {', '.join(others)} hold other images or labels than the baseline's."]


def class_notes(entries: Sequence[Entry]) -> list[str]:
    """Name the classes that are left out because the compared images do not show them, with their false pixels."""
    truth = entries[0].matrix.sum(axis=1)
    notes = []
    absent = np.flatnonzero(truth == 0)
    if len(absent):
        names = ", ".join(entries[0].cv.class_names[index] for index in absent)
        false = ", ".join(f"{entry.label} {int(entry.matrix[:, absent].sum())}" for entry in entries)
        notes.append(f"the compared images show no {names}, so mIoU leaves this out (false pixels: {false}).")
    return notes


def fold_notes(entries: Sequence[Entry]) -> list[str]:
    """Return the limits of a comparison by folds, one sentence each; notes on what was stopped early say more."""
    base, notes = entries[0], []
    entries = [entry for entry in entries if not entry.cv.stopped or base.cv.stopped]
    has_images = base.images is not None
    if any(entry.over_folds is None for entry in entries[1:]):
        basis = "over images and not" if has_images else "by their pooled figures alone, not"
        notes.append(f"folds differ between experiments, so they are compared {basis} fold by fold.")
    for entry in entries:
        alike = [other.cv for other in entries if other.cv.n_folds == entry.cv.n_folds]
        missing = sorted({fold for cv in alike for fold in cv.folds} - set(entry.cv.folds))
        if missing:
            text = ", ".join(map(str, missing))
            notes.append(f"{entry.label} has not finished fold {text}: comparisons leave it out.")
    if len(base.cv.folds) < 2 and all(entry.seed_mious is not None for entry in entries):
        notes.append("with one fold, intervals cover the randomness of the training on these images alone.")
    elif len(base.cv.folds) < 2 and has_images:
        notes.append("with one fold, intervals cover the choice of the images, not the randomness of the training.")
    elif len(base.cv.folds) < 2:
        notes.append("with one fold and no image_matrices.npz, there are no intervals.")
    return notes


def stopped_notes(entries: Sequence[Entry], num_images: int | None) -> list[str]:
    """Name the experiments whose figures are of other images than the rest's, since they were stopped early.

    Args:
        entries: The experiments, the baseline first.
        num_images: Number of images that all the others share; None if unknown.
    """
    base, notes = entries[0], []
    for entry in entries[1:]:
        if entry.images is not None and entry.cv.stopped and len(entry.images.names) != num_images:
            notes.append(
                f"the mIoU of {entry.label}, which was stopped early, is of {len(entry.images.names)} images; its "
                f"difference is from {base.label} on the same ones."
            )
    return notes


def seed_notes(entries: Sequence[Entry]) -> list[str]:
    """Say which experiments are several seeds of one recipe, and how far these differ."""
    notes = []
    for entry in entries:
        if entry.seed_mious is not None:
            values = ", ".join(f"{value:.3f}" for value in entry.seed_mious)
            folds = "" if math.isnan(entry.fold_std) else f", of folds {entry.fold_std:.3f}"
            notes.append(
                f"{entry.label} pools {len(entry.seed_mious)} seeds with a mIoU of {values} (standard deviation of "
                f"seeds {entry.seed_std:.3f}{folds})."
            )
    return notes
