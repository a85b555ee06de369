"""Show the IoU of each class beside what it is computed from: pictures, objects, and area."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

_FULL_COLOR = 0.15  # difference in IoU that gets the strongest colour
MAX_OPACITY = 0.45  # of a cell's colour; text on a stronger colour would be hard to read


def class_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return name, support and cells of each class: text, sort value, CSS colour and its opacity."""
    base = comparison.entries[0]
    support = _support(base, comparison.class_names)
    return [
        {
            "name": name,
            "support": [{"text": text, "value": value} for text, value in support[index]],
            "cells": [_cell(entry, base, index) for entry in comparison.entries],
        }
        for index, name in enumerate(comparison.class_names)
    ]


def _cell(entry: Entry, base: Entry, index: int) -> dict[str, Any]:
    value = float(entry.iou[index])
    if math.isnan(value):
        return {"text": "absent", "value": "", "hue": "--heat", "strength": 0}
    text = f"{value:.3f}{'*' if entry.is_starred(index) else ''}"
    if entry is base:
        hue, strength = "--heat", MAX_OPACITY * value
    else:
        # On the images that both held out, which are fewer for what was stopped early.
        shift = value - float(base.iou[index]) if entry.per_class is None else entry.per_class[index].mean
        strength = 0.0 if math.isnan(shift) else min(abs(shift) / _FULL_COLOR, 1) * MAX_OPACITY
        hue = "--good" if shift > 0 else "--bad"
    return {"text": text, "value": round(value, 6), "hue": hue, "strength": round(strength, 3)}


def _support(base: Entry, class_names: Sequence[str]) -> list[list[tuple[str, float | str]]]:
    """Return pictures, objects and share of the pixels of each class, as texts with their sort values."""
    truth = base.matrix.sum(axis=1)
    shares = truth / max(int(truth.sum()), 1)
    pictures = None if base.images is None else _pictures(base.images)
    objects = _objects(base)
    rows: list[list[tuple[str, float | str]]] = []
    for index, name in enumerate(class_names):
        number = "" if pictures is None else str(pictures[index])
        of_class = objects.get(name)
        share = float(shares[index])
        rows.append(
            [
                (number, number),
                ("" if of_class is None else f"{of_class:.0f}", "" if of_class is None else of_class),
                ("< 0.01%" if 0 < share < 1e-4 else f"{share:.2%}", share),
            ]
        )
    return rows


def _pictures(images: PerImageConfusion) -> list[int]:
    """Count the images whose truth holds each class."""
    k = images.num_classes
    gather = csr_matrix(np.kron(np.eye(k, dtype=np.int64), np.ones((k, 1), dtype=np.int64)))
    return [int(count) for count in np.asarray(((images.counts @ gather) > 0).sum(axis=0)).reshape(-1)]


def _objects(entry: Entry) -> Mapping[str, float]:
    """Return the number of objects of each class in the folds that are shown, from `balance.csv`; empty without it."""
    found: dict[str, float] = defaultdict(float)
    with suppress(DataError, KeyError, ValueError):  # damaged: the page shows none
        for row in ExperimentFolder(entry.folder).read_balance():
            if int(row["fold"]) in entry.cv.folds:
                found[row["class"]] += float(row["objects"])
    return found
