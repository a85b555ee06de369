"""Folds -> one result: pooled confusion matrix, mean and spread, from files alone."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from deeplab_lightning.console import table_console
from deeplab_lightning.data.cache import write_text
from deeplab_lightning.image_matrices import ImageMatrices, iou_of, miou_of

_MOST_FOLDS = 5  # side by side in a terminal of 80 columns
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
    images: ImageMatrices | None
    fold_of: dict[str, int]

    @property
    def matrix(self) -> Ints:
        """(K, K) counts over all held-out pictures."""
        return np.asarray(self.matrices.sum(axis=0))

    @property
    def miou(self) -> Floats:
        """(F,) of each fold alone."""
        return miou_of(self.matrices)

    @property
    def iou(self) -> Floats:
        """(F, K) likewise; nan where a fold lacks a class."""
        return iou_of(self.matrices)

    @property
    def pooled_iou(self) -> Floats:
        """(K,) from the confusion matrix summed over the folds."""
        return iou_of(self.matrix)

    @property
    def pooled_miou(self) -> float:
        """Mean over the classes of the pooled IoU: a class that one fold lacks is no problem."""
        return float(miou_of(self.matrix))

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
                "miou": _or_null(self.pooled_miou),
                "pixel_accuracy": _or_null(float(np.trace(matrix) / max(int(matrix.sum()), 1))),
                "iou": {c: _or_null(v) for c, v in zip(self.classes, self.pooled_iou, strict=True)},
            },
            "mean": {
                "miou": _or_null(float(self.miou.mean())),
                "iou": {c: _or_null(v) for c, v in zip(self.classes, class_means, strict=True)},
            },
            "std": {
                "miou": _or_null(spread),
                "iou": {c: _or_null(v) for c, v in zip(self.classes, class_spreads, strict=True)},
            },
            "per_fold": [
                {
                    "fold": fold,
                    "miou": _or_null(self.miou[row]),
                    "iou": {c: _or_null(v) for c, v in zip(self.classes, self.iou[row], strict=True)},
                }
                for row, fold in enumerate(self.folds)
            ],
            "confusion_matrix": matrix.tolist(),
        }


def run_folders(folder: Path) -> list[Path]:
    """The folders of an experiment's folds in order (not of a fold that was trained again), or a single run itself."""
    if (folder / "result.json").is_file():
        return [folder]
    folds = {path: re.fullmatch(r"fold_(\d+)", path.name) for path in folder.glob("fold_*")}
    return sorted((path for path, match in folds.items() if match), key=lambda path: int(path.name[5:]))


def read_cv(folder: Path) -> CrossValidation:
    """Read the finished folds of an experiment's folder; or a single run, as one fold.

    Raises:
        FileNotFoundError: If there is no finished fold, or one has no confusion matrix.
    """
    runs = [run / "result.json" for run in run_folders(folder)]
    runs = [path for path in runs if path.is_file() and json.loads(path.read_text())["val"] is not None]
    if not runs:
        raise FileNotFoundError(
            f"no finished run or fold in {folder.absolute()}: there is no result.json with figures."
        )
    results = [json.loads(path.read_text()) for path in runs]
    folds = [result["fold"] or 0 for result in results]
    parts = [_read_images(path.parent) for path in runs]
    known = [part for part in parts if part is not None]
    is_known = len(known) == len(parts)
    return CrossValidation(
        name=folder.name,
        classes=list(results[0]["val"]["iou"]),
        folds=folds,
        n_folds=results[0]["n_folds"] or 1,
        matrices=np.stack(
            [
                _read_matrix(path.parent / "confusion_matrix.csv") if part is None else part.total()
                for path, part in zip(runs, parts, strict=True)
            ]
        ),
        images=ImageMatrices.joined(known) if is_known else None,
        fold_of={n: fold for fold, part in zip(folds, known, strict=True) for n in part.names} if is_known else {},
    )


def _read_images(run: Path) -> ImageMatrices | None:
    """The matrices of a run's pictures; None where only their sum is there, as where W&B kept no more."""
    path = run / "image_matrices.npz"
    if not path.is_file() and (run / "confusion_matrix.csv").is_file():
        return None
    return ImageMatrices.read(path)


def _read_matrix(path: Path) -> Ints:
    """(K, K) counts, as `RunRecord` wrote them."""
    with path.open(newline="") as file:
        return np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.int64)


def aggregate(folder: Path) -> CrossValidation:
    """Pool an experiment's finished folds; write `cv.json`, `cv.csv`, `cv.png` and `oof.npz`.

    Raises:
        FileNotFoundError: If there is no finished fold, or one has no matrices of its pictures.
    """
    result = read_cv(folder)
    if result.images is None:
        raise FileNotFoundError(f"no image_matrices.npz in a fold of {folder.absolute()}. Train the fold again.")
    result.images.write(folder / "oof.npz")
    write_text(folder / "cv.csv", _csv(result))
    _draw(result, folder / "cv.png")
    write_text(folder / "cv.json", json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def print_cv(result: CrossValidation, folder: Path) -> None:
    """The table of an experiment."""
    means, spreads = _over_folds(result.iou, "mean"), _over_folds(result.iou, "std")
    spread = result.miou.std(ddof=1) if len(result.miou) > 1 else math.nan
    console = table_console()
    console.print(f"{result.name}: {len(result.folds)} of {result.n_folds} folds", style="bold", markup=False)
    for start in range(0, len(result.folds), _MOST_FOLDS):
        chosen = range(start, min(start + _MOST_FOLDS, len(result.folds)))
        table = Table()
        table.add_column("IoU", overflow="fold")
        for column in ["pooled", *(f"fold {result.folds[row]}" for row in chosen), "mean", "std"]:
            table.add_column(column, justify="right", no_wrap=True)
        for index, name in enumerate(result.classes):
            values = [result.pooled_iou[index], *result.iou[list(chosen), index], means[index], spreads[index]]
            table.add_row(escape(name), *(_short(value) for value in values))
        table.add_section()
        values = [result.pooled_miou, *result.miou[list(chosen)], result.miou.mean(), spread]
        table.add_row("mIoU", *(_short(value) for value in values))
        console.print(table)
    console.print(f"Written to {folder}: cv.json, cv.csv, cv.png, oof.npz", soft_wrap=True, markup=False)


def _over_folds(iou: Floats, figure: str) -> Floats:
    """(F, K) -> (K,) mean or standard deviation over the folds that have the class; nan without any, or two."""
    present = ~np.isnan(iou)
    number = present.sum(axis=0)
    mean = np.divide(np.where(present, iou, 0).sum(axis=0), number, out=np.full(iou.shape[1], np.nan), where=number > 0)
    if figure == "mean":
        return mean
    squares = np.where(present, (iou - mean) ** 2, 0).sum(axis=0)
    return np.sqrt(np.divide(squares, number - 1, out=np.full(iou.shape[1], np.nan), where=number > 1))


def _csv(result: CrossValidation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pooled", *(f"fold_{fold}" for fold in result.folds)])
    rows: Sequence[tuple[str, Sequence[float]]] = [
        *((name, [result.pooled_iou[i], *result.iou[:, i]]) for i, name in enumerate(result.classes)),
        ("mIoU", [result.pooled_miou, *result.miou]),
    ]
    for name, values in rows:
        writer.writerow([name, *("" if math.isnan(value) else f"{value:.6f}" for value in values)])
    return text.getvalue()


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


def _short(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.3f}"


def _or_null(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
