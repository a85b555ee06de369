"""Compare each pair of experiments, with all comparisons taken into account."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deeplab_lightning.experiments.aggregate import Epoch
from deeplab_lightning.experiments.comparison import compare_results, read_recipes
from deeplab_lightning.experiments.significance import holm
from deeplab_lightning.experiments.verdict import Verdict, decide


def compare_pairs(folders: Sequence[Path], *, epoch: Epoch = "last", num_resamples: int = 2) -> list[Verdict]:
    """Judge every pair of recipes, with p-values adjusted by Holm over all pairs.

    Args:
        folders: Folders of experiments; those that differ in the seed alone are pooled.
        epoch: Epoch of each training to compare, see `compare_experiments`.
        num_resamples: Number of bootstrap resamples, which no verdict depends on.

    Returns:
        The verdicts, those with the first recipe as the baseline first.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        ValueError: If the classes differ, or the experiments share no image.
    """
    recipes, results, _ = read_recipes(folders, epoch)
    found: list[tuple[tuple[str, str], Verdict]] = []
    for place in range(len(recipes) - 1):
        comparison = compare_results(recipes[place:], results[place:], num_resamples=num_resamples, everything=folders)
        base = comparison.entries[0]
        for entry in comparison.entries[1:]:
            assert entry.verdict is not None
            found.append(((entry.label, base.label), entry.verdict))
    adjusted = holm([verdict.deciding.p for _, verdict in found])
    return [
        verdict
        if math.isnan(verdict.deciding.p)
        else replace(
            decide(names, verdict.deciding, verdict.basis, float(p), verdict.detectable, verdict.differing),
            basis=verdict.basis,
        )
        for (names, verdict), p in zip(found, adjusted, strict=True)
    ]
