"""Pool experiments that differ only in their seeds, and test what repeated trainings show."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy import special

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.experiments.verdict import SEEDS, differing_settings
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion, PerImageDetails
from deeplab_lightning.runs import RunFolder

Floats = npt.NDArray[np.float64]


def pool_seeds(
    folders: Sequence[Path], results: Sequence[CrossValidation], *, is_one: bool = False
) -> tuple[list[list[Path]], list[CrossValidation]]:
    """Pool the experiments that are one recipe with several seeds.

    Experiments are one recipe if their settings differ in the seeds alone, and they hold out the same images in the
    same folds. Nothing is pooled if there is only one recipe, since its seeds are what is compared then.

    Args:
        folders: Folder of each experiment.
        results: Its pooled folds.
        is_one: Whether a single recipe is pooled too.

    Returns:
        The folders of each recipe, in the order of their first, and its result: the sum of the matrices over seeds.
    """
    members: list[list[int]] = []
    configs = [read_config(folder) for folder in folders]
    for index, result in enumerate(results):
        for recipe in members:
            # Of each member: a copy of one of them is no further seed.
            differing = [
                set(differing_settings(configs[member], configs[index], (results[member].digest, result.digest)))
                for member in recipe
            ]
            if all(keys and keys <= set(SEEDS) for keys in differing) and _is_same_design(results[recipe[0]], result):
                recipe.append(index)
                break
        else:
            members.append([index])
    if len(members) == 1 and not is_one:
        members = [[index] for index in range(len(results))]
    pooled = [_pooled([results[index] for index in recipe]) for recipe in members]
    return [[folders[index] for index in recipe] for recipe in members], pooled


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of an experiment, or of a run as it was resumed last; empty without a readable one."""
    try:
        return RunFolder(folder).read_configs()[-1]
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def recipe_name(labels: Sequence[str]) -> str:
    """Return what the names of experiments have in common before their seed, or the first name.

    Args:
        labels: Names, such as `lite0-seed0` and `lite0-seed1`.
    """
    if len(labels) == 1:
        return labels[0]
    shortest, longest = min(labels), max(labels)  # in the order of texts, so these two differ the earliest
    length = next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return re.sub(r"[-_ /.]*(seed|s)?[-_ /.]*$", "", shortest[:length]) or labels[0]


def seed_mious(result: CrossValidation, names: Sequence[str] | None = None) -> Floats:
    """Return the (S,) pooled mIoU of each seed of a recipe.

    Args:
        result: The recipe.
        names: Images to pool; all if None.
    """
    found = []
    for part in result.seeds or (result,):
        matrix = part.matrix if names is None or part.images is None else part.images.keep(names).total()
        found.append(float(nan_mean(truth_iou(matrix))))
    return np.array(found)


def over_seeds(a: Floats, b: Floats, difference: float) -> Difference:
    """Compute Welch's t interval of a difference between recipes that were trained with several seeds.

    It covers the randomness of the training, on these images and this split.

    Args:
        a: (S,) mIoU of the baseline's trainings.
        b: (T,) mIoU of the other recipe's.
        difference: The difference of the pooled mIoU, around which the interval lies.
    """
    if min(len(a), len(b)) < 2:
        return Difference(difference, math.nan, math.nan, math.nan)
    parts = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    variance = sum(parts)
    if variance == 0:
        return Difference(difference, math.nan, math.nan, math.nan)
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True))
    error = math.sqrt(variance)
    reach = float(special.stdtrit(freedom, 0.975)) * error
    p = float(2 * special.stdtr(freedom, -abs(difference) / error))
    return Difference(difference, difference - reach, difference + reach, p, freedom)


def _is_same_design(a: CrossValidation, b: CrossValidation) -> bool:
    """Check whether two experiments hold out the same images in the same folds."""
    return (
        a.images is not None
        and b.images is not None
        and (a.folds, a.n_folds, a.class_names, a.epoch) == (b.folds, b.n_folds, b.class_names, b.epoch)
        and a.fold_of == b.fold_of
    )


def _pooled(parts: Sequence[CrossValidation]) -> CrossValidation:
    """Add up the matrices of the seeds of a recipe."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    sets = [part.images for part in parts if part.images is not None]
    counts = sum((images.keep(sets[0].names).counts for images in sets[1:]), sets[0].counts)
    return replace(
        first,
        matrices=np.sum([part.matrices for part in parts], axis=0),
        images=PerImageConfusion(sets[0].names, counts),
        best_miou=float(np.mean([part.best_miou for part in parts])),
        notes=tuple(note for part in parts for note in part.notes),
        stopped=next((part.stopped for part in parts if part.stopped), ""),
        details=_pooled_details(parts),
        seeds=tuple(parts),
    )


def _pooled_details(parts: Sequence[CrossValidation]) -> PerImageDetails | None:
    """Add up the details of the seeds of a recipe; None if a seed has none."""
    known = [part.details for part in parts if part.details is not None]
    if len(known) < len(parts) or any(own.names != known[0].names for own in known):
        return None
    return PerImageDetails(known[0].names, sum((own.counts for own in known[1:]), known[0].counts))
