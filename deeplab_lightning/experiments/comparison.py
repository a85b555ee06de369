"""Compare experiments on the same images, with intervals of their mIoU and of the differences."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation, Epoch, is_outdated, read_cv
from deeplab_lightning.experiments.contributions import Contributions, image_margins, margins
from deeplab_lightning.experiments.repetitions import over_seeds, pool_seeds, read_config, recipe_name, seed_mious
from deeplab_lightning.experiments.significance import (
    MIN_BOOTSTRAP_UNITS,
    UNKNOWN,
    Difference,
    bootstrap_iou,
    detectable_difference,
    holm,
    jackknife,
    leave_out_iou,
)
from deeplab_lightning.experiments.verdict import LEVEL, Verdict, decide, differing_settings, no_verdict
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """Hold one of the compared experiments and its differences from the baseline.

    Attributes:
        cv: Pooled folds of the experiment.
        folder: Folder of the experiment; of the first seed if several are pooled.
        label: Name in tables: the folder's name, with parent folders if names repeat.
        matrix: (K, K) pixel counts over the images that all experiments share; over all images of this experiment if
            any experiment has no per-image matrices.
        images: Confusion matrices of the shared images; None if any experiment has no per-image matrices.
        interval: 95 % interval of the pooled mIoU over images; nan without per-image matrices.
        difference: Pooled mIoU minus the baseline's; nan for the baseline.
        over_folds: Difference from the baseline, paired by fold; None for the baseline, or if the folds differ.
        over_images: Difference from the baseline, paired by image; None for the baseline, or without per-image
            matrices.
        per_class: (K,) differences of the IoU, paired by fold where folds decide for all experiments, otherwise by
            image; None for the baseline, or if neither is possible.
        adjusted_p: p-value of the deciding difference, adjusted by Holm over all comparisons; paired by fold if
            possible, otherwise by image; nan if neither is.
        adjusted_class_p: (K,) p-values of the classes, adjusted by Holm over the classes; empty for the baseline.
        verdict: What the comparison with the baseline shows; None for the baseline.
        seed_mious: (S,) mIoU of each seed over the shared images; None if there is one seed.
        cost: Parameters in millions, multiply-adds in 10^9, training time in seconds; None if unknown.
    """

    cv: CrossValidation
    folder: Path
    label: str
    matrix: Ints
    images: PerImageConfusion | None
    interval: tuple[float, float]
    difference: float
    over_folds: Difference | None
    over_images: Difference | None
    per_class: list[Difference] | None
    adjusted_p: float
    cost: dict[str, float | None]
    adjusted_class_p: tuple[float, ...] = ()
    verdict: Verdict | None = None
    seed_mious: Floats | None = None

    @property
    def seed_std(self) -> float:
        """Return the standard deviation of the seeds' mIoU; nan for one seed."""
        return math.nan if self.seed_mious is None else float(self.seed_mious.std(ddof=1))

    def is_starred(self, class_index: int) -> bool:
        """Check whether a class differs from the baseline, with the number of classes taken into account."""
        return len(self.adjusted_class_p) > 0 and self.adjusted_class_p[class_index] < LEVEL

    @property
    def miou(self) -> float:
        """Return the pooled mIoU over the shared images, of the classes that their truth holds."""
        return float(nan_mean(self.iou))

    @property
    def iou(self) -> Floats:
        """Return the (K,) pooled IoU over the shared images; nan for classes that their truth lacks."""
        return truth_iou(self.matrix)


@dataclass(frozen=True)
class Comparison:
    """Hold the compared experiments; the first is the baseline.

    Attributes:
        entries: Experiments in the given order.
        class_names: K names.
        num_images: Number of shared images; None if any experiment has no per-image matrices.
        basis: What the intervals of mIoU are over: `images` or `groups of images`; `folds` if there are none.
        class_basis: What the differences of the classes are over: `folds`, `images` or `groups of images`.
        notes: Limits of the comparison, one sentence each.
        pairs: Verdicts of every pair; None if they were not asked for.
    """

    entries: list[Entry]
    class_names: list[str]
    num_images: int | None
    basis: str
    class_basis: str
    notes: list[str]
    pairs: list[Verdict] | None = None

    @property
    def sentences(self) -> list[str]:
        """Return the answers: of every pair if these were judged, else of each experiment and the baseline."""
        verdicts = [entry.verdict for entry in self.entries] if self.pairs is None else self.pairs
        return [verdict.sentence for verdict in verdicts if verdict is not None]


def compare_experiments(folders: Sequence[Path], *, num_resamples: int = 2000, epoch: Epoch = "last") -> Comparison:
    """Read and compare experiments.

    Args:
        folders: Folders of K-fold experiments or of single runs; the first is the baseline.
        epoch: `last`, or `best` for the epoch of each training with the best figure on the images that are compared.
            The best epochs are compared if an experiment of an earlier version knows no other.
        num_resamples: Number of bootstrap resamples of the images.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        ValueError: If the classes differ, or the experiments share no image.
    """
    recipes, results, notes = read_recipes(folders, epoch)
    return compare_results(recipes, results, num_resamples=num_resamples, notes=notes)


def read_recipes(folders: Sequence[Path], epoch: Epoch) -> tuple[list[list[Path]], list[CrossValidation], list[str]]:
    """Read experiments, and pool those that differ in the seed alone.

    Args:
        folders: Folders of the experiments.
        epoch: See `compare_experiments`.

    Returns:
        The folders of each recipe, its result, and notes.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """
    results, notes = _read(folders, epoch)
    return *pool_seeds(folders, results), notes


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
    labels = [_recipe_label(recipe, everything) for recipe in recipes]
    sets, found_notes = _shared_images(labels, results)
    repeats = [max(len(result.seeds), 1) for result in results]
    other_truths = [
        0 if own is None or sets[0] is None else _count_other_truths(sets[0], own, (repeats[0], count))
        for own, count in zip(sets, repeats, strict=True)
    ]
    entries: list[Entry] = []
    for recipe, label, result, images in zip(recipes, labels, results, sets, strict=True):
        entries.append(_entry(recipe, label, result, images, entries[0] if entries else None))
    folds_decide = all(_are_folds_compared(entries[0], entry) for entry in entries[1:])
    known, basis = [images for images in sets if images is not None], "folds"
    if known:
        groups = next(filter(None, (_groups(folder, known[0].names) for folder in folders)), None)
        basis = "images" if groups is None else "groups of images"
        resampled = _resample(known, groups, num_resamples)
        labels_of_units = known[0].names if groups is None else groups
        units = np.unique(np.asarray(labels_of_units), return_inverse=True)[1].reshape(-1)
        of_units = [image_margins(images, units) for images in known]  # (U, 3, K) each
        entries = [_over_images(entry, resampled, index, of_units) for index, entry in enumerate(entries)]
        if not folds_decide:
            entries = [_classes_over_images(entry, of_units, index) for index, entry in enumerate(entries)]
        found_notes = [*found_notes, *resampled.notes]
    entries = _judged(entries, basis, other_truths)
    num_images = len(known[0].names) if known else None
    damaged = [note for result in results for note in result.notes]
    all_notes = [*damaged, *_class_notes(entries), *found_notes, *_fold_notes(entries), *_seed_notes(entries), *notes]
    class_basis = "folds" if folds_decide else basis
    return Comparison(entries, class_names, num_images, basis, class_basis, all_notes)


def _read(folders: Sequence[Path], epoch: Epoch) -> tuple[list[CrossValidation], list[str]]:
    """Read experiments at the same epoch, and say which one and how much the choice of the best would flatter."""
    results = [read_cv(folder, epoch) for folder in folders]
    outdated = [
        f"cv.json of {_label(folder, folders)} was written before its folds changed; `deeplab kfold --aggregate "
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
        _label(folder, folders) for folder, result in zip(folders, results, strict=True) if result.epoch == "best"
    ]:
        note = f"figures are of the best epochs, chosen on these images: the last ones of {', '.join(old)} are unknown."
        return [read_cv(folder, "best") for folder in folders], [*outdated, note]
    known = [
        (_label(f, folders), r.optimism) for f, r in zip(folders, results, strict=True) if not math.isnan(r.optimism)
    ]
    added = ", ".join(f"{name} {optimism:+.3f}" for name, optimism in known) or "an unknown amount"
    return results, [*outdated, f"figures are of the last epoch; the best one, chosen on these images, adds {added}."]


def _judged(entries: Sequence[Entry], basis: str, other_truths: Sequence[int]) -> list[Entry]:
    """Return the entries with adjusted p-values and verdicts.

    Args:
        entries: The experiments, the baseline first.
        basis: What intervals over images are over.
        other_truths: Number of images of each experiment whose truth differs from the baseline's.
    """
    base, configs = entries[0], [read_config(entry.folder) for entry in entries]
    decided = [
        (UNKNOWN, "") if others else _deciding(base, entry, basis)
        for entry, others in zip(entries, other_truths, strict=True)
    ]
    adjusted = holm([math.nan, *(difference.p for difference, _ in decided[1:])])
    judged = [base]
    for index in range(1, len(entries)):
        entry, (difference, over) = entries[index], decided[index]
        if other_truths[index]:
            judged.append(replace(entry, verdict=no_verdict(entry.label, other_truths[index])))
            continue
        verdict = decide(
            (entry.label, base.label),
            difference,
            over,
            float(adjusted[index]),
            detectable_difference(difference),
            differing_settings(configs[0], configs[index]),
        )
        class_p = tuple(map(float, holm([item.p for item in entry.per_class or ()])))
        judged.append(replace(entry, adjusted_p=float(adjusted[index]), adjusted_class_p=class_p, verdict=verdict))
    return judged


def _deciding(base: Entry, entry: Entry, basis: str) -> tuple[Difference, str]:
    """Return the pooled difference with one interval, and what the interval is over.

    The interval is over folds where both experiments have at least two in common, or over seeds where both have
    several, since these are repetitions of the training; otherwise over images.
    """
    if entry.over_folds is not None and _are_folds_compared(base, entry):
        return entry.over_folds, "folds"
    if entry.seed_mious is not None and base.seed_mious is not None:
        return over_seeds(base.seed_mious, entry.seed_mious, entry.difference), "seeds"
    if entry.over_images is not None:
        return entry.over_images, basis
    return Difference(entry.difference, math.nan, math.nan, math.nan), ""


def _class_notes(entries: Sequence[Entry]) -> list[str]:
    """Name the classes that are left out because the compared images do not show them, with their false pixels."""
    truth = entries[0].matrix.sum(axis=1)
    notes = []
    absent = np.flatnonzero(truth == 0)
    if len(absent):
        names = ", ".join(entries[0].cv.class_names[index] for index in absent)
        false = ", ".join(f"{entry.label} {int(entry.matrix[:, absent].sum())}" for entry in entries)
        notes.append(f"the compared images show no {names}, so mIoU leaves this out (false pixels: {false}).")
    return notes


def _entry(
    recipe: Sequence[Path], label: str, result: CrossValidation, images: PerImageConfusion | None, base: Entry | None
) -> Entry:
    """Return an experiment with its differences from the baseline that need no resampling."""
    matrix = result.matrix if images is None else images.total()
    by_fold = None if base is None else _by_fold(base, result, images)
    overlap = 1 / max(result.n_folds, 2)
    return Entry(
        cv=result,
        folder=recipe[0],
        label=label,
        matrix=matrix,
        images=images,
        interval=(math.nan, math.nan),
        difference=math.nan if base is None else float(nan_mean(truth_iou(matrix))) - base.miou,
        over_folds=None if by_fold is None else by_fold.miou(overlap=overlap),
        over_images=None,
        per_class=None if by_fold is None else by_fold.classes(overlap=overlap),
        adjusted_p=math.nan,
        cost=_cost(recipe),
        seed_mious=seed_mious(result, None if images is None else images.names) if len(result.seeds) > 1 else None,
    )


def _fold_notes(entries: Sequence[Entry]) -> list[str]:
    """Return the limits of a comparison by folds, one sentence each."""
    base, notes = entries[0], []
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


def _seed_notes(entries: Sequence[Entry]) -> list[str]:
    """Say which experiments are several seeds of one recipe, and how far these differ."""
    notes = []
    for entry in entries:
        if entry.seed_mious is not None:
            values = ", ".join(f"{value:.3f}" for value in entry.seed_mious)
            folds = "" if math.isnan(entry.cv.miou_std) else f", of folds {entry.cv.miou_std:.3f}"
            notes.append(
                f"{entry.label} pools {len(entry.seed_mious)} seeds with a mIoU of {values} (standard deviation of "
                f"seeds {entry.seed_std:.3f}{folds})."
            )
    return notes


@dataclass(frozen=True)
class _Resampled:
    """Hold the IoU of the experiments over resampled images.

    Attributes:
        iou: (M, R, K) IoU of M experiments over the same R resamples.
        is_jackknife: Whether each resample leaves one group out; otherwise they are drawn with replacement.
        notes: Limits of the intervals, one sentence each.
    """

    iou: Floats
    is_jackknife: bool
    notes: list[str]

    def interval(self, values: Floats, observed: float) -> tuple[float, float]:
        """Return the 95 % interval of a figure from its (R,) values."""
        if self.is_jackknife:
            found = jackknife(values, observed)
            return found.low, found.high
        low, high = np.nanquantile(values, [0.025, 0.975])
        return float(low), float(high)


def _resample(known: Sequence[PerImageConfusion], groups: Sequence[str] | None, num_resamples: int) -> _Resampled:
    """Resample images or groups by the bootstrap, or leave them out one by one if there are few."""
    units = known[0].names if groups is None else groups
    count = len(set(units))
    if count >= MIN_BOOTSTRAP_UNITS:
        return _Resampled(bootstrap_iou(known, groups=groups, num_resamples=num_resamples), False, [])
    kind = "images" if groups is None else "groups of images"
    note = f"with only {count} {kind}, intervals over images come from leaving out one at a time (jackknife)."
    if count < 2:
        note = f"no intervals over images: there is only one {'image' if groups is None else 'group'}."
    return _Resampled(leave_out_iou(known, units), True, [note])


def _shared_images(
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
        raise DataError(f"the experiments share no held-out image: {', '.join(labels)}.")
    notes = []
    if any(len(matrices.names) > len(shared) for matrices in images):
        notes.append(f"only the {len(shared)} images that all experiments held out are compared.")
    sets = [matrices.keep(shared) for matrices in images]
    return sets, notes


def _over_images(entry: Entry, resampled: _Resampled, index: int, of_units: Sequence[Ints]) -> Entry:
    """Add the intervals over images to the experiment at an index.

    Args:
        entry: The experiment.
        resampled: IoU of the experiments over resampled images.
        index: Its place among the experiments.
        of_units: (U, 3, K) margins of the images or groups of each experiment, see `margins`.
    """
    entry = replace(entry, interval=resampled.interval(nan_mean(resampled.iou[index]), entry.miou))
    if index == 0:
        return entry
    return replace(entry, over_images=Contributions.of(of_units[0], of_units[index]).miou())


def _classes_over_images(entry: Entry, of_units: Sequence[Ints], index: int) -> Entry:
    """Add the differences of the classes over images, see `_over_images`."""
    if index == 0:
        return entry
    return replace(entry, per_class=Contributions.of(of_units[0], of_units[index]).classes())


def _are_folds_compared(base: Entry, entry: Entry) -> bool:
    """Check whether both have folds in common that repeat the training."""
    return len(_common_folds(base.cv, entry.cv, entry.images)) > 1


def _count_other_truths(base: PerImageConfusion, own: PerImageConfusion, repeats: tuple[int, int]) -> int:
    """Count the images whose truth holds other numbers of pixels in two experiments of some numbers of seeds."""
    return int((_truth(base) * repeats[1] != _truth(own) * repeats[0]).any(axis=1).sum())


def _truth(images: PerImageConfusion) -> Ints:
    """Return the (N, K) pixels of each class in the truth of each image."""
    k = images.num_classes
    gather = csr_matrix(np.kron(np.eye(k, dtype=np.int64), np.ones((k, 1), dtype=np.int64)))
    return np.asarray((images.counts @ gather).todense())


def _by_fold(base: Entry, own: CrossValidation, images: PerImageConfusion | None) -> Contributions | None:
    """Split the difference from the baseline into the folds that both have finished; None if the folds differ.

    Args:
        base: The baseline.
        own: The experiment.
        images: Matrices of the shared images of the experiment; None if unknown.
    """
    places = _common_folds(base.cv, own, images)
    if not places:
        return None
    if base.images is None or images is None:
        rows_a, rows_b = map(list, zip(*places, strict=True))
        return Contributions.of(margins(base.cv.matrices[rows_a]), margins(own.matrices[rows_b]))
    unit_of = {own.folds[row]: unit for unit, (_, row) in enumerate(places)}
    names = [name for name in images.names if own.fold_of[name] in unit_of]
    units = np.array([unit_of[own.fold_of[name]] for name in names])
    return Contributions.of(image_margins(base.images.keep(names), units), image_margins(images.keep(names), units))


def _common_folds(a: CrossValidation, b: CrossValidation, shared: PerImageConfusion | None) -> list[tuple[int, int]]:
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


def _groups(folder: Path, names: Sequence[str]) -> list[str] | None:
    """Return the group of each image; None if any image has no group."""
    labels = ExperimentFolder(folder).read_groups()
    chosen = [labels.get(name, "") for name in names]
    return chosen if all(chosen) else None


def _recipe_label(recipe: Sequence[Path], everything: Sequence[Path]) -> str:
    """Return the name of an experiment, or what the names of its seeds have in common."""
    if len(recipe) > 1 and len({folder.parent for folder in recipe}) == 1 and recipe[0].name.startswith("seed_"):
        others = [folder for folder in everything if folder not in recipe]
        return _label(recipe[0].parent, [recipe[0].parent, *others])
    return recipe_name([_label(folder, everything) for folder in recipe])


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """Return the shortest tail of a path that no other folder has."""
    parts = folder.absolute().parts
    for length in range(1, len(parts)):
        tail = parts[-length:]
        if sum(other.absolute().parts[-length:] == tail for other in folders) == 1:
            return "/".join(tail)
    return str(folder)


def _cost(recipe: Sequence[Path]) -> dict[str, float | None]:
    """Return the cost of one fold's network and the training time of all folds and seeds."""
    results = []
    for run in (run for folder in recipe for run in ExperimentFolder(folder).runs()):
        with suppress(DataError):  # damaged, as a note says
            if result := run.read_result():
                results.append(result)
    cost = results[0].get("cost", {})
    known = [result["seconds"] for result in results if result["seconds"] is not None]
    seconds = sum(known) if len(known) == len(results) else None
    return {"mega_parameters": cost.get("mega_parameters"), "giga_macs": cost.get("giga_macs"), "seconds": seconds}
