"""Folds -> one result: pooled confusion matrix, mean and spread, from files alone."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from deeplab_lightning.errors import MissingFileError
from deeplab_lightning.files import write_text
from deeplab_lightning.metrics.iou import class_iou, mean_iou, nan_mean, pixel_accuracy
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import csv_text, or_null, shown, table_console

_MAX_FOLDS = 5  # side by side in a terminal of 80 columns
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CrossValidation:
    """What the folds say together.

    Attributes:
        name: The experiment's folder.
        classes: K names.
        folds: The F folds that are finished.
        n_folds: Number of folds of the split.
        matrices: (F, K, K) counts of each fold.
        images: Every held-out picture, counted by the model that did not train on it; None where a fold's
            matrices of pictures are not known.
        fold_of: Image key -> fold; empty without `images`.
    """

    name: str
    classes: list[str]
    folds: list[int]
    n_folds: int
    matrices: Ints
    images: PerImageConfusion | None
    fold_of: dict[str, int]

    @property
    def matrix(self) -> Ints:
        """(K, K) counts over all held-out pictures."""
        return np.asarray(self.matrices.sum(axis=0))

    @property
    def miou(self) -> Floats:
        """(F,) of each fold alone."""
        return mean_iou(self.matrices)

    @property
    def iou(self) -> Floats:
        """(F, K) likewise; nan where a fold lacks a class."""
        return class_iou(self.matrices)

    @property
    def pooled_iou(self) -> Floats:
        """(K,) from the confusion matrix summed over the folds."""
        return class_iou(self.matrix)

    @property
    def pooled_miou(self) -> float:
        """Mean over the classes of the pooled IoU: a class that one fold lacks is no problem."""
        return float(mean_iou(self.matrix))

    def to_dict(self) -> dict[str, Any]:
        """What `cv.json` holds; nothing of it depends on time or machine."""
        matrix = self.matrix
        spread = float(self.miou.std(ddof=1)) if len(self.miou) > 1 else math.nan
        class_means = _over_folds(self.iou, "mean")
        class_spreads = _over_folds(self.iou, "std")
        return {
            "name": self.name,
            "n_folds": self.n_folds,
            "folds": self.folds,
            "num_images": len(self.fold_of),
            "out_of_fold": {
                "miou": or_null(self.pooled_miou),
                "pixel_accuracy": or_null(float(pixel_accuracy(matrix))),
                "iou": {c: or_null(v) for c, v in zip(self.classes, self.pooled_iou, strict=True)},
            },
            "mean": {
                "miou": or_null(float(self.miou.mean())),
                "iou": {c: or_null(v) for c, v in zip(self.classes, class_means, strict=True)},
            },
            "std": {
                "miou": or_null(spread),
                "iou": {c: or_null(v) for c, v in zip(self.classes, class_spreads, strict=True)},
            },
            "per_fold": [
                {
                    "fold": fold,
                    "miou": or_null(self.miou[row]),
                    "iou": {c: or_null(v) for c, v in zip(self.classes, self.iou[row], strict=True)},
                }
                for row, fold in enumerate(self.folds)
            ],
            "confusion_matrix": matrix.tolist(),
        }


def read_cv(folder: Path) -> CrossValidation:
    """Read the finished folds of an experiment's folder; or a single run, as one fold.

    Raises:
        FileNotFoundError: If there is no finished fold, or one has no confusion matrix.
    """
    runs = [(run, result) for run in ExperimentFolder(folder).runs() if (result := run.read_result())]
    runs = [(run, result) for run, result in runs if result["val"] is not None]
    if not runs:
        raise MissingFileError(f"no finished run or fold in {folder.absolute()}: there is no result.json with figures.")
    results = [result for _, result in runs]
    folds = [result["fold"] or 0 for result in results]
    parts = [run.read_images() for run, _ in runs]
    known = [part for part in parts if part is not None]
    is_known = len(known) == len(parts)
    matrices = [
        run.read_confusion() if part is None else part.total() for (run, _), part in zip(runs, parts, strict=True)
    ]
    return CrossValidation(
        name=folder.name,
        classes=list(results[0]["val"]["iou"]),
        folds=folds,
        n_folds=results[0]["n_folds"] or 1,
        matrices=np.stack(matrices),
        images=PerImageConfusion.joined(known) if is_known else None,
        fold_of={n: fold for fold, part in zip(folds, known, strict=True) for n in part.names} if is_known else {},
    )


def aggregate(folder: Path) -> CrossValidation:
    """Pool an experiment's finished folds; write `cv.json`, `cv.csv`, `cv.png` and `oof.npz`.

    Raises:
        FileNotFoundError: If there is no finished fold, or one has no matrices of its pictures.
    """
    result = read_cv(folder)
    if result.images is None:
        raise MissingFileError(f"no image_matrices.npz in a fold of {folder.absolute()}. Train the fold again.")
    files = ExperimentFolder(folder)
    result.images.write(files.images)
    write_text(files.table, _table_csv(result))
    _draw(result, files.figure)
    write_text(files.result, json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def print_cv(result: CrossValidation, folder: Path) -> None:
    """The table of an experiment."""
    means, spreads = _over_folds(result.iou, "mean"), _over_folds(result.iou, "std")
    spread = result.miou.std(ddof=1) if len(result.miou) > 1 else math.nan
    console = table_console()
    console.print(f"{result.name}: {len(result.folds)} of {result.n_folds} folds", style="bold", markup=False)
    for start in range(0, len(result.folds), _MAX_FOLDS):
        chosen = range(start, min(start + _MAX_FOLDS, len(result.folds)))
        table = Table()
        table.add_column("IoU", overflow="fold")
        for column in ["pooled", *(f"fold {result.folds[row]}" for row in chosen), "mean", "std"]:
            table.add_column(column, justify="right", no_wrap=True)
        for index, name in enumerate(result.classes):
            values = [result.pooled_iou[index], *result.iou[list(chosen), index], means[index], spreads[index]]
            table.add_row(escape(name), *(shown(value) for value in values))
        table.add_section()
        values = [result.pooled_miou, *result.miou[list(chosen)], result.miou.mean(), spread]
        table.add_row("mIoU", *(shown(value) for value in values))
        console.print(table)
    console.print(f"Written to {folder}: cv.json, cv.csv, cv.png, oof.npz", soft_wrap=True, markup=False)


def _over_folds(iou: Floats, figure: str) -> Floats:
    """(F, K) -> (K,) mean or standard deviation over the folds that have the class; nan without any, or two."""
    mean = nan_mean(iou.T)
    if figure == "mean":
        return mean
    number = (~np.isnan(iou)).sum(axis=0)
    squares = np.nansum((iou - mean) ** 2, axis=0)
    return np.sqrt(np.divide(squares, number - 1, out=np.full(iou.shape[1], np.nan), where=number > 1))


def _table_csv(result: CrossValidation) -> str:
    rows: list[tuple[str, Sequence[float]]] = [
        *((name, [result.pooled_iou[i], *result.iou[:, i]]) for i, name in enumerate(result.classes)),
        ("mIoU", [result.pooled_miou, *result.miou]),
    ]
    header = ["class", "pooled", *(f"fold_{fold}" for fold in result.folds)]
    return csv_text(
        [header, *([name, *("" if math.isnan(v) else f"{v:.6f}" for v in values)] for name, values in rows)]
    )


def _draw(result: CrossValidation, path: Path) -> None:
    """Pooled IoU of each class as a bar, the folds as points."""
    from matplotlib.figure import Figure

    names = [*result.classes, "mIoU"]
    pooled = [*result.pooled_iou, result.pooled_miou]
    figure = Figure(figsize=(2.2 + 0.55 * len(names), 3.6), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue"] * len(result.classes) + ["tab:orange"]
    axes.bar(range(len(names)), np.nan_to_num(pooled), color=colors, alpha=0.55)
    for row in range(len(result.folds)):
        axes.plot(range(len(names)), [*result.iou[row], result.miou[row]], "k.", markersize=5, alpha=0.7)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set(ylim=(0, 1), ylabel="IoU", title=f"{result.name}: pooled over {len(result.folds)} folds; points: folds")
    figure.savefig(path, dpi=120)
