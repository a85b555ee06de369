"""Experiments side by side: intervals of their scores and of their differences, on the same pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation, read_cv
from deeplab_lightning.experiments.significance import (
    FEW_UNITS,
    Difference,
    bootstrap_difference,
    bootstrap_iou,
    corrected_resampled_t,
    holm,
    jackknife,
    leave_out_iou,
)
from deeplab_lightning.metrics.iou import class_iou, mean_iou, nan_mean
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """One experiment among those compared.

    Attributes:
        cv: Its folds.
        folder: Where they lie.
        label: What tables call it: its folder's name, with parents' where names repeat.
        matrix: (K, K) counts over the pictures that all experiments share; over its own where pictures are unknown.
        images: Its matrices of the pictures that all experiments share; None where one does not know its pictures.
        interval: 95 % bootstrap interval of its pooled mIoU; nan without pictures.
        difference: Pooled mIoU less the baseline's; nan for the baseline.
        over_folds: Difference from the baseline fold by fold; None for the baseline, or where the folds differ.
        over_images: Difference from the baseline over resampled pictures; None for the baseline, or without pictures.
        per_class: (K,) differences of the pooled IoU over resampled pictures, or fold by fold without pictures;
            None for the baseline, or where neither can be.
        adjusted_p: Holm's p over all comparisons, fold by fold where that can be, else over pictures.
        cost: Parameters in millions, multiply-adds in 10^9, training seconds; None where unknown.
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

    @property
    def miou(self) -> float:
        """Pooled over the shared pictures."""
        return float(mean_iou(self.matrix))

    @property
    def iou(self) -> Floats:
        """(K,) pooled over the shared pictures."""
        return class_iou(self.matrix)


@dataclass(frozen=True)
class Comparison:
    """Experiments side by side; the first is the baseline.

    Attributes:
        entries: In the order given.
        classes: K names.
        num_images: Pictures that all share; None where one does not know its pictures.
        notes: What limits the comparison, a sentence each.
    """

    entries: list[Entry]
    classes: list[str]
    num_images: int | None
    notes: list[str]


def compare_experiments(folders: Sequence[Path], *, num_resamples: int = 2000) -> Comparison:
    """Read and compare experiments.

    Args:
        folders: Folders of K-fold experiments or of single runs; the first is the baseline.
        num_resamples: Of the bootstrap over pictures.
    """
    results = [read_cv(folder) for folder in folders]
    classes = results[0].classes
    for folder, result in zip(folders, results, strict=True):
        if result.classes != classes:
            raise DataError(f"{folder} has the classes {result.classes}, but {folders[0]} has {classes}.")
    sets, notes = _shared_images(folders, results)
    matrices = [r.matrix if images is None else images.total() for r, images in zip(results, sets, strict=True)]
    known = [images for images in sets if images is not None]
    resampled = None
    if known:
        groups = next(filter(None, (_groups(folder, known[0].names) for folder in folders)), None)
        resampled = _resample(known, groups, num_resamples)
        notes += resampled.notes
    base = results[0]
    over_folds = [_over_folds(base, result) for result in results]
    if any(difference is None for difference in over_folds):
        basis = "over pictures and not" if known else "by their pooled figures alone, not"
        notes.append(f"folds differ between experiments, so they are compared {basis} fold by fold.")
    for folder, result in zip(folders, results, strict=True):
        missing = sorted({fold for other in results for fold in other.folds} - set(result.folds))
        if missing and result.n_folds == base.n_folds:
            text = ", ".join(map(str, missing))
            notes.append(f"{_label(folder, folders)} has not finished fold {text}: comparisons leave it out.")
    if len(base.folds) < 2:
        what = "the interval tells of the pictures alone, not" if known else "nothing tells"
        notes.append(f"with one fold {what} of the chance of the training.")
    entries = []
    for index, (folder, result, images, matrix) in enumerate(zip(folders, results, sets, matrices, strict=True)):
        is_base = index == 0
        entry = Entry(
            cv=result,
            folder=folder,
            label=_label(folder, folders),
            matrix=matrix,
            images=images,
            interval=(math.nan, math.nan),
            difference=math.nan if is_base else float(mean_iou(matrix) - mean_iou(matrices[0])),
            over_folds=None if is_base else over_folds[index],
            over_images=None,
            per_class=None if is_base or over_folds[index] is None else _classes_over_folds(base, result),
            adjusted_p=math.nan,
            cost=_cost(folder),
        )
        entries.append(entry if resampled is None else _over_images(entry, resampled, index, class_iou(matrices[0])))
    adjusted = holm([_p_value(entry) for entry in entries])
    entries = [replace(entry, adjusted_p=float(p)) for entry, p in zip(entries, adjusted, strict=True)]
    return Comparison(entries, classes, len(known[0].names) if known else None, notes)


@dataclass(frozen=True)
class _Resampled:
    """IoU of the experiments over other choices of pictures.

    Attributes:
        iou: (M, R, K), the same R choices for all M.
        is_jackknife: Whether each choice leaves one group out; else they are drawn with replacement.
        notes: What there is to say of it.
    """

    iou: Floats
    is_jackknife: bool
    notes: list[str]

    def interval(self, values: Floats, observed: float) -> tuple[float, float]:
        """Of a figure, from its (R,) values."""
        if self.is_jackknife:
            found = jackknife(values, observed)
            return found.low, found.high
        low, high = np.nanquantile(values, [0.025, 0.975])
        return float(low), float(high)

    def difference(self, a: Floats, b: Floats, observed: float) -> Difference:
        """Of B - A, from the (R,) values of both."""
        return jackknife(b - a, observed) if self.is_jackknife else bootstrap_difference(a, b, observed)


def _resample(known: Sequence[PerImageConfusion], groups: Sequence[str] | None, num_resamples: int) -> _Resampled:
    units = known[0].names if groups is None else groups
    count = len(set(units))
    if count >= FEW_UNITS:
        return _Resampled(bootstrap_iou(known, groups=groups, num_resamples=num_resamples), False, [])
    of = "pictures" if groups is None else "groups of pictures"
    note = f"with {count} {of} only, intervals over pictures come from leaving out one at a time (jackknife)."
    if count < 2:
        note = f"no intervals over pictures: all are of one {'picture' if groups is None else 'group'}."
    return _Resampled(leave_out_iou(known, units), True, [note])


def _shared_images(
    folders: Sequence[Path], results: Sequence[CrossValidation]
) -> tuple[Sequence[PerImageConfusion | None], list[str]]:
    """The matrices of the pictures that all experiments held out, and what there is to note.

    None for all where one of them does not know its pictures: the others' cannot be paired with it.
    """
    unknown = [_label(folder, folders) for folder, r in zip(folders, results, strict=True) if r.images is None]
    if unknown:
        note = f"no intervals over pictures: W&B holds no image_matrices.npz of {', '.join(unknown)}."
        return [None] * len(results), [note]
    images = [result.images for result in results if result.images is not None]
    shared = sorted(set.intersection(*(set(matrices.names) for matrices in images)))
    if not shared:
        raise DataError(f"the experiments share no held-out picture: {', '.join(map(str, folders))}.")
    notes = []
    if any(len(matrices.names) > len(shared) for matrices in images):
        notes.append(f"only the {len(shared)} pictures that all experiments held out are compared.")
    sets = [matrices.keep(shared) for matrices in images]
    if any((_truth(matrices) != _truth(sets[0])).any() for matrices in sets):
        notes.append("the experiments counted other truths: other annotations, or another eval_transforms.max_size.")
    return sets, notes


def _over_images(entry: Entry, resampled: _Resampled, index: int, base_iou: Floats) -> Entry:
    """With what the other choices of pictures tell of the experiment `index`."""
    base, own = resampled.iou[[0, index]]  # (R, K) each
    base_means, means = nan_mean(base), nan_mean(own)
    entry = replace(entry, interval=resampled.interval(means, entry.miou))
    if index == 0:
        return entry
    return replace(
        entry,
        over_images=resampled.difference(base_means, means, entry.difference),
        per_class=[
            resampled.difference(base[:, c], own[:, c], float(entry.iou[c] - base_iou[c])) for c in range(len(base_iou))
        ],
    )


def _truth(images: PerImageConfusion) -> npt.NDArray[np.int64]:
    """(N, K) pixels of each class in each picture's truth."""
    k = images.num_classes
    gather = csr_matrix(np.kron(np.eye(k, dtype=np.int64), np.ones((k, 1), dtype=np.int64)))
    return np.asarray((images.counts @ gather).todense())


def _over_folds(a: CrossValidation, b: CrossValidation) -> Difference | None:
    """Fold by fold, over the folds that both have finished; None where the folds themselves differ."""
    places = _common_folds(a, b)
    if not places:
        return None
    rows_a, rows_b = map(list, zip(*places, strict=True))
    return corrected_resampled_t((b.miou[rows_b] - a.miou[rows_a]).tolist(), test_share=1 / max(a.n_folds, 2))


def _common_folds(a: CrossValidation, b: CrossValidation) -> list[tuple[int, int]]:
    """Rows of the folds that both have; none where a fold holds out other pictures in one than in the other."""
    places = [(a.folds.index(fold), b.folds.index(fold)) for fold in a.folds if fold in b.folds]
    if a.n_folds != b.n_folds:
        return []
    if a.images is None or b.images is None:
        # Two splits that put the same number of pixels of each class into each fold are one split.
        is_same = all(np.array_equal(a.matrices[i].sum(axis=-1), b.matrices[j].sum(axis=-1)) for i, j in places)
        return places if is_same else []
    held_out = [{n: f for n, f in cv.fold_of.items() if f in a.folds and f in b.folds} for cv in (a, b)]
    return places if held_out[0] == held_out[1] else []


def _classes_over_folds(a: CrossValidation, b: CrossValidation) -> list[Difference]:
    """(K,) over the common folds that have the class."""
    rows_a, rows_b = map(list, zip(*_common_folds(a, b), strict=True))
    found = []
    for values in (b.iou[rows_b] - a.iou[rows_a]).T:
        there = values[~np.isnan(values)].tolist()
        test_share = 1 / max(a.n_folds, 2)
        nothing = Difference(math.nan, math.nan, math.nan, math.nan)
        found.append(corrected_resampled_t(there, test_share=test_share) if there else nothing)
    return found


def _p_value(entry: Entry) -> float:
    if entry.over_folds is not None and not math.isnan(entry.over_folds.p):
        return entry.over_folds.p
    return math.nan if entry.over_images is None else entry.over_images.p


def _groups(folder: Path, names: Sequence[str]) -> list[str] | None:
    labels = ExperimentFolder(folder).read_groups()
    chosen = [labels.get(name, "") for name in names]
    return chosen if all(chosen) else None


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """The shortest tail of the path that no other folder has."""
    parts = folder.absolute().parts
    for length in range(1, len(parts)):
        tail = parts[-length:]
        if sum(other.absolute().parts[-length:] == tail for other in folders) == 1:
            return "/".join(tail)
    return str(folder)


def _cost(folder: Path) -> dict[str, float | None]:
    """Of one fold's network, and the training time of all folds."""
    results = [result for run in ExperimentFolder(folder).runs() if (result := run.read_result())]
    cost = results[0].get("cost", {})
    known = [result["seconds"] for result in results if result["seconds"] is not None]
    seconds = sum(known) if len(known) == len(results) else None
    return {"mega_parameters": cost.get("mega_parameters"), "giga_macs": cost.get("giga_macs"), "seconds": seconds}


def is_clear(difference: Difference) -> bool:
    """Whether the interval excludes no difference."""
    return bool(difference.low > 0 or difference.high < 0)


def interval_text(low: float, high: float, *, signed: bool = False) -> str:
    """Both ends of an interval, or nothing where it is unknown."""
    if math.isnan(low):
        return ""
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per experiment: what the CSV and the page hold."""
    found = []
    for entry in comparison.entries:
        folds, images = entry.over_folds, entry.over_images
        row: dict[str, Any] = {
            "experiment": entry.label,
            "miou": entry.miou,
            "miou_low": entry.interval[0],
            "miou_high": entry.interval[1],
            "fold_mean": float(entry.cv.miou.mean()),
            "fold_std": float(entry.cv.miou.std(ddof=1)) if len(entry.cv.miou) > 1 else math.nan,
            "difference": entry.difference,
            "difference_folds": folds.mean if folds else math.nan,
            "difference_low_folds": folds.low if folds else math.nan,
            "difference_high_folds": folds.high if folds else math.nan,
            "p_folds": folds.p if folds else math.nan,
            "difference_low_images": images.low if images else math.nan,
            "difference_high_images": images.high if images else math.nan,
            "p_images": images.p if images else math.nan,
            "p_holm": entry.adjusted_p,
            **entry.cost,
        }
        row |= {f"iou/{name}": float(v) for name, v in zip(comparison.classes, entry.iou, strict=True)}
        found.append(row)
    return found
