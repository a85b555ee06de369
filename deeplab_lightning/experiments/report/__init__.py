"""Write a comparison as one HTML page that needs no server."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deeplab_lightning.experiments.comparison_table import (
    comparison_rows,
    cost_text,
    folds_text,
    interval_text,
    minutes_text,
    p_text,
)
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.experiments.report import charts
from deeplab_lightning.experiments.report.gallery import make_gallery
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder

_FULL_COLOR = 0.15  # difference in IoU that gets the strongest colour
_MAX_OPACITY = 0.45  # of a cell's colour; text on a stronger colour would be hard to read
_COLUMNS = {
    "experiment": "experiment", "mIoU": "miou", "folds": "fold_mean", "difference": "difference",
    "p (Holm)": "p_holm", "M params": "mega_parameters", "GMACs": "giga_macs", "minutes": "seconds",
}  # fmt: skip
_DEVIATIONS = ("object_deviation", "area_deviation")  # columns of balance.csv


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report page.

    Args:
        comparison: Comparison to show.
        path: The HTML file.
    """
    environment = Environment(
        loader=PackageLoader("deeplab_lightning.experiments.report", "."), autoescape=True, undefined=StrictUndefined
    )
    entries = comparison.entries
    gallery = make_gallery(comparison)
    points = [(e.label, e.miou, *e.interval, [float(v) for v in e.cv.miou]) for e in entries]
    costs = [(e.label, e.cost["giga_macs"], e.miou) for e in entries if e.cost["giga_macs"] is not None]
    page = environment.get_template("page.html").render(
        title="Comparison of " + ", ".join(e.label for e in entries)
        if len(entries) < 4
        else f"{len(entries)} experiments",
        findings=comparison.sentences,
        notes=[*comparison.notes, *gallery.notes],
        columns=list(_COLUMNS),
        rows=_summary(comparison),
        labels=[e.label for e in entries],
        basis=comparison.basis,
        class_basis=comparison.class_basis,
        intervals=Markup(charts.intervals(points, "mIoU")),
        class_rows=_class_rows(comparison),
        curves=Markup(charts.lines([(e.label, _curve(e)) for e in entries], "epoch", "mIoU")),
        costs=Markup(charts.scatter(costs, "10^9 multiply-adds at 512x512", "mIoU")),
        balance=_balance(entries[0].folder),
        gallery=Markup(_json(gallery.images)),
        views=list(gallery.images[0]["views"]) if gallery.images else [],
        legend=gallery.legend,
    )
    write_text(path, page)


def _summary(comparison: Comparison) -> list[list[dict[str, Any]]]:
    """Return text and sort value of each cell of the table of experiments."""
    table = []
    for entry, row in zip(comparison.entries, comparison_rows(comparison), strict=True):
        interval = interval_text(*entry.interval)
        texts = {
            "experiment": entry.label,
            "miou": f"{entry.miou:.3f}" + (f" ({interval})" if interval else ""),
            "fold_mean": folds_text(entry),
            "difference": "baseline" if math.isnan(entry.difference) else f"{entry.difference:+.3f}",
            "p_holm": p_text(entry.adjusted_p),
            "mega_parameters": cost_text(row["mega_parameters"]),
            "giga_macs": cost_text(row["giga_macs"]),
            "seconds": minutes_text(row["seconds"]),
        }
        cells = []
        for key in _COLUMNS.values():
            value = row[key]
            is_known = value is not None and value == value
            cells.append({"text": texts[key], "value": value if is_known else ""})
        table.append(cells)
    return table


def _class_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return name and cells of each class: text, CSS colour and its opacity."""
    base = comparison.entries[0]
    table = []
    for index, name in enumerate(comparison.class_names):
        cells = []
        for entry in comparison.entries:
            value = float(entry.iou[index])
            star = "*" if entry.is_starred(index) else ""
            shift = value - float(base.iou[index])
            if math.isnan(value):
                cells.append({"text": "absent", "hue": "--heat", "strength": 0})
            elif entry is base:
                cells.append({"text": f"{value:.3f}", "hue": "--heat", "strength": round(_MAX_OPACITY * value, 3)})
            else:
                strength = 0 if math.isnan(shift) else min(abs(shift) / _FULL_COLOR, 1) * _MAX_OPACITY
                hue = "--good" if shift > 0 else "--bad"
                cells.append({"text": f"{value:.3f}{star}", "hue": hue, "strength": round(strength, 3)})
        table.append({"name": name, "cells": cells})
    return table


def _curve(entry: Entry) -> list[tuple[float, float]]:
    """Return the mean validation mIoU over the folds, for each epoch that all of them have."""
    by_epoch: dict[int, list[float]] = defaultdict(list)
    for run in ExperimentFolder(entry.folder).runs():
        for row in run.read_metrics():
            if "val/miou" in row:
                by_epoch[int(row["epoch"]) + 1].append(row["val/miou"])
    num_folds = max(map(len, by_epoch.values()), default=0)
    return [(epoch, sum(v) / len(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == num_folds]


def _balance(folder: Path) -> dict[str, Any] | None:
    """Return the table of fold balance, one row per class; None without `balance.csv`."""
    table = ExperimentFolder(folder).read_balance()
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
    return {"text": f"{deviation:.1%}", "strength": _MAX_OPACITY * min(deviation, 1)}


def _json(images: Sequence[dict[str, Any]]) -> str:
    """Format images as JSON for a script element, without a `<` that could end it."""
    return json.dumps(images).replace("<", "\\u003c") if images else ""
