"""Show which classes are confused: matrices of few classes, the worst pairs of many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.experiments.entries import Comparison

MAX_CLASSES = 40  # of a matrix that can be read, and that does not blow up the page
_MAX_PAIRS = 30


def confusion_data(comparison: Comparison) -> dict[str, Any]:
    """Return class names and the counts of each experiment, for the page's script; empty for many classes."""
    if not 1 < len(comparison.class_names) <= MAX_CLASSES:
        return {}
    return {
        "classes": comparison.class_names,
        "experiments": [{"name": e.label, "counts": e.matrix.tolist()} for e in comparison.entries],
    }


def worst_pairs(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most; none for few classes, whose matrices are shown.

    They are ordered by the pixels of the truth that the worst experiment gives to the wrong class.
    """
    if len(comparison.class_names) <= MAX_CLASSES:
        return []
    counts = np.stack([entry.matrix for entry in comparison.entries])  # (M, K, K)
    wrong = counts.max(axis=0)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    names = comparison.class_names
    return [
        {"truth": names[t], "prediction": names[p], "cells": _cells(counts[:, t, p], counts[:, t].sum(axis=-1))}
        for t, p in zip(*(part.tolist() for part in np.unravel_index(order, wrong.shape)), strict=True)
        if wrong[t, p]
    ]


def _cells(pixels: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]) -> Sequence[str]:
    """Format the share of the truth's pixels of each experiment."""
    return [f"{count / max(total, 1):.1%}" for count, total in zip(pixels.tolist(), totals.tolist(), strict=True)]
