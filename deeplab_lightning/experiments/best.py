"""Find how to predict with the networks of experiments: which to average, with which views, and what comes after."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.experiments.recipes import PLAIN, Postprocess, Progress, Recipe, Table, measure
from deeplab_lightning.experiments.selection import Choice, choose, split_into_parts
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.tiles import Tiles

Ints = npt.NDArray[np.int64]
MAX_EXPERIMENTS = 6
_MAX_WEIGHTED = 3  # experiments that are also averaged with unequal weights


@dataclass(frozen=True)
class Step:
    """Hold one step of the search, which chooses among the recipes of the steps before and its own.

    Attributes:
        name: What it adds.
        recipe: The recipe that is chosen on all images.
        choice: The nested choice.
        seconds: Seconds per image of the recipe with all networks.
        recipes: The candidates of `choice`.
        before: The step that it was to improve; None for the first.
    """

    name: str
    recipe: Recipe
    choice: Choice
    seconds: float
    recipes: Sequence[Recipe]
    before: "Step | None" = None

    @property
    def is_taken(self) -> bool:
        """Check whether the step raises the mIoU of images that did not choose it."""
        return self.before is None or self.choice.miou > self.before.choice.miou


def taken(steps: Sequence[Step]) -> Step:
    """Return the last step that is taken."""
    return next(step for step in reversed(steps) if step.is_taken)


@dataclass
class Search:
    """Search for the best way to predict with the networks of experiments, on the images that each fold held out.

    Every image is judged by a choice that was made on the images of the other folds; of a single training, whose
    validation images are no folds, on the other parts of these images, see `split_into_parts`. Its probabilities come
    from the networks that held it out, so they are one per experiment and seed, while a prediction of new images
    averages those of all folds.

    Args:
        experiments: Experiments with the same folds, at most `MAX_EXPERIMENTS`.
        views: Views to choose from, besides the image itself.
        tiles: Tiles to process larger images in, besides whole images; None to try none.
        min_areas: Smallest regions to choose from, in pixels.
        crf: Refines the probabilities; None to try none.
        progress: See `Progress`.

    Raises:
        DataError: If the experiments hold out other images or other folds, or there are fewer than two groups.
        ValueError: If there are too many experiments, or both tiles and a CRF.
    """

    experiments: Sequence[OutOfFold]
    views: Sequence[Views]
    min_areas: Sequence[int] = ()
    tiles: Tiles | None = None
    crf: Postprocess | None = None
    progress: Progress = lambda samples, count: samples
    _names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.experiments) <= MAX_EXPERIMENTS:
            raise UserError(f"1 to {MAX_EXPERIMENTS} experiments can be searched, got {len(self.experiments)}.")
        first = self.experiments[0]
        for other in self.experiments[1:]:
            if other.classes.names != first.classes.names:
                raise DataError(f"{other.folder} has other classes than {first.folder}.")
            if other.folds != first.folds:
                if unfinished := _unfinished(first, other):
                    raise DataError(unfinished)
                names = first.folds.keys() | other.folds.keys()
                differing = sum(first.folds.get(name) != other.folds.get(name) for name in names)
                raise DataError(
                    f"{other.folder} holds out other images than {first.folder} ({differing} of {len(names)} "
                    "differ). Train both on one split: data.fold_file, or the same data, n_folds and split_seed."
                )
        if self.tiles is not None and self.crf is not None:
            raise UserError("--tile and --crf cannot be tried together, since predict applies a CRF within each tile.")
        self._names = list(first.folds)
        if self.is_single and len(np.unique(self.groups)) < 2:
            raise DataError(
                f"{first.folder} has {len(self._names)} validation images in one group; a choice that is not judged by "
                "the images that it was made on needs two groups. Validate on more images, or train folds by `deeplab "
                "kfold`."
            )

    @property
    def missing_folds(self) -> list[int]:
        """Return the folds that were not trained, whose images choose and judge nothing."""
        return self.experiments[0].missing_folds

    @property
    def is_single(self) -> bool:
        """Check whether the images are those of a single training instead of folds."""
        return len(self.experiments[0].fold_numbers) < 2

    @property
    def num_images(self) -> int:
        """Return the number of held-out images N."""
        return len(self._names)

    def _folds(self, table: Table) -> Ints:
        """Return the (N,) fold of each image, or the part of a single training's images with equal classes."""
        if not self.is_single:
            return np.array([self.experiments[0].folds[name] for name in self._names])
        return split_into_parts(table.margins[0, :, 1], self.groups)

    @property
    def groups(self) -> Ints:
        """Return the (N,) number of the group of each image; an image without a group is one of its own."""
        data = self.experiments[0].data
        labels: Mapping[str, str] = {}
        if data.split == "folds":
            labels = data.fold_table.groups
        elif data.groups is not None:
            own = self.experiments[0].dataset
            labels = dict(zip(own.names, data.groups.labels(own), strict=True))
        numbers: dict[tuple[bool, str], int] = {}
        return np.array(
            [numbers.setdefault((not labels.get(n), labels.get(n) or n), len(numbers)) for n in self._names]
        )

    def run(self) -> list[Step]:
        """Search, and return the steps in order; the last one that is taken is the best that was found."""
        count = len(self.experiments)
        plain = [PLAIN, *dict.fromkeys(views for views in self.views if views != PLAIN)]
        averages = [Recipe(weights, views) for views in plain for weights in _weights(count)]
        table = self._measure(averages)
        steps = [self._step("best experiment", table, lambda r: r.is_single and r.views == PLAIN)]
        if count > 1:
            steps.append(self._step("average", table, lambda r: r.views == PLAIN, steps))
        if len(plain) > 1:
            steps.append(self._step("views", table, lambda r: True, steps))
        for name, changes in self._afterwards():
            base = taken(steps)
            bases = {base.recipe, *(base.recipes[index] for index in base.choice.of_fold.values())}
            recipes = [replace(recipe, **change) for recipe in sorted(bases, key=str) for change in changes]
            steps.append(self._step(name, self._measure(recipes), lambda r: True, steps))
        return steps

    def _measure(self, recipes: Sequence[Recipe]) -> Table:
        return measure(self.experiments, recipes, crf=self.crf, progress=self.progress)

    def _afterwards(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the steps that come after the views, each with the changes of a recipe that it tries."""
        if self.tiles is not None:
            yield "tiles", [{}, {"tiles": self.tiles}]
        if self.crf is not None:
            yield "CRF", [{}, {"has_crf": True}]
        if areas := [area for area in self.min_areas if area > 1]:
            yield "smallest region", [{}, *({"min_area": area} for area in areas)]

    def _step(
        self, name: str, table: Table, is_candidate: Callable[[Recipe], bool], steps: Sequence[Step] = ()
    ) -> Step:
        candidates = [index for index, recipe in enumerate(table.recipes) if is_candidate(recipe)]
        choice = choose(table.margins, self._folds(table), table.seconds, candidates)
        final = table.recipes[choice.final]
        return Step(name, final, choice, table.seconds[choice.final], table.recipes, taken(steps) if steps else None)


def _weights(count: int) -> list[tuple[int, ...]]:
    """Return the weights of experiments to try: all subsets, and up to 3 experiments also with 2 to 1."""
    values = range(3) if count <= _MAX_WEIGHTED else range(2)
    return [weights for weights in itertools.product(values, repeat=count) if math.gcd(*weights) == 1]


def recipe_settings(recipe: Recipe, experiments: Sequence[OutOfFold]) -> dict[str, Any]:
    """Return the options of `deeplab predict` of a recipe, as a configuration."""
    used = [(e.checkpoints, w) for e, w in zip(experiments, recipe.weights, strict=True) if w]
    checkpoints: list[Path] = [path for paths, _ in used for path in paths]
    # An experiment has its weight whatever the number of its folds and seeds.
    shares = [weight / len(paths) for paths, weight in used for _ in paths]
    smallest = min(shares)
    settings: dict[str, Any] = {
        "ckpt_path": str(checkpoints[0]),
        "ensemble": [str(path) for path in checkpoints[1:]] or None,
        "ensemble_weights": None if len(set(shares)) == 1 else [round(share / smallest, 6) for share in shares],
        "tta": recipe.views.option,
        "tile": recipe.tiles.size if recipe.tiles else None,
        "overlap": recipe.tiles.overlap if recipe.tiles else None,
        "min_area": str(recipe.min_area) if recipe.min_area > 1 else None,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _unfinished(first: OutOfFold, other: OutOfFold) -> str:
    """Say which of two experiments of one split has not trained all folds of the other; an empty text if both have."""
    common = first.folds.keys() & other.folds.keys()
    if first.fold_numbers == other.fold_numbers or any(first.folds[name] != other.folds[name] for name in common):
        return ""
    lacking, whole = (other, first) if set(first.fold_numbers) - set(other.fold_numbers) else (first, other)
    missing = ", ".join(str(fold) for fold in sorted(set(whole.fold_numbers) - set(lacking.fold_numbers)))
    return (
        f"{lacking.folder} has not trained fold {missing}, which {whole.folder} has. Train the rest with `deeplab "
        f"kfold --resume`, or leave {lacking.folder.name} out."
    )
