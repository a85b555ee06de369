"""Show boundary IoU and the recall of objects by size, over the classes and of each class."""

import math
from typing import Any

from deeplab_lightning.experiments.comparison_table import interval_text
from deeplab_lightning.experiments.details import NAMES, Details
from deeplab_lightning.experiments.entries import Comparison
from deeplab_lightning.experiments.significance import Difference

_EMPTY = {"text": "", "value": ""}


def detail_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return name, number of objects and a cell per experiment of each figure; none without details."""
    found = comparison.details or []
    return [
        {
            "name": name,
            "objects": _count(int(found[0].objects[part - 1].sum())) if part else _EMPTY,
            "cells": [_mean_cell(own, part) for own in found],
        }
        for part, name in enumerate(NAMES if found else ())
    ]


def detail_classes(comparison: Comparison) -> list[dict[str, Any]]:
    """Return class, figure, number of objects and a cell per experiment, of each figure that a class has."""
    found = comparison.details or []
    return [
        {
            "class": name,
            "figure": figure,
            "objects": _count(int(found[0].objects[part - 1, index])) if part else _EMPTY,
            "cells": [_value(float(own.of_classes[part, index])) for own in found],
        }
        for index, name in enumerate(comparison.class_names if found else ())
        for part, figure in enumerate(NAMES)
        if not math.isnan(found[0].of_classes[part, index])
    ]


def _mean_cell(own: Details, part: int) -> dict[str, Any]:
    """Return a mean with its interval, and its difference from the baseline with its interval."""
    cell = _value(float(own.means[part]))
    interval = interval_text(*own.intervals[part])
    return {
        "text": cell["text"] + (f" ({interval})" if interval else ""),
        "difference": _difference(own.differences[part]) if own.differences else "",
    }


def _difference(found: Difference) -> str:
    interval = interval_text(found.low, found.high, signed=True)
    return "" if math.isnan(found.mean) else f"{found.mean:+.3f}" + (f" ({interval})" if interval else "")


def _value(value: float) -> dict[str, Any]:
    return _EMPTY if math.isnan(value) else {"text": f"{value:.3f}", "value": round(value, 6)}


def _count(number: int) -> dict[str, Any]:
    return {"text": str(number), "value": number}
