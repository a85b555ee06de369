"""Compare each pair of experiments, with all comparisons taken into account."""

from collections.abc import Sequence
from pathlib import Path

from deeplab_lightning.experiments.aggregate import Epoch
from deeplab_lightning.experiments.comparison import compare_results, read_recipes
from deeplab_lightning.experiments.significance import holm
from deeplab_lightning.experiments.verdict import Verdict


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
    found: list[Verdict] = []
    for place in range(len(recipes) - 1):
        comparison = compare_results(recipes[place:], results[place:], num_resamples=num_resamples, everything=folders)
        found += [entry.verdict for entry in comparison.entries if entry.verdict is not None]
    adjusted = holm([verdict.counted_p for verdict in found])
    return [verdict.adjusted(float(p)) for verdict, p in zip(found, adjusted, strict=True)]
