"""Compare experiments on the same images, with intervals of their mIoU and of the differences."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation, Epoch, is_outdated, read_cv
from deeplab_lightning.experiments.comparison_notes import class_notes, data_notes, fold_notes, seed_notes
from deeplab_lightning.experiments.contributions import Contributions, image_margins
from deeplab_lightning.experiments.details import compare_details
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.experiments.names import folder_label, recipe_label
from deeplab_lightning.experiments.pairing import (
    are_folds_compared,
    by_fold_contributions,
    count_other_truths,
    read_groups,
    shared_images,
)
from deeplab_lightning.experiments.repetitions import over_seeds, pool_seeds, read_config, seed_mious
from deeplab_lightning.experiments.resampling import Resampled, resample
from deeplab_lightning.experiments.significance import (
    UNKNOWN,
    Difference,
    detectable_difference,
    holm,
)
from deeplab_lightning.experiments.verdict import decide, differing_settings, no_verdict, stopped_verdict
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def compare_experiments(
    folders: Sequence[Path], *, num_resamples: int = 2000, epoch: Epoch = "last", is_one: bool = False
) -> Comparison:
    """Read and compare experiments.

    Args:
        folders: Folders of K-fold experiments or of single runs; the first is the baseline.
        epoch: `last`, or `best` for the epoch of each training with the best figure on the images that are compared.
            The best epochs are compared if an experiment of an earlier version knows no other.
        num_resamples: Number of bootstrap resamples of the images.
        is_one: Whether the folders are pooled if all are seeds of one recipe, instead of compared.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        ValueError: If the classes differ, or the experiments share no image.
    """
    recipes, results, notes = read_recipes(folders, epoch, is_one=is_one)
    return compare_results(recipes, results, num_resamples=num_resamples, notes=notes)


def read_recipes(
    folders: Sequence[Path], epoch: Epoch, *, is_one: bool = False
) -> tuple[list[list[Path]], list[CrossValidation], list[str]]:
    """Read experiments, and pool those that differ in the seed alone.

    Args:
        folders: Folders of the experiments.
        epoch: See `compare_experiments`.
        is_one: See `compare_experiments`.

    Returns:
        The folders of each recipe, its result, and notes.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """
    results, notes = _read(folders, epoch)
    return *pool_seeds(folders, results, is_one=is_one), notes


def compare_results(
    recipes: Sequence[Sequence[Path]],
    results: Sequence[CrossValidation],
    *,
    num_resamples: int = 2000,
    notes: Sequence[str] = (),
    everything: Sequence[Path] | None = None,
) -> Comparison:
    """Compare experiments whose results were read before.

    Args:
        recipes: Folders of each experiment, one per seed, which give its name, configuration, groups and cost where
            they have them.
        results: Pooled folds of each experiment; the first is the baseline.
        num_resamples: Number of bootstrap resamples of the images.
        notes: Further limits of the comparison, one sentence each.
        everything: All folders among which names must be unique; those of `recipes` if None.

    Raises:
        ValueError: If the classes differ, or the experiments share no image.
    """
    class_names = results[0].class_names
    for recipe, result in zip(recipes, results, strict=True):
        if result.class_names != class_names:
            raise DataError(f"{recipe[0]} has the classes {result.class_names}, but {recipes[0][0]} has {class_names}.")
    folders = [recipe[0] for recipe in recipes]
    everything = everything or [folder for recipe in recipes for folder in recipe]
    labels = [recipe_label(recipe, everything) for recipe in recipes]
    sets, found_notes = shared_images(labels, results)
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
        groups = next(filter(None, (read_groups(folder, known[0].names) for folder in folders)), None)
        basis = "images" if groups is None else "groups of images"
        resampled = resample(known, groups, num_resamples)
        labels_of_units = known[0].names if groups is None else groups
        units = np.unique(np.asarray(labels_of_units), return_inverse=True)[1].reshape(-1)
        of_units = [image_margins(images, units) for images in known]  # (U, 3, K) each
        entries = [_over_images(entry, resampled, index, of_units) for index, entry in enumerate(entries)]
        if not folds_decide:
            entries = [_classes_over_images(entry, of_units, index) for index, entry in enumerate(entries)]
        found_notes = [*found_notes, *resampled.notes]
        details = compare_details(
            results, known[0].names, groups, are_folds_compared=folds_decide, num_resamples=num_resamples
        )
    entries = _judged(entries, basis, other_truths)
    num_images = len(known[0].names) if known else None
    damaged = [note for result in results for note in result.notes]
    all_notes = [
        *damaged,
        *data_notes(entries),
        *class_notes(entries),
        *found_notes,
        *fold_notes(entries),
        *seed_notes(entries),
        *notes,
    ]
    class_basis = "folds" if folds_decide else basis
    return Comparison(entries, class_names, num_images, basis, class_basis, all_notes, details=details)


def _read(folders: Sequence[Path], epoch: Epoch) -> tuple[list[CrossValidation], list[str]]:
    """Read experiments at the same epoch, and say which one and how much the choice of the best would flatter."""
    results = [read_cv(folder, epoch) for folder in folders]
    outdated = [
        f"cv.json of {folder_label(folder, folders)} was written before its folds changed; `deeplab kfold --aggregate "
        f"{folder}` writes it again."
        for folder, result in zip(folders, results, strict=True)
        if is_outdated(result, folder)
    ]
    if epoch == "best":
        return results, [
            *outdated,
            "figures are of the best epoch of each training, chosen on these images, which flatters them.",
        ]
    if old := [
        folder_label(folder, folders) for folder, result in zip(folders, results, strict=True) if result.epoch == "best"
    ]:
        note = f"figures are of the best epochs, chosen on these images: the last ones of {', '.join(old)} are unknown."
        return [read_cv(folder, "best") for folder in folders], [*outdated, note]
    known = [
        (folder_label(f, folders), f"{r.optimism:+.3f}")
        for f, r in zip(folders, results, strict=True)
        if not math.isnan(r.optimism)
    ]
    added = ", ".join(f"{name} {optimism}" for name, optimism in known if optimism != "+0.000")
    more = f", adds {added}" if added else ", adds nothing" if known else ", adds an unknown amount"
    return results, [*outdated, f"figures are of the last epoch; the best one, chosen on these images{more}."]


def _judged(entries: Sequence[Entry], basis: str, other_truths: Sequence[int]) -> list[Entry]:
    """Return the entries with adjusted p-values and verdicts.

    Args:
        entries: The experiments, the baseline first.
        basis: What intervals over images are over.
        other_truths: Number of images of each experiment whose truth differs from the baseline's.
    """
    base, configs = entries[0], [read_config(entry.folder) for entry in entries]
    differing = [
        differing_settings(configs[0], config, (base.cv.digest, entry.cv.digest))
        for entry, config in zip(entries, configs, strict=True)
    ]
    unknown = [
        next((e.label for e, c in ((entry, config), (base, configs[0])) if not c), "")
        for entry, config in zip(entries, configs, strict=True)
    ]
    stopped = [next((own.label for own in (entry, base) if own.cv.stopped), "") for entry in entries]
    decided = [
        (UNKNOWN, "") if others or early else _deciding(base, entry, basis)
        for entry, others, early in zip(entries, other_truths, stopped, strict=True)
    ]
    adjusted = holm([math.nan, *(difference.p for difference, _ in decided[1:])])
    judged = [base]
    for index in range(1, len(entries)):
        entry, (difference, over) = entries[index], decided[index]
        if other_truths[index]:
            judged.append(replace(entry, verdict=no_verdict(entry.label, other_truths[index])))
            continue
        if stopped[index]:
            judged.append(_untested(entry, base, stopped[index], differing[index]))
            continue
        verdict = decide(
            (entry.label, base.label),
            difference,
            over,
            float(adjusted[index]),
            detectable_difference(difference),
            differing[index],
            unknown[index],
        )
        class_p = tuple(map(float, holm([item.p for item in entry.per_class or ()])))
        judged.append(replace(entry, adjusted_p=float(adjusted[index]), adjusted_class_p=class_p, verdict=verdict))
    return judged


def _untested(entry: Entry, base: Entry, stopped: str, differing: Mapping[str, tuple[Any, Any]]) -> Entry:
    """Return an entry without intervals and p-values of differences, which early stopping makes wrong."""
    known = [entry.over_folds, entry.over_images, *(entry.per_class or ())]
    over_folds, over_images, *per_class = (
        None if own is None else Difference(own.mean, math.nan, math.nan, math.nan) for own in known
    )
    return replace(
        entry,
        over_folds=over_folds,
        over_images=over_images,
        per_class=None if entry.per_class is None else [own for own in per_class if own is not None],
        verdict=stopped_verdict((entry.label, base.label), stopped, entry.difference, differing),
    )


def _deciding(base: Entry, entry: Entry, basis: str) -> tuple[Difference, str]:
    """Return the pooled difference with one interval, and what the interval is over.

    The interval is over folds where both experiments have at least two in common, or over seeds where both have
    several, since these are repetitions of the training; otherwise over images.
    """
    if entry.over_folds is not None and are_folds_compared(base, entry):
        return entry.over_folds, "folds"
    if entry.seed_mious is not None and base.seed_mious is not None:
        return over_seeds(base.seed_mious, entry.seed_mious, entry.difference), "seeds"
    if entry.over_images is not None:
        return entry.over_images, basis
    return Difference(entry.difference, math.nan, math.nan, math.nan), ""


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
