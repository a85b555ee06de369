"""Write a comparison, or one experiment, as one HTML page that needs no server."""

import json
import math
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.comparison_table import (
    comparison_rows,
    cost_text,
    folds_text,
    interval_text,
    minutes_text,
    p_text,
)
from deeplab_lightning.experiments.details import missing_details
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.experiments.report import charts
from deeplab_lightning.experiments.report.class_table import MAX_OPACITY, class_rows
from deeplab_lightning.experiments.report.confusion import confusion_data, worst_pairs
from deeplab_lightning.experiments.report.detail_table import detail_classes, detail_rows
from deeplab_lightning.experiments.report.gallery import make_gallery
from deeplab_lightning.experiments.report.origin import all_settings, folder_link, origin_rows, settings_rows
from deeplab_lightning.experiments.report.training_curves import training_curve
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder

_COLUMNS = {
    "experiment": "experiment", "mIoU": "miou", "folds": "fold_mean", "difference": "difference",
    "p (Holm)": "p_holm", "M params": "mega_parameters", "GMACs": "giga_macs", "minutes": "seconds",
}  # fmt: skip
_OF_DIFFERENCES = ("difference", "p (Holm)")
_DEVIATIONS = ("object_deviation", "area_deviation")  # columns of balance.csv
_MAX_TITLE = 3  # experiments that the title names
_TERMS = {
    "mIoU": "Mean over the classes of intersection over union, from one confusion matrix over all held-out images",
    "folds": "Mean and standard deviation of the mIoU of the compared folds",
    "difference": "mIoU minus that of the first experiment, over the same images",
    "p (Holm)": "Probability of such a difference where there is none, adjusted for the number of comparisons",
    "M params": "Parameters of the network in millions",
    "GMACs": "10^9 multiply-adds of one image of 512x512",
    "minutes": "Time of the training of the compared folds and all seeds",
    "pictures": "Held-out images that show the class",
    "objects": "Annotated objects, or connected regions of the masks",
    "area": "Share of the pixels that are not ignored",
    "boundary IoU": "IoU of the pixels within 2 % of the image's diagonal of the contours of their class",
    "recall of small objects": "Share of their pixels that are found; objects of less than 1/300 of the image",
    "recall of medium objects": "Share of their pixels that are found; objects of 1/300 to 3/100 of the image",
    "recall of large objects": "Share of their pixels that are found; objects of 3/100 of the image or more",
}


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison, or of one experiment.

    Args:
        comparison: Comparison to show.
        path: The HTML file.
    """
    environment = Environment(
        loader=PackageLoader("deeplab_lightning.experiments.report", "."), autoescape=True, undefined=StrictUndefined
    )
    entries, labels = comparison.entries, [entry.label for entry in comparison.entries]
    gallery = make_gallery(comparison)
    is_one = len(entries) == 1
    columns = [name for name in _COLUMNS if not (is_one and name in _OF_DIFFERENCES)]
    page = environment.get_template("page.html").render(
        title=_title(labels),
        findings=comparison.sentences,
        notes=[*comparison.notes, *_calibrations(entries), *gallery.notes],
        terms=_TERMS,
        columns=columns,
        rows=_summary(comparison, columns, path),
        labels=labels,
        basis=comparison.basis,
        class_basis=comparison.class_basis,
        class_rows=class_rows(comparison),
        detail_rows=detail_rows(comparison),
        detail_classes=detail_classes(comparison),
        missing_details=missing_details(labels, [entry.cv for entry in entries]),
        pairs=worst_pairs(comparison),
        confusion=_json(confusion_data(comparison)),
        **_charts(comparison),
        balance=_balance(entries[0].folder),
        settings=settings_rows(entries),
        all_settings=all_settings(entries),
        origin=origin_rows(entries),
        gallery=_json(gallery.images),
        views=list(gallery.images[0]["views"]) if gallery.images else [],
        legend=gallery.legend,
    )
    write_text(path, page.lstrip())


def _calibrations(entries: list[Entry]) -> list[str]:
    """Say how well the probabilities of each experiment agree with its labels, if `deeplab calibrate` was run."""
    sentences = []
    for entry in entries:
        found = ExperimentFolder(entry.folder).read_calibration() or {}
        with suppress(KeyError, TypeError, ValueError):  # damaged: the page is worth more than this sentence
            before, after = (found["cross_fitted"][key]["ece"] for key in ("before", "after"))
            sentences.append(
                f"Expected calibration error of {entry.label}: {before:.3f}, and {after:.3f} with the temperature of "
                f"the other folds; that of all is {found['temperature']:.3f}."
            )
    return sentences


def _title(labels: list[str]) -> str:
    if len(labels) == 1:
        return f"Report of {labels[0]}"
    return "Comparison of " + ", ".join(labels) if len(labels) <= _MAX_TITLE else f"{len(labels)} experiments"


def _charts(comparison: Comparison) -> dict[str, Any]:
    """Draw the charts of the page by their names in the template."""
    entries = comparison.entries
    points = [
        charts.Interval(e.label, e.miou, *e.interval, [float(v) for v in e.fold_mious], color)
        for color, e in enumerate(entries)
    ]
    differences = []
    for color, entry in enumerate(entries):
        if entry.verdict is not None and not math.isnan(entry.verdict.deciding.mean):
            found = entry.verdict.deciding
            basis = f", over {entry.verdict.basis}" if entry.verdict.basis else ""
            differences.append(charts.Interval(entry.label, found.mean, found.low, found.high, [], color, basis))
    costs = [(e.label, e.cost["giga_macs"], e.miou) for e in entries if e.cost["giga_macs"] is not None]
    curves = {"miou": [training_curve(e, "val/miou", color=color) for color, e in enumerate(entries)], "loss": []}
    for color, entry in enumerate(entries):
        curves["loss"] += [
            training_curve(entry, "val/loss", color=color, label=f"{entry.label}, validation"),
            training_curve(entry, "train/loss", color=color, label=f"{entry.label}, training", is_dashed=True),
        ]
    axis = f"difference of mIoU from {entries[0].label}"
    return {
        "intervals": Markup(charts.intervals(points, "mIoU")),
        "forest": Markup(charts.intervals(differences, axis, is_difference=True)),
        "curves": Markup(charts.curves(curves["miou"], "epoch", "mIoU")),
        "losses": Markup(charts.curves(curves["loss"], "epoch", "loss")),
        "costs": Markup(charts.scatter(costs, "10^9 multiply-adds at 512x512", "mIoU")),
    }


def _summary(comparison: Comparison, columns: list[str], path: Path) -> list[list[dict[str, Any]]]:
    """Return text, sort value and link of each cell of the table of experiments."""
    table = []
    for entry, row in zip(comparison.entries, comparison_rows(comparison), strict=True):
        texts = _texts(entry, row)
        cells = []
        for key in (_COLUMNS[column] for column in columns):
            value = row[key]
            is_known = value is not None and value == value
            link = folder_link(entry, path) if key == "experiment" else ""
            cells.append({"text": texts[key], "value": value if is_known else "", "link": link})
        table.append(cells)
    return table


def _texts(entry: Entry, row: dict[str, Any]) -> dict[str, str]:
    """Format the figures of an experiment."""
    interval = interval_text(*entry.interval)
    return {
        "experiment": entry.label,
        "miou": f"{entry.miou:.3f}" + (f" ({interval})" if interval else ""),
        "fold_mean": folds_text(entry),
        "difference": "baseline" if math.isnan(entry.difference) else f"{entry.difference:+.3f}",
        "p_holm": p_text(entry.adjusted_p),
        "mega_parameters": cost_text(row["mega_parameters"]),
        "giga_macs": cost_text(row["giga_macs"]),
        "seconds": minutes_text(row["seconds"]),
    }


def _balance(folder: Path) -> dict[str, Any] | None:
    """Return the table of fold balance, one row per class; None without a readable `balance.csv`."""
    try:
        table = ExperimentFolder(folder).read_balance()
    except DataError as error:
        print(f"{error} The page shows no balance.", file=sys.stderr)
        return None
    if not table:
        return None
    folds = sorted({int(row["fold"]) for row in table})
    by_class: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in table:
        for key in _DEVIATIONS:
            by_class[row["class"]][key, int(row["fold"])] = float(row[key])
    lines = [
        {"name": name, "cells": [_balance_cell(values[key, fold]) for key in _DEVIATIONS for fold in folds]}
        for name, values in by_class.items()
    ]
    return {"folds": folds, "rows": lines}


def _balance_cell(deviation: float) -> dict[str, Any]:
    if math.isnan(deviation):
        return {"text": "-", "strength": 0}
    return {"text": f"{deviation:.1%}", "strength": MAX_OPACITY * min(deviation, 1)}


def _json(content: Any) -> Markup:
    """Format data as JSON for a script element, without a `<` that could end it; an empty text without data."""
    return Markup(json.dumps(content).replace("<", "\\u003c") if content else "")
