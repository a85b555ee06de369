"""The report page: one self-contained file that asks nothing of any server."""

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.drawing import overlay
from deeplab_lightning.experiments.comparison import Comparison, Entry, interval_text, is_clear, rows
from deeplab_lightning.experiments.report import charts
from deeplab_lightning.files import write_text
from deeplab_lightning.metrics.iou import mean_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

_PICTURES, _PICTURE_WIDTH, _QUALITY = 12, 480, 80
_AT_ONCE = 256  # pictures
_FULL_COLOR = 0.15  # difference in IoU that is drawn in full colour
_MAX_COLOR = 0.45  # opacity of it; text on more would be hard to read
_COLUMNS = {
    "experiment": "experiment", "mIoU": "miou", "folds": "fold_mean", "difference": "difference",
    "p (Holm)": "p_holm", "M params": "mega_parameters", "GMACs": "giga_macs", "minutes": "seconds",
}  # fmt: skip


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page.

    Args:
        comparison: What to show.
        path: The HTML file.
    """
    environment = Environment(
        loader=PackageLoader("deeplab_lightning.experiments.report", "."), autoescape=True, undefined=StrictUndefined
    )
    entries = comparison.entries
    pictures, legend, missing = _gallery(comparison)
    scored = [(e.label, e.miou, *e.interval, [float(v) for v in e.cv.miou]) for e in entries]
    costs = [(e.label, e.cost["giga_macs"], e.miou) for e in entries if e.cost["giga_macs"] is not None]
    page = environment.get_template("page.html").render(
        title="Comparison of " + ", ".join(e.label for e in entries)
        if len(entries) < 4
        else f"{len(entries)} experiments",
        findings=_findings(comparison),
        notes=[*comparison.notes, *missing],
        columns=list(_COLUMNS),
        rows=_summary(comparison),
        labels=[e.label for e in entries],
        intervals=Markup(charts.intervals(scored, "mIoU")),
        class_rows=_classes(comparison),
        curves=Markup(charts.lines([(e.label, _curve(e)) for e in entries], "epoch", "mIoU")),
        costs=Markup(charts.scatter(costs, "10^9 multiply-adds at 512x512", "mIoU")),  # type: ignore[arg-type]
        balance=_balance(entries[0].folder),
        gallery=Markup(_json(pictures)),
        views=list(pictures[0]["views"]) if pictures else [],
        legend=legend,
    )
    write_text(path, page)


def _findings(comparison: Comparison) -> list[str]:
    """The answer in words."""
    base = comparison.entries[0]
    sentences = []
    for entry in comparison.entries[1:]:
        known = [d for d in (entry.over_folds, entry.over_images) if d is not None and not math.isnan(d.low)]
        if not known:
            sentences.append(f"{entry.label} differs from {base.label} by {entry.difference:+.3f} mIoU.")
            continue
        difference = known[0]
        basis = "per fold" if difference is entry.over_folds else "over all pictures"
        span = interval_text(difference.low, difference.high, signed=True)
        p = entry.adjusted_p
        verdict = "better than" if difference.mean > 0 else "worse than"
        if not is_clear(difference) or not p < 0.05:
            verdict = "not distinguishable from"
        sentences.append(
            f"{entry.label} is {verdict} {base.label}: {difference.mean:+.3f} mIoU {basis} (95 %: {span}; p = {p:.3f})."
        )
    return sentences


def _summary(comparison: Comparison) -> list[list[dict[str, Any]]]:
    table = []
    for entry, row in zip(comparison.entries, rows(comparison), strict=True):
        texts = {
            "experiment": entry.label,
            "miou": f"{entry.miou:.3f}" + (f" ({interval})" if (interval := interval_text(*entry.interval)) else ""),
            "fold_mean": f"{row['fold_mean']:.3f}"
            + ("" if math.isnan(row["fold_std"]) else f" ± {row['fold_std']:.3f}"),
            "difference": "baseline" if math.isnan(entry.difference) else f"{entry.difference:+.3f}",
            "p_holm": "" if math.isnan(entry.adjusted_p) else f"{entry.adjusted_p:.3f}",
            "mega_parameters": _number(row["mega_parameters"]),
            "giga_macs": _number(row["giga_macs"]),
            "seconds": _number(None if row["seconds"] is None else row["seconds"] / 60),
        }
        cells = []
        for key in _COLUMNS.values():
            value = row[key]
            is_known = value is not None and value == value
            cells.append({"text": texts[key], "value": value if is_known else ""})
        table.append(cells)
    return table


def _classes(comparison: Comparison) -> list[dict[str, Any]]:
    base = comparison.entries[0]
    table = []
    for index, name in enumerate(comparison.classes):
        cells = []
        for entry in comparison.entries:
            value = float(entry.iou[index])
            star = entry.per_class is not None and is_clear(entry.per_class[index])
            shift = value - float(base.iou[index])
            if math.isnan(value):
                cells.append({"text": "absent", "hue": "--heat", "strength": 0})
            elif entry is base:
                cells.append({"text": f"{value:.3f}", "hue": "--heat", "strength": round(_MAX_COLOR * value, 3)})
            else:
                strength = 0 if math.isnan(shift) else min(abs(shift) / _FULL_COLOR, 1) * _MAX_COLOR
                hue = "--good" if shift > 0 else "--bad"
                cells.append({"text": f"{value:.3f}{'*' if star else ''}", "hue": hue, "strength": round(strength, 3)})
        table.append({"name": name, "cells": cells})
    return table


def _curve(entry: Entry) -> list[tuple[float, float]]:
    """Mean validation mIoU over the folds, per epoch that all of them have."""
    by_epoch: dict[int, list[float]] = defaultdict(list)
    for run in ExperimentFolder(entry.folder).runs():
        for row in run.read_metrics():
            if "val/miou" in row:
                by_epoch[int(row["epoch"]) + 1].append(row["val/miou"])
    most = max(map(len, by_epoch.values()), default=0)
    return [(epoch, sum(v) / len(v)) for epoch, v in sorted(by_epoch.items()) if len(v) == most]


def _balance(folder: Path) -> dict[str, Any] | None:
    table = ExperimentFolder(folder).read_balance()
    if not table:
        return None
    folds = sorted({int(row["fold"]) for row in table})
    by_class: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in table:
        for key in ("object_deviation", "area_deviation"):
            by_class[row["class"]][key, int(row["fold"])] = float(row[key])
    lines = []
    for name, values in by_class.items():
        cells = []
        for key in ("object_deviation", "area_deviation"):
            for fold in folds:
                value = values[key, fold]
                known = not math.isnan(value)
                cells.append(
                    {"text": f"{value:.1%}" if known else "-", "strength": _MAX_COLOR * min(value, 1) if known else 0}
                )
        lines.append({"name": name, "cells": cells})
    return {"folds": folds, "rows": lines}


def _gallery(comparison: Comparison) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """Pictures with the lowest mIoU over all experiments, the legend, and why there are none."""
    predicted = [entry for entry in comparison.entries if _has_predictions(entry)]
    if not predicted:
        return [], [], ["no pictures are shown: `deeplab kfold --predictions` writes what they need."]
    try:
        dataset = _dataset(comparison.entries[0].folder)
    except (OSError, ValueError, SystemExit) as error:  # the parser exits where a class is there no more
        reason = "see above" if isinstance(error, SystemExit) else str(error).splitlines()[0]
        return [], [], [f"no pictures are shown: the data cannot be read ({reason})."]
    place = {name: index for index, name in enumerate(dataset.names)}
    images = [entry.images for entry in comparison.entries if entry.images is not None]
    if not images:
        return [], [], ["no pictures are shown: they are not known one by one."]
    scores = np.array([_picture_scores(matrices) for matrices in images])  # (M, N)
    order = np.argsort(np.nan_to_num(scores.mean(axis=0), nan=np.inf), kind="stable")
    pictures: list[dict[str, Any]] = []
    for row in order.tolist():
        name = images[0].names[row]
        paths = {e.label: _prediction(e, name, dataset.paths[place[name]]) for e in predicted} if name in place else {}
        if not paths or not all(path.is_file() for path in paths.values()):
            continue
        try:
            image = dataset.read_image(place[name]).permute(1, 2, 0).numpy()
            views = {"picture": image, "truth": overlay(image, dataset.read_mask(place[name]).numpy(), dataset.classes)}
            for label, path in paths.items():
                views[label] = overlay(image, np.asarray(Image.open(path)), dataset.classes)
        except (OSError, ValueError):  # a damaged file costs its own picture
            continue
        texts = [f"{e.label} {scores[i, row]:.3f}" for i, e in enumerate(comparison.entries)]
        pictures.append(
            {
                "name": name,
                "views": {label: _data_url(pixels) for label, pixels in views.items()},
                "scores": "mIoU of this picture: " + ", ".join(texts),
            }
        )
        if len(pictures) == _PICTURES:
            break
    colors = [f"rgb{tuple(color)}" for color in dataset.classes.colors or ()]
    legend = [{"name": name, "color": color} for name, color in zip(dataset.classes.names, colors, strict=True)]
    return pictures, legend, [] if pictures else ["no pictures are shown: the predictions are of other pictures."]


def _picture_scores(images: PerImageConfusion) -> npt.NDArray[np.float64]:
    """(N,) mIoU of each picture, some at a time: with many classes their matrices are large."""
    k, rows = images.num_classes, range(0, len(images.names), _AT_ONCE)
    dense = (np.asarray(images.counts[start : start + _AT_ONCE].todense()) for start in rows)
    return np.concatenate([mean_iou(part.reshape(-1, k, k)) for part in dense])


def _has_predictions(entry: Entry) -> bool:
    return any((run.val_predictions / "masks").is_dir() for run in ExperimentFolder(entry.folder).runs())


def _prediction(entry: Entry, name: str, picture: Path) -> Path:
    masks = ExperimentFolder(entry.folder).fold(entry.cv.fold_of[name]).val_predictions / "masks"
    return masks / Path(str(picture.absolute()).lstrip("/")).with_suffix(".png")


def _dataset(folder: Path) -> SegmentationDataset:
    dataset = datamodule_from_config(ExperimentFolder(folder).read_config()["data"], on_error="skip").dataset
    assert dataset is not None
    return dataset


def _data_url(pixels: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    if picture.width > _PICTURE_WIDTH:
        picture = picture.resize((_PICTURE_WIDTH, round(picture.height * _PICTURE_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _json(pictures: Sequence[dict[str, Any]]) -> str:
    """For a script element: no `<` that could end it."""
    return json.dumps(pictures).replace("<", "\\u003c") if pictures else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
