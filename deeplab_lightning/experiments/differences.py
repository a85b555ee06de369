"""Measure experiments and their differences from a baseline on the images that all of them held out."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.contributions import Contributions, image_margins
from deeplab_lightning.experiments.details import Details, compare_details
from deeplab_lightning.experiments.entries import Entry
from deeplab_lightning.experiments.pairing import (
    are_folds_compared,
    by_fold_contributions,
    count_other_truths,
    read_groups,
    shared_images,
)
from deeplab_lightning.experiments.repetitions import seed_mious
from deeplab_lightning.experiments.resampling import Resampled, resample
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """Hold the measured experiments, the baseline first.

    Attributes:
        entries: The experiments, without verdicts.
        other_truths: Number of images of each experiment whose truth differs from the baseline's.
        details: Contours and objects by size of each experiment; None if any has none.
        num_images: Number of shared images; None if any experiment has no per-image matrices.
        basis: What the intervals of mIoU are over, see `Comparison`.
        class_basis: What the differences of the classes are over, likewise.
        notes: Limits of the figures, one sentence each.
    """

    entries: list[Entry]
    other_truths: list[int]
    details: list[Details] | None
    num_images: int | None
    basis: str
    class_basis: str
    notes: list[str]


def measure(
    recipes: Sequence[Sequence[Path]],
    labels: Sequence[str],
    results: Sequence[CrossValidation],
    *,
    num_resamples: int,
    with_groups: Sequence[Path],
) -> Measured:
    """Measure experiments on the images that all of them held out.

    Args:
        recipes: Folders of each experiment, one per seed; the first is the baseline.
        labels: Their names in tables.
        results: Their pooled folds.
        num_resamples: Number of bootstrap resamples of the images.
        with_groups: Folders of experiments, one of which may know the groups of the images.

    Raises:
        DataError: If the experiments share no image.
    """
    sets, notes = shared_images(labels, results)
    repeats = [max(len(result.seeds), 1) for result in results]
    other_truths = [
        0 if own is None or sets[0] is None else count_other_truths(sets[0], own, (repeats[0], count))
        for own, count in zip(sets, repeats, strict=True)
    ]
    entries: list[Entry] = []
    for recipe, label, result, images in zip(recipes, labels, results, sets, strict=True):
        entries.append(_entry(recipe, label, result, images, entries[0] if entries else None))
    folds_decide = all(are_folds_compared(entries[0], entry) for entry in entries[1:])
    known, basis, details = [images for images in sets if images is not None], "folds", None
    if known:
        groups = next(filter(None, (read_groups(folder, known[0].names) for folder in with_groups)), None)
        basis = "images" if groups is None else "groups of images"
        resampled = resample(known, groups, num_resamples)
        labels_of_units = known[0].names if groups is None else groups
        units = np.unique(np.asarray(labels_of_units), return_inverse=True)[1].reshape(-1)
        of_units = [image_margins(images, units) for images in known]  # (U, 3, K) each
        entries = [_over_images(entry, resampled, index, of_units) for index, entry in enumerate(entries)]
        if not folds_decide:
            entries = [_classes_over_images(entry, of_units, index) for index, entry in enumerate(entries)]
        notes = [*notes, *resampled.notes]
        details = compare_details(
            results, known[0].names, groups, are_folds_compared=folds_decide, num_resamples=num_resamples
        )
    num_images = len(known[0].names) if known else None
    return Measured(entries, other_truths, details, num_images, basis, "folds" if folds_decide else basis, notes)


def _entry(
    recipe: Sequence[Path], label: str, result: CrossValidation, images: PerImageConfusion | None, base: Entry | None
) -> Entry:
    """Return an experiment with its differences from the baseline that need no resampling."""
    matrix = result.matrix if images is None else images.total()
    by_fold = None if base is None else by_fold_contributions(base, result, images)
    overlap = 1 / max(result.n_folds, 2)
    of_shared = set(result.folds) if images is None else {result.fold_of[name] for name in images.names}
    compared_folds = [fold for fold in result.folds if fold in of_shared]
    return Entry(
        cv=result,
        folders=tuple(recipe),
        label=label,
        compared_folds=compared_folds,
        matrix=matrix,
        images=images,
        interval=(math.nan, math.nan),
        difference=math.nan if base is None else float(nan_mean(truth_iou(matrix))) - base.miou,
        over_folds=None if by_fold is None else by_fold.miou(overlap=overlap),
        over_images=None,
        per_class=None if by_fold is None else by_fold.classes(overlap=overlap),
        adjusted_p=math.nan,
        cost=_cost(recipe, compared_folds),
        seed_mious=seed_mious(result, None if images is None else images.names) if len(result.seeds) > 1 else None,
    )


def _over_images(entry: Entry, resampled: Resampled, index: int, of_units: Sequence[Ints]) -> Entry:
    """Add the intervals over images to the experiment at an index.

    Args:
        entry: The experiment.
        resampled: IoU of the experiments over resampled images.
        index: Its place among the experiments.
        of_units: (U, 3, K) margins of the images or groups of each experiment, see `margins`.
    """
    entry = replace(entry, interval=resampled.interval(nan_mean(resampled.figures[index]), entry.miou))
    if index == 0:
        return entry
    return replace(entry, over_images=Contributions.of(of_units[0], of_units[index]).miou())


def _classes_over_images(entry: Entry, of_units: Sequence[Ints], index: int) -> Entry:
    """Add the differences of the classes over images, see `_over_images`."""
    if index == 0:
        return entry
    return replace(entry, per_class=Contributions.of(of_units[0], of_units[index]).classes())


def _cost(recipe: Sequence[Path], folds: Sequence[int]) -> dict[str, float | None]:
    """Return the cost of one fold's network and the training time of some folds with all seeds."""
    results = []
    for run in (run for folder in recipe for run in ExperimentFolder(folder).runs()):
        with suppress(DataError):  # damaged, as a note says
            if (result := run.read_result()) and (result["fold"] or 0) in folds:
                results.append(result)
    cost = results[0].get("cost", {})
    known = [result["seconds"] for result in results if result["seconds"] is not None]
    seconds = sum(known) if len(known) == len(results) else None
    return {"mega_parameters": cost.get("mega_parameters"), "giga_macs": cost.get("giga_macs"), "seconds": seconds}
