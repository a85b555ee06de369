"""Find how to predict with the networks of experiments: which to average, with which views, and what comes after."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab_lightning.data.batch import IGNORE_INDEX, Sample
from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.experiments.selection import Choice, choose
from deeplab_lightning.inference import View, Views
from deeplab_lightning.inference.model import Model
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.regions import RegionFilter

Ints = npt.NDArray[np.int64]
Postprocess = Callable[[Tensor, Tensor], Tensor]
MAX_EXPERIMENTS = 6
PLAIN = Views()
"""The image itself."""
_MAX_WEIGHTED = 3  # experiments that are also averaged with unequal weights


@dataclass(frozen=True)
class Recipe:
    """Hold a way to predict.

    Attributes:
        weights: Weight of each experiment in the mean; 0 leaves it out.
        views: Views of each image that are averaged.
        min_area: Pixels of the smallest region that is kept; 0 keeps all.
        has_crf: Whether the given CRF refines the labels.
    """

    weights: tuple[int, ...]
    views: Views = PLAIN
    min_area: int = 0
    has_crf: bool = False

    @property
    def is_single(self) -> bool:
        """Check whether it is one experiment."""
        return sum(weight > 0 for weight in self.weights) == 1


@dataclass
class Table:
    """Hold the figures of recipes on the same images.

    Attributes:
        recipes: C recipes.
        margins: (C, N, 3, K) correct, true and predicted pixels of each image.
        seconds: (C,) seconds per image of a prediction with all networks of the experiments.
    """

    recipes: list[Recipe]
    margins: Ints
    seconds: list[float]


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

    Every image is judged by a choice that was made on the images of the other folds. Its probabilities come from the
    networks that held it out, so they are one per experiment and seed, while a prediction of new images averages those
    of all folds.

    Args:
        experiments: Experiments with the same folds, at most `MAX_EXPERIMENTS`.
        views: Views to choose from, besides the image itself.
        min_areas: Smallest regions to choose from, in pixels.
        crf: Refines the probabilities; None to try none.
        progress: Yields the samples that it is given, a number of them, while it shows how far the search is.

    Raises:
        DataError: If the experiments hold out other images or other folds, or there are fewer than two folds.
    """

    experiments: Sequence[OutOfFold]
    views: Sequence[Views]
    min_areas: Sequence[int] = ()
    crf: Postprocess | None = None
    progress: Callable[[Iterator[Sample], int], Iterator[Sample]] = lambda samples, count: samples
    _names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.experiments) <= MAX_EXPERIMENTS:
            raise UserError(f"1 to {MAX_EXPERIMENTS} experiments can be searched, got {len(self.experiments)}.")
        first = self.experiments[0]
        for other in self.experiments[1:]:
            if other.classes.names != first.classes.names:
                raise DataError(f"{other.folder} has other classes than {first.folder}.")
            if other.folds != first.folds:
                differing = sum(first.folds.get(name) != fold for name, fold in other.folds.items())
                raise DataError(
                    f"{other.folder} holds out other images than {first.folder} ({differing} of {len(other.folds)} "
                    "differ). Train both on one split: data.fold_file, or the same data, n_folds and split_seed."
                )
        if len(first.fold_numbers) < 2:
            raise DataError(
                f"{first.folder} has one finished fold; a choice that is not judged by the images that it was made on "
                "needs two or more. Train more folds by `deeplab kfold`."
            )
        self._names = list(first.folds)

    @property
    def folds(self) -> Ints:
        """Return the (N,) fold of each image."""
        return np.array([self.experiments[0].folds[name] for name in self._names])

    @property
    def groups(self) -> Ints:
        """Return the (N,) number of the group of each image; an image without a group is one of its own."""
        data = self.experiments[0].data
        labels = data.fold_table.groups if data.split == "folds" else {}
        numbers: dict[tuple[bool, str], int] = {}
        return np.array(
            [numbers.setdefault((not labels.get(n), labels.get(n) or n), len(numbers)) for n in self._names]
        )

    def run(self) -> list[Step]:
        """Search, and return the steps in order; the last one that is taken is the best that was found."""
        count = len(self.experiments)
        plain = [PLAIN, *dict.fromkeys(views for views in self.views if views != PLAIN)]
        averages = [Recipe(weights, views) for views in plain for weights in _weights(count)]
        table = self.measure(averages)
        steps = [self._step("best experiment", table, lambda r: r.is_single and r.views == PLAIN)]
        if count > 1:
            steps.append(self._step("average", table, lambda r: r.views == PLAIN, steps))
        if len(plain) > 1:
            steps.append(self._step("views", table, lambda r: True, steps))
        for name, changes in self._afterwards():
            base = taken(steps)
            bases = {base.recipe, *(base.recipes[index] for index in base.choice.of_fold.values())}
            recipes = [replace(recipe, **change) for recipe in sorted(bases, key=str) for change in changes]
            steps.append(self._step(name, self.measure(recipes), lambda r: True, steps))
        return steps

    def _afterwards(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the steps that come after the mean, each with the changes of a recipe that it tries."""
        if self.crf is not None:
            yield "CRF", [{}, {"has_crf": True}]
        if areas := [area for area in self.min_areas if area > 1]:
            yield "smallest region", [{}, *({"min_area": area} for area in areas)]

    def _step(
        self, name: str, table: Table, is_candidate: Callable[[Recipe], bool], steps: Sequence[Step] = ()
    ) -> Step:
        candidates = [index for index, recipe in enumerate(table.recipes) if is_candidate(recipe)]
        choice = choose(table.margins, self.folds, table.seconds, candidates)
        final = table.recipes[choice.final]
        return Step(name, final, choice, table.seconds[choice.final], table.recipes, taken(steps) if steps else None)

    @torch.no_grad()
    def measure(self, recipes: Sequence[Recipe]) -> Table:
        """Predict every held-out image by all recipes, with as few passes through the networks as they need."""
        first, num_classes = self.experiments[0], self.experiments[0].classes.num_classes
        margins = np.zeros((len(recipes), len(self._names), 3, num_classes), dtype=np.int64)
        clock = _Clock(self.experiments)
        place = {name: index for index, name in enumerate(self._names)}
        used = [i for i in range(len(self.experiments)) if any(recipe.weights[i] for recipe in recipes)]
        for fold in first.fold_numbers:
            models = {index: self.experiments[index].model(fold) for index in used}
            held_out = sum(number == fold for number in first.folds.values())
            for sample in self.progress(first.samples(fold), held_out):
                assert sample.mask is not None
                image, mask = sample.image.as_subclass(Tensor), sample.mask.as_subclass(Tensor)
                found = _means(models, image, recipes, clock, fold)
                for index, recipe in enumerate(recipes):
                    labels = self._labels(recipe, image, found, clock)
                    margins[index, place[sample.name]] = _margins(labels.cpu(), mask, num_classes)
        return Table(list(recipes), margins, [clock.seconds(recipe, len(self._names)) for recipe in recipes])

    def _labels(self, recipe: Recipe, image: Tensor, found: dict[tuple[int, Views], Tensor], clock: "_Clock") -> Tensor:
        """Find the labels (H, W) of an image from the mean probabilities (K, H, W) of experiments and views."""
        parts = [found[index, recipe.views] * w for index, w in enumerate(recipe.weights) if w]
        mean = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
        started = time.perf_counter()
        if recipe.has_crf:
            assert self.crf is not None
            total = mean / sum(recipe.weights)
            mean = self.crf(image[None], total.clamp_min(torch.finfo(total.dtype).tiny).log()[None])[0]
        labels = mean.argmax(dim=0) if mean.ndim == 3 else mean
        if recipe.min_area > 1:
            areas = RegionFilter([recipe.min_area] * self.experiments[0].classes.num_classes)
            labels = areas(labels.to(torch.uint8)[None])[0]
        clock.after[recipe] = clock.after.get(recipe, 0.0) + time.perf_counter() - started
        return labels


class _Clock:
    """Add up the seconds of all images, by experiment and view, and by recipe for what comes after the mean."""

    def __init__(self, experiments: Sequence[OutOfFold]) -> None:
        self._networks = [len(experiment.checkpoints) for experiment in experiments]
        self._of_view: dict[tuple[int, View], float] = {}
        self.after: dict[Recipe, float] = {}

    def add(self, experiment: int, view: View, seconds: float, networks: int) -> None:
        """Add the seconds that a number of networks took."""
        key = (experiment, view)
        self._of_view[key] = self._of_view.get(key, 0.0) + seconds / networks

    def seconds(self, recipe: Recipe, num_images: int) -> float:
        """Return the seconds per image of a prediction with all networks of the experiments."""
        views = recipe.views.single()
        used = [index for index, weight in enumerate(recipe.weights) if weight]
        total = sum(self._networks[index] * self._of_view[index, view] for index in used for view in views)
        return (total + self.after.get(recipe, 0.0)) / num_images


def _means(
    models: dict[int, Model], image: Tensor, recipes: Sequence[Recipe], clock: _Clock, fold: int
) -> dict[tuple[int, Views], Tensor]:
    """Compute the mean probabilities (K, H, W) of one image by experiment and views."""
    wanted = {(i, recipe.views) for recipe in recipes for i in models if recipe.weights[i]}
    means: dict[tuple[int, Views], Tensor] = {}
    for index, model in models.items():
        own = [views for i, views in wanted if i == index]
        for view in sorted({view for views in own for view in views.single()}):
            started = time.perf_counter()
            probabilities = model.of_view(image, view)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            clock.add(index, view, time.perf_counter() - started, model.num_networks)
            for views in own:
                if view in views.single():
                    share = probabilities / len(views.single())
                    means[index, views] = means[index, views] + share if (index, views) in means else share
    return means


def _margins(labels: Tensor, mask: Tensor, num_classes: int) -> Ints:
    """Count the correct, true and predicted pixels (3, K) of an image."""
    is_counted = mask != IGNORE_INDEX
    truth, predicted = mask[is_counted].long(), labels[is_counted].long()
    counts = [truth[truth == predicted], truth, predicted]
    return np.stack([torch.bincount(part, minlength=num_classes).numpy() for part in counts])


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
        "tta": str_of_views(recipe.views),
        "min_area": str(recipe.min_area) if recipe.min_area > 1 else None,
    }
    return {key: value for key, value in settings.items() if value is not None}


def str_of_views(views: Views) -> str | None:
    """Return views as the option `--tta` has them; None for the image itself."""
    scales = f"scales=[{','.join(f'{scale:g}' for scale in views.scales)}]" if views.scales != (1.0,) else ""
    return ",".join(filter(None, [scales, "flip" if views.flip else ""])) or None
