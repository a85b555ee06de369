"""Pool the folds of an experiment from their files: confusion matrix, mean and standard deviation."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.experiments.records import mixture_notes, read_records, stopped_by_search, stopped_early
from deeplab_lightning.files import write_text
from deeplab_lightning.metrics.iou import nan_mean, pixel_accuracy, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion, PerImageDetails
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import csv_text, or_null, shown, table_console

_COLUMN_WIDTH = 9  # characters of a fold in the terminal
_OTHER_WIDTH = 4 + 3 * _COLUMN_WIDTH  # of the frame, the pooled figure, mean and standard deviation
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Epoch = Literal["last", "best"]


@dataclass(frozen=True)
class CrossValidation:
    """Hold the pooled result of the folds of an experiment.

    All IoU are of the classes that the truth holds, and means are over them, see `truth_iou`.

    Attributes:
        name: Name of the experiment's folder.
        class_names: K names.
        folds: The F finished folds, 0-based.
        n_folds: Number of folds of the split.
        matrices: (F, K, K) pixel counts of each fold, rows truth, columns prediction.
        images: Confusion matrix of each held-out image, by the model that did not train on it; None if a fold has no
            per-image matrices.
        fold_of: Image key -> fold; empty without `images`.
        epoch: `last`, or `best` for the epoch of each fold with the best figure on the images that are reported here,
            which flatters it.
        best_miou: Pooled mIoU of the best epochs; nan if unknown, and where `epoch` is `best`.
        notes: Limits of the result, such as folds that are left out because their files are damaged.
        stopped: Name of the baseline that `kfold --cheap` stopped the experiment for, if folds are missing since then;
            or of the search that stopped this trial.
        details: Contours and objects by size of the held-out images at the last epoch; None if a fold has none, and
            where `epoch` is `best`.
        seeds: The result of each seed, if several were pooled; the matrices are their sum.
        digest: Digest of the images and labels of all folds; empty if it is unknown, or they differ.
    """

    name: str
    class_names: list[str]
    folds: list[int]
    n_folds: int
    matrices: Ints
    images: PerImageConfusion | None
    fold_of: dict[str, int]
    epoch: Epoch = "best"
    best_miou: float = math.nan
    notes: tuple[str, ...] = ()
    stopped: str = ""
    details: PerImageDetails | None = None
    seeds: "tuple[CrossValidation, ...]" = ()
    digest: str = ""

    @property
    def optimism(self) -> float:
        """Return by how much the choice of the best epochs flatters the mIoU; nan if unknown."""
        return self.best_miou - self.pooled_miou

    @property
    def matrix(self) -> Ints:
        """Return the (K, K) pixel counts of all held-out images."""
        return np.asarray(self.matrices.sum(axis=0))

    @property
    def miou(self) -> Floats:
        """Return the (F,) mIoU of each fold."""
        return nan_mean(self.iou)

    @property
    def miou_std(self) -> float:
        """Return the standard deviation of the folds' mIoU; nan for a single fold."""
        return float(self.miou.std(ddof=1)) if len(self.miou) > 1 else math.nan

    @property
    def iou(self) -> Floats:
        """Return the (F, K) IoU of each fold; nan if the truth of a fold lacks a class."""
        return truth_iou(self.matrices)

    @property
    def pooled_iou(self) -> Floats:
        """Return the (K,) IoU of the confusion matrix summed over the folds."""
        return truth_iou(self.matrix)

    @property
    def pooled_miou(self) -> float:
        """Return the mean of the pooled IoU over the classes, including classes that some folds lack."""
        return float(nan_mean(self.pooled_iou))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `cv.json`, which depends neither on time nor on the machine."""
        matrix = self.matrix
        return {
            "name": self.name,
            "n_folds": self.n_folds,
            "folds": self.folds,
            "num_images": len(self.fold_of),
            "out_of_fold": {
                "miou": or_null(self.pooled_miou),
                "pixel_accuracy": or_null(float(pixel_accuracy(matrix))),
                "iou": self._by_class(self.pooled_iou),
            },
            "mean": {
                "miou": or_null(float(self.miou.mean())),
                "iou": self._by_class(_fold_means(self.iou)),
            },
            "std": {
                "miou": or_null(self.miou_std),
                "iou": self._by_class(_fold_stds(self.iou)),
            },
            "per_fold": [
                {"fold": fold, "miou": or_null(self.miou[row]), "iou": self._by_class(self.iou[row])}
                for row, fold in enumerate(self.folds)
            ],
            "confusion_matrix": matrix.tolist(),
            **self._epochs(),
        }

    def _epochs(self) -> dict[str, Any]:
        """Return which epoch the figures are of; nothing for experiments of earlier versions, which know one."""
        if self.epoch == "best" and math.isnan(self.best_miou):
            return {}
        return {
            "epoch": self.epoch,
            "best_epochs": {"miou": or_null(self.best_miou), "optimism": or_null(self.optimism)},
        }

    def _by_class(self, values: Floats) -> dict[str, float | None]:
        return {name: or_null(value) for name, value in zip(self.class_names, values, strict=True)}


def read_cv(folder: Path, epoch: Epoch = "last") -> CrossValidation:
    """Read the finished folds of an experiment, or a single run as one fold.

    Args:
        folder: Folder of the experiment or the run.
        epoch: Epoch whose figures are read, see `CrossValidation`; the best if a fold has none of its last.

    Raises:
        FileNotFoundError: If there is no finished fold, or a fold has no confusion matrix.
        DataError: If the folds have different classes.
    """
    records, notes = read_records(folder, with_last=epoch == "last")
    if not records:
        because = f" ({' '.join(notes)})" if notes else ""
        raise MissingFileError(
            f"no finished run or fold in {folder.absolute()}: there is no result.json with figures{because}."
        )
    runs = [(record.run, record.result) for record in records]
    results = [record.result for record in records]
    for run, result in runs:
        if list(result["val"]["iou"]) != list(results[0]["val"]["iou"]):
            raise DataError(
                f"{run} has the classes {list(result['val']['iou'])}, but {runs[0][0]} has "
                f"{list(results[0]['val']['iou'])}: they are no folds of one experiment. Train the fold again."
            )
    notes += mixture_notes(folder, records)
    digests = {str(result.get("data_digest") or "") for result in results}
    folds = [result["fold"] or 0 for result in results]
    stopped = stopped_early(folder, folds) or stopped_by_search(folder, results)
    notes += [stopped[1]] if stopped else []
    best, last = [record.best for record in records], [record.last for record in records]
    has_last = epoch == "last" and all(part is not None for part in last)
    parts = last if has_last else best
    known = [part for part in parts if part is not None]
    is_known = len(known) == len(parts)
    matrices = [
        run.read_confusion() if part is None else part.total() for (run, _), part in zip(runs, parts, strict=True)
    ]
    return CrossValidation(
        name=folder.name,
        class_names=list(results[0]["val"]["iou"]),
        folds=folds,
        n_folds=results[0]["n_folds"] or 1,
        matrices=np.stack(matrices),
        images=PerImageConfusion.joined(known) if is_known else None,
        fold_of={n: fold for fold, part in zip(folds, known, strict=True) for n in part.names} if is_known else {},
        epoch="last" if has_last else "best",
        best_miou=_pooled_miou(best) if has_last else math.nan,
        notes=tuple(notes),
        stopped=stopped[0] if stopped else "",
        details=_details(runs) if has_last else None,
        digest=digests.pop() if len(digests) == 1 else "",
    )


def _details(runs: Sequence[tuple[RunFolder, dict[str, Any]]]) -> PerImageDetails | None:
    """Read the details of the images of all folds; None if a fold has none, or damaged ones."""
    with suppress(DataError):
        parts = [run.read_last_details() for run, _ in runs]
        if known := [part for part in parts if part is not None]:
            return PerImageDetails.joined(known) if len(known) == len(parts) else None
    return None


def is_outdated(result: CrossValidation, folder: Path) -> bool:
    """Check whether `cv.json` was written from other folds or figures than those that are there now.

    Args:
        result: The pooled folds as they are now.
        folder: Folder of the experiment.
    """
    written = ExperimentFolder(folder).read_result()
    if written is None or written.get("epoch", "best") != result.epoch:
        return False
    return [written.get("folds"), written.get("confusion_matrix")] != [result.folds, result.matrix.tolist()]


def _pooled_miou(parts: Sequence[PerImageConfusion | None]) -> float:
    """Return the mIoU of the images of all folds; nan if any is unknown."""
    known = [part.total() for part in parts if part is not None]
    return float(nan_mean(truth_iou(np.sum(known, axis=0)))) if len(known) == len(parts) else math.nan


def aggregate(folder: Path) -> CrossValidation:
    """Pool the finished folds of an experiment and write `cv.json`, `cv.csv`, `cv.png` and `oof.npz`.

    Args:
        folder: Folder of the experiment.

    Raises:
        FileNotFoundError: If there is no finished fold, or a fold has no per-image matrices.
    """
    result = read_cv(folder)
    if result.images is None:
        raise MissingFileError(f"no image_matrices.npz in a fold of {folder.absolute()}. Train the fold again.")
    files = ExperimentFolder(folder)
    result.images.write(files.images)
    write_text(files.table, _table_csv(result))
    _draw(result, files.figure)
    files.write_result(result.to_dict())
    return result


def print_cv(result: CrossValidation, folder: Path) -> None:
    """Print the IoU of each class, pooled and per fold.

    Args:
        result: The pooled folds.
        folder: Folder of the experiment, named at the end.
    """
    means, stds = _fold_means(result.iou), _fold_stds(result.iou)
    console = table_console()
    console.print(f"{result.name}: {len(result.folds)} of {result.n_folds} folds", style="bold", markup=False)
    # No name of a class is broken, and a table has one fold at least.
    at_once = max(1, (console.width - max(map(len, result.class_names)) - _OTHER_WIDTH) // _COLUMN_WIDTH)
    for start in range(0, len(result.folds), at_once):
        chosen = range(start, min(start + at_once, len(result.folds)))
        table = Table()
        table.add_column("IoU", overflow="fold")
        for column in ["pooled", *(f"fold {result.folds[row]}" for row in chosen), "mean", "std"]:
            table.add_column(column, justify="right", no_wrap=True)
        for index, name in enumerate(result.class_names):
            values = [result.pooled_iou[index], *result.iou[list(chosen), index], means[index], stds[index]]
            table.add_row(escape(name), *(shown(value) for value in values))
        table.add_section()
        values = [result.pooled_miou, *result.miou[list(chosen)], result.miou.mean(), result.miou_std]
        table.add_row("mIoU", *(shown(value) for value in values))
        console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    if not math.isnan(result.optimism):
        console.print(
            f"Figures are of the last epoch. The best epoch of each fold, chosen on these images, has a pooled mIoU of "
            f"{result.best_miou:.3f} ({result.optimism:+.3f}).",
            soft_wrap=True,
        )
    console.print(f"Written to {folder}: cv.json, cv.csv, cv.png, oof.npz", soft_wrap=True, markup=False)


def _fold_means(iou: Floats) -> Floats:
    """Compute the (K,) mean of (F, K) IoU over the folds that have the class; nan if none has it."""
    return nan_mean(iou.T)


def _fold_stds(iou: Floats) -> Floats:
    """Compute the (K,) standard deviation of (F, K) IoU over the folds that have the class; nan for fewer than two."""
    number = (~np.isnan(iou)).sum(axis=0)
    squares = np.nansum((iou - _fold_means(iou)) ** 2, axis=0)
    return np.sqrt(np.divide(squares, number - 1, out=np.full(iou.shape[1], np.nan), where=number > 1))


def _table_csv(result: CrossValidation) -> str:
    rows: list[tuple[str, Sequence[float]]] = [
        *((name, [result.pooled_iou[i], *result.iou[:, i]]) for i, name in enumerate(result.class_names)),
        ("mIoU", [result.pooled_miou, *result.miou]),
    ]
    header = ["class", "pooled", *(f"fold_{fold}" for fold in result.folds)]
    return csv_text(
        [header, *([name, *("" if math.isnan(v) else f"{v:.6f}" for v in values)] for name, values in rows)]
    )


def _draw(result: CrossValidation, path: Path) -> None:
    """Draw the pooled IoU of each class as a bar and the folds as points."""
    from matplotlib.figure import Figure

    names = [*result.class_names, "mIoU"]
    pooled = [*result.pooled_iou, result.pooled_miou]
    figure = Figure(figsize=(2.2 + 0.55 * len(names), 3.6), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue"] * len(result.class_names) + ["tab:orange"]
    axes.bar(range(len(names)), np.nan_to_num(pooled), color=colors, alpha=0.55)
    for row in range(len(result.folds)):
        axes.plot(range(len(names)), [*result.iou[row], result.miou[row]], "k.", markersize=5, alpha=0.7)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set(ylim=(0, 1), ylabel="IoU", title=f"{result.name}: pooled over {len(result.folds)} folds; points: folds")
    figure.savefig(path, dpi=120)
