"""`deeplab compare`: is B better than A, by how much, at what cost."""

import argparse
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from scipy.sparse import csr_matrix

from deeplab_lightning.console import table_console
from deeplab_lightning.data.cache import write_atomically
from deeplab_lightning.data.problems import DataError
from deeplab_lightning.experiments.aggregate import CrossValidation, read_cv, run_folders
from deeplab_lightning.experiments.significance import (
    Difference,
    bootstrap_difference,
    bootstrap_iou,
    corrected_resampled_t,
    holm,
)
from deeplab_lightning.image_matrices import ImageMatrices, iou_of, miou_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One experiment among those compared.

    Attributes:
        cv: Its folds.
        folder: Where they lie.
        label: What tables call it: its folder's name, with parents' where names repeat.
        images: Its matrices of the pictures that all experiments share.
        interval: 95 % bootstrap interval of its pooled mIoU.
        over_folds: Difference from the baseline fold by fold; None for the baseline, or where the folds differ.
        over_images: Difference from the baseline over resampled pictures; None for the baseline.
        per_class: (K,) differences of the pooled IoU over resampled pictures; None for the baseline.
        adjusted_p: Holm's p over all comparisons, fold by fold where that can be, else over pictures.
        cost: Parameters in millions, multiply-adds in 10^9, training seconds; None where unknown.
    """

    cv: CrossValidation
    folder: Path
    label: str
    images: ImageMatrices
    interval: tuple[float, float]
    over_folds: Difference | None
    over_images: Difference | None
    per_class: list[Difference] | None
    adjusted_p: float
    cost: dict[str, float | None]

    @property
    def miou(self) -> float:
        """Pooled over the shared pictures."""
        return float(miou_of(self.images.total()))

    @property
    def iou(self) -> Floats:
        """(K,) pooled over the shared pictures."""
        return iou_of(self.images.total())


@dataclass(frozen=True)
class Comparison:
    """Experiments side by side; the first is the baseline.

    Attributes:
        entries: In the order given.
        classes: K names.
        notes: What limits the comparison, a sentence each.
    """

    entries: list[Entry]
    classes: list[str]
    notes: list[str]


def compare(args: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="deeplab compare",
        description="Compare experiments of `deeplab kfold` or single runs; the first is the baseline.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of experiments or runs")
    parser.add_argument("--csv", type=Path, help="write the table there")
    parser.add_argument("--html", type=Path, help="write a page with curves, classes and pictures there")
    given = parser.parse_args(args)
    compare_folders(given.folders, csv_path=given.csv, html_path=given.html)


def compare_folders(folders: Sequence[Path], *, csv_path: Path | None = None, html_path: Path | None = None) -> None:
    """Compare, print the table, and write what was asked for.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        DataError: If the classes differ, or no picture is shared.
    """
    comparison = compare_experiments(folders)
    console = table_console()
    console.print(_table(comparison))
    if len(comparison.entries) > 1:
        console.print(_class_table(comparison))
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if csv_path is not None:
        text = _csv(comparison)
        write_atomically(csv_path, lambda file: file.write(text.encode()))
        console.print(f"Written to {csv_path}", soft_wrap=True)
    if html_path is not None:
        from deeplab_lightning.experiments.report import write_report

        write_report(comparison, html_path)
        console.print(f"Written to {html_path}", soft_wrap=True)


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
    shared = sorted(set.intersection(*(set(result.images.names) for result in results)))
    if not shared:
        raise DataError(f"the experiments share no held-out picture: {', '.join(map(str, folders))}.")
    notes = []
    if any(len(result.images.names) > len(shared) for result in results):
        notes.append(f"only the {len(shared)} pictures that all experiments held out are compared.")
    groups = next(filter(None, (_groups(folder, shared) for folder in folders)), None)
    sets = [result.images.keep(shared) for result in results]
    resampled = bootstrap_iou(sets, groups=groups, num_resamples=num_resamples)  # (M, R, K)
    if any((_truth(images) != _truth(sets[0])).any() for images in sets):
        notes.append("the experiments counted other truths: other annotations, or another eval_transforms.max_size.")
    means = _nanmean(resampled)
    base, base_iou = results[0], iou_of(sets[0].total())
    over_folds = [_over_folds(base, result) for result in results]
    if any(difference is None for difference in over_folds):
        notes.append("folds differ between experiments, so they are compared over pictures and not fold by fold.")
    if len(base.folds) < 2:
        notes.append("with one fold the interval tells of the pictures alone, not of the chance of the training.")
    entries = []
    for index, (folder, result, images) in enumerate(zip(folders, results, sets, strict=True)):
        observed = float(miou_of(images.total()) - miou_of(sets[0].total()))
        iou = iou_of(images.total())
        is_base = index == 0
        low, high = np.nanquantile(means[index], [0.025, 0.975])
        entries.append(
            Entry(
                cv=result,
                folder=folder,
                label=_label(folder, folders),
                images=images,
                interval=(float(low), float(high)),
                over_folds=None if is_base else over_folds[index],
                over_images=None if is_base else bootstrap_difference(means[0], means[index], observed),
                per_class=None
                if is_base
                else [
                    bootstrap_difference(resampled[0, :, c], resampled[index, :, c], float(iou[c] - base_iou[c]))
                    for c in range(len(classes))
                ],
                adjusted_p=math.nan,
                cost=_cost(folder),
            )
        )
    adjusted = holm([_p_value(entry) for entry in entries])
    entries = [_with_p(entry, float(p)) for entry, p in zip(entries, adjusted, strict=True)]
    return Comparison(entries, classes, notes)


def _truth(images: ImageMatrices) -> npt.NDArray[np.int64]:
    """(N, K) pixels of each class in each picture's truth."""
    k = images.num_classes
    gather = csr_matrix(np.kron(np.eye(k, dtype=np.int64), np.ones((k, 1), dtype=np.int64)))
    return np.asarray((images.counts @ gather).todense())


def _over_folds(a: CrossValidation, b: CrossValidation) -> Difference | None:
    """Fold by fold, where both held out the same pictures in the same folds."""
    if a.fold_of != b.fold_of or a.n_folds != b.n_folds:
        return None
    differences = [float(b.miou[b.folds.index(fold)] - a.miou[a.folds.index(fold)]) for fold in a.folds]
    return corrected_resampled_t(differences, test_share=1 / max(a.n_folds, 2))


def _p_value(entry: Entry) -> float:
    if entry.over_folds is not None and not math.isnan(entry.over_folds.p):
        return entry.over_folds.p
    return math.nan if entry.over_images is None else entry.over_images.p


def _with_p(entry: Entry, p: float) -> Entry:
    return Entry(**{**entry.__dict__, "adjusted_p": p})


def _nanmean(iou: Floats) -> Floats:
    """(M, R, K) -> (M, R) over the classes that are there."""
    present = ~np.isnan(iou)
    return np.where(present, iou, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)


def _groups(folder: Path, names: Sequence[str]) -> list[str] | None:
    path = folder / "folds.csv"
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        labels = {row["image"]: row["group"] for row in csv.DictReader(file)}
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
    paths = [run / "result.json" for run in run_folders(folder)]
    results: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths if path.is_file()]
    cost = results[0].get("cost", {})
    seconds = sum(result["seconds"] for result in results)
    return {"mega_parameters": cost.get("mega_parameters"), "giga_macs": cost.get("giga_macs"), "seconds": seconds}


def _table(comparison: Comparison) -> Table:
    title = f"mIoU over {len(comparison.entries[0].images.names)} held-out pictures; differences from the first"
    table = Table(title=title, title_justify="left")
    columns = ("experiment", "mIoU", "95 % pictures", "folds", "difference", "95 % folds", "95 % pictures", "p (Holm)",
               "M params", "GMACs", "minutes")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "experiment" else "right")
    for entry in comparison.entries:
        spread = entry.cv.miou.std(ddof=1) if len(entry.cv.miou) > 1 else math.nan
        folds = f"{entry.cv.miou.mean():.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
        difference = "" if entry.over_images is None else f"{entry.over_images.mean:+.3f}"
        cost = entry.cost
        table.add_row(
            entry.label,
            f"{entry.miou:.3f}",
            interval_text(*entry.interval),
            folds,
            difference,
            "" if entry.over_folds is None else interval_text(entry.over_folds.low, entry.over_folds.high, signed=True),
            ""
            if entry.over_images is None
            else interval_text(entry.over_images.low, entry.over_images.high, signed=True),
            "" if math.isnan(entry.adjusted_p) else f"{entry.adjusted_p:.3f}",
            _number(cost["mega_parameters"]),
            _number(cost["giga_macs"]),
            _number((cost["seconds"] or 0) / 60),
        )
    return table


def _class_table(comparison: Comparison) -> Table:
    table = Table(title="IoU of each class, pooled; * where the 95 % interval over pictures excludes no difference",
                  title_justify="left")  # fmt: skip
    table.add_column("class")
    for entry in comparison.entries:
        table.add_column(entry.label, justify="right")
    for index, name in enumerate(comparison.classes):
        cells = []
        for entry in comparison.entries:
            value = entry.iou[index]
            text = "absent" if math.isnan(value) else f"{value:.3f}"
            if entry.per_class is not None and is_clear(entry.per_class[index]):
                text += "*"
            cells.append(text)
        table.add_row(name, *cells)
    return table


def is_clear(difference: Difference) -> bool:
    """Whether the interval excludes no difference."""
    return bool(difference.low > 0 or difference.high < 0)


def interval_text(low: float, high: float, *, signed: bool = False) -> str:
    """Both ends of an interval, or nothing where it is unknown."""
    if math.isnan(low):
        return ""
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


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
            "difference": images.mean if images else math.nan,
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


def _csv(comparison: Comparison) -> str:
    text = io.StringIO()
    table = rows(comparison)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table[0])
    for row in table:
        writer.writerow(
            ["" if v is None or v != v else f"{v:.6g}" if isinstance(v, float) else v for v in row.values()]
        )
    return text.getvalue()
