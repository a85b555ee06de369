"""Format a comparison as rows and texts, for the command line and the report page."""

import json
import math
from typing import Any

from deeplab_lightning.experiments.details import KEYS
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.tables import csv_text_of_dicts


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row per experiment, as in the CSV file: figures by column, nan or None if unknown."""
    rows = []
    for index, entry in enumerate(comparison.entries):
        folds, images = entry.over_folds, entry.over_images
        row: dict[str, Any] = {
            "experiment": entry.label,
            "miou": entry.miou,
            "miou_low": entry.interval[0],
            "miou_high": entry.interval[1],
            "fold_mean": float(entry.fold_mious.mean()),
            "fold_std": entry.fold_std,
            "seeds": max(len(entry.cv.seeds), 1),
            "seed_std": entry.seed_std,
            "difference": entry.difference,
            "difference_folds": folds.mean if folds else math.nan,
            "difference_low_folds": folds.low if folds else math.nan,
            "difference_high_folds": folds.high if folds else math.nan,
            "p_folds": folds.p if folds else math.nan,
            "difference_low_images": images.low if images else math.nan,
            "difference_high_images": images.high if images else math.nan,
            "p_images": images.p if images else math.nan,
            "p_holm": entry.adjusted_p,
            "verdict": entry.verdict.sentence if entry.verdict else "",
            "deciding_low": entry.verdict.deciding.low if entry.verdict else math.nan,
            "deciding_high": entry.verdict.deciding.high if entry.verdict else math.nan,
            "deciding_basis": entry.verdict.basis if entry.verdict else "",
            "detectable_difference": entry.verdict.detectable if entry.verdict else math.nan,
            **entry.cost,
        }
        if comparison.details is not None:
            row |= dict(zip(KEYS, map(float, comparison.details[index].means), strict=True))
        row |= {f"iou/{name}": float(v) for name, v in zip(comparison.class_names, entry.iou, strict=True)}
        rows.append(row)
    return rows


def comparison_csv(comparison: Comparison) -> str:
    """Format the rows as CSV with six significant digits; unknown figures are empty cells."""
    return csv_text_of_dicts([{key: _cell(value) for key, value in row.items()} for row in comparison_rows(comparison)])


def comparison_json(comparison: Comparison) -> str:
    """Format the verdicts, the rows and the notes as JSON; unknown figures are null."""
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in comparison_rows(comparison)
    ]
    settings = {
        entry.label: {key: list(values) for key, values in entry.verdict.differing.items()}
        for entry in comparison.entries
        if entry.verdict is not None
    }
    document = {
        "verdicts": comparison.sentences,
        "experiments": rows,
        "differing_settings": settings,
        "notes": comparison.notes,
    }
    return json.dumps(document, indent=1, default=str) + "\n"


def interval_text(low: float, high: float, *, signed: bool = False) -> str:
    """Format an interval, or return an empty text if it is unknown.

    Args:
        low: Lower end.
        high: Upper end.
        signed: Whether positive ends get a plus sign, as for differences.
    """
    if math.isnan(low):
        return ""
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def folds_text(entry: Entry) -> str:
    """Format mean and standard deviation of the compared folds' mIoU; a single fold has no deviation."""
    deviation = "" if math.isnan(entry.fold_std) else f" ± {entry.fold_std:.3f}"
    return f"{entry.fold_mious.mean():.3f}{deviation}"


def p_text(p: float) -> str:
    """Format a p-value, or return an empty text for nan; none is shown as 0."""
    return "" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def cost_text(value: float | None) -> str:
    """Format a cost with one decimal, or return an empty text if it is unknown."""
    return "" if value is None else f"{value:.1f}"


def minutes_text(seconds: float | None) -> str:
    """Format a time in minutes, or return an empty text if it is unknown."""
    return cost_text(None if seconds is None else seconds / 60)


def _cell(value: Any) -> Any:
    if value is None or value != value:  # nan
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
