"""Compare experiments on the same images, with intervals of their mIoU and of the differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation, Epoch, is_outdated, read_cv
from deeplab_lightning.experiments.comparison_notes import (
    class_notes,
    data_notes,
    fold_notes,
    seed_notes,
    stopped_notes,
)
from deeplab_lightning.experiments.differences import Measured, measure
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.experiments.names import folder_label, recipe_label
from deeplab_lightning.experiments.pairing import are_folds_compared
from deeplab_lightning.experiments.repetitions import over_seeds, pool_seeds, read_config
from deeplab_lightning.experiments.significance import (
    UNKNOWN,
    Difference,
    detectable_difference,
    holm,
)
from deeplab_lightning.experiments.verdict import decide, differing_settings, no_verdict, stopped_verdict

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
    everything = everything or [folder for recipe in recipes for folder in recipe]
    labels = [recipe_label(recipe, everything) for recipe in recipes]
    measured = _measure(recipes, labels, results, num_resamples)
    entries, details = _judged(measured), measured.details
    if details is not None:
        pairs = zip(details, entries, strict=True)
        details = [own.untested() if _is_untested(entry, entries[0]) else own for own, entry in pairs]
    damaged = [note for result in results for note in result.notes]
    all_notes = [
        *damaged,
        *data_notes(entries),
        *class_notes(entries),
        *measured.notes,
        *stopped_notes(entries, measured.num_images),
        *fold_notes(entries),
        *seed_notes(entries),
        *notes,
    ]
    return Comparison(
        entries,
        class_names,
        measured.num_images,
        measured.basis,
        measured.class_basis,
        all_notes,
        details=details,
    )


def _measure(
    recipes: Sequence[Sequence[Path]], labels: Sequence[str], results: Sequence[CrossValidation], num_resamples: int
) -> Measured:
    """Measure the experiments that are tested on the images that they share, and each one that was stopped early apart.

    What was stopped early holds out a part of the images, to which it would restrict the tests of the others.
    """
    folders = [folder for recipe in recipes for folder in recipe]

    def of(chosen: Sequence[int]) -> Measured:
        own, names, found = [recipes[i] for i in chosen], [labels[i] for i in chosen], [results[i] for i in chosen]
        return measure(own, names, found, num_resamples=num_resamples, with_groups=folders)

    stopped = [index for index, result in enumerate(results) if result.stopped and not results[0].stopped]
    tested = [index for index in range(len(results)) if index not in stopped]
    found = of(tested)
    apart = {index: of([0, index]) for index in stopped}
    places = {index: (found, place) for place, index in enumerate(tested)} | {i: (own, 1) for i, own in apart.items()}
    ordered = [places[index] for index in range(len(results))]
    details = [None if part.details is None else part.details[place] for part, place in ordered]
    known = [own for own in details if own is not None]
    return replace(
        found,
        entries=[part.entries[place] for part, place in ordered],
        other_truths=[part.other_truths[place] for part, place in ordered],
        details=known if len(known) == len(ordered) else None,
    )


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


def _judged(measured: Measured) -> list[Entry]:
    """Return the experiments with adjusted p-values and verdicts."""
    entries, other_truths, basis = measured.entries, measured.other_truths, measured.basis
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
    # What was stopped early might have been found to differ: it counts among the tests.
    p_values = [
        1.0 if early and not others else difference.p
        for (difference, _), others, early in zip(decided, other_truths, stopped, strict=True)
    ]
    adjusted = holm([math.nan, *p_values[1:]])
    judged = [base]
    for index in range(1, len(entries)):
        entry, (difference, over) = entries[index], decided[index]
        if other_truths[index]:
            judged.append(replace(entry, verdict=no_verdict((entry.label, base.label), other_truths[index])))
            continue
        if _is_untested(entry, base):
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


def _is_untested(entry: Entry, base: Entry) -> bool:
    """Check whether an experiment or its baseline was stopped early."""
    return bool(entry.cv.stopped or base.cv.stopped)


def _untested(entry: Entry, base: Entry, stopped: str, differing: Mapping[str, tuple[Any, Any]]) -> Entry:
    """Return an entry without intervals and p-values of differences, which early stopping makes wrong."""
    known = [entry.over_folds, entry.over_images, *(entry.per_class or ())]
    over_folds, over_images, *per_class = (None if own is None else own.untested() for own in known)
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
