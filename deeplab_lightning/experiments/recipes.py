"""Measure ways to predict with the networks of experiments on the images that each fold held out."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.experiments.contributions import margins
from deeplab_lightning.inference import View, Views
from deeplab_lightning.inference.model import Model
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.inference.tiles import Tiles
from deeplab_lightning.metrics.confusion import per_image_confusion

Ints = npt.NDArray[np.int64]
Postprocess = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[Iterator[Sample], int], Iterable[Sample]]
"""Function that yields the samples that it is given, a number of them, while it shows how far they are."""
_Seen = tuple[int, Views, Tiles | None]  # experiment, views, tiles
PLAIN = Views()
"""The image itself."""


@dataclass(frozen=True)
class Recipe:
    """Hold a way to predict.

    Attributes:
        weights: Weight of each experiment in the mean; 0 leaves it out.
        views: Views of each image that are averaged.
        tiles: Tiles in which larger images are processed; None for whole images.
        min_area: Pixels of the smallest region that is kept; 0 keeps all.
        has_crf: Whether the given CRF refines the labels.
    """

    weights: tuple[int, ...]
    views: Views = PLAIN
    tiles: Tiles | None = None
    min_area: int = 0
    has_crf: bool = False

    @property
    def is_single(self) -> bool:
        """Check whether it is one experiment."""
        return sum(weight > 0 for weight in self.weights) == 1


@dataclass(frozen=True)
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


@torch.no_grad()
def measure(
    experiments: Sequence[OutOfFold], recipes: Sequence[Recipe], *, crf: Postprocess | None, progress: Progress
) -> Table:
    """Predict every held-out image by all recipes, with as few passes through the networks as they need.

    Args:
        experiments: Experiments with the same folds, whose images are in the order of `folds`.
        recipes: C recipes, each with a weight for each experiment.
        crf: The CRF of recipes that have one.
        progress: See `Progress`.
    """
    first, num_classes = experiments[0], experiments[0].classes.num_classes
    place = {name: index for index, name in enumerate(first.folds)}
    found = np.zeros((len(recipes), len(place), 3, num_classes), dtype=np.int64)
    clock = _Clock(experiments)
    used = [index for index in range(len(experiments)) if any(recipe.weights[index] for recipe in recipes)]
    for fold in first.fold_numbers:
        models = {index: experiments[index].model(fold) for index in used}
        held_out = sum(number == fold for number in first.folds.values())
        for sample in progress(first.samples(fold), held_out):
            assert sample.mask is not None
            image, mask = sample.image.as_subclass(Tensor), sample.mask.as_subclass(Tensor)[None]
            means = _means(models, image, recipes, clock)
            for index, recipe in enumerate(recipes):
                labels = _labels(recipe, image, means, clock, crf)[None].cpu()
                matrix = per_image_confusion(labels, mask, num_classes).numpy()  # (1, K, K)
                found[index, place[sample.name]] = margins(matrix)[0]
    return Table(list(recipes), found, [clock.seconds(recipe, len(place)) for recipe in recipes])


class _Clock:
    """Add up the seconds of all images, by experiment and view, and by recipe for what comes after the mean."""

    def __init__(self, experiments: Sequence[OutOfFold]) -> None:
        self._networks = [len(experiment.checkpoints) for experiment in experiments]
        self._of_view: dict[tuple[int, View, Tiles | None], float] = {}
        self.after: dict[Recipe, float] = {}

    def add(self, key: tuple[int, View, Tiles | None], seconds: float, networks: int) -> None:
        """Add the seconds that a number of networks of an experiment took for a view, whole or in tiles."""
        self._of_view[key] = self._of_view.get(key, 0.0) + seconds / networks

    def seconds(self, recipe: Recipe, num_images: int) -> float:
        """Return the seconds per image of a prediction with all networks of the experiments."""
        views = recipe.views.single()
        used = [index for index, weight in enumerate(recipe.weights) if weight]
        total = sum(
            self._networks[index] * self._of_view[index, view, recipe.tiles] for index in used for view in views
        )
        return (total + self.after.get(recipe, 0.0)) / num_images


def _means(models: dict[int, Model], image: Tensor, recipes: Sequence[Recipe], clock: _Clock) -> dict[_Seen, Tensor]:
    """Compute the mean probabilities (K, H, W) of one image by experiment, views and tiles."""
    wanted = {(i, recipe.views, recipe.tiles) for recipe in recipes for i in models if recipe.weights[i]}
    means: dict[_Seen, Tensor] = {}
    passes = dict.fromkeys((i, view, tiles) for i, views, tiles in sorted(wanted, key=str) for view in views.single())
    for index, view, tiles in passes:
        model = models[index]
        started = time.perf_counter()
        probabilities = model.of_view(image, view, tiles=tiles)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        clock.add((index, view, tiles), time.perf_counter() - started, model.num_networks)
        for key in wanted:
            if key[0] == index and key[2] == tiles and view in key[1].single():
                share = probabilities / len(key[1].single())
                means[key] = means[key] + share if key in means else share
    return means


def _labels(
    recipe: Recipe, image: Tensor, means: dict[_Seen, Tensor], clock: _Clock, crf: Postprocess | None
) -> Tensor:
    """Find the labels (H, W) of an image from the mean probabilities (K, H, W) of experiments, views and tiles."""
    parts = [means[index, recipe.views, recipe.tiles] * weight for index, weight in enumerate(recipe.weights) if weight]
    mean = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
    started = time.perf_counter()
    if recipe.has_crf:
        assert crf is not None
        total = mean / sum(recipe.weights)
        logs = total.clamp_min(torch.finfo(total.dtype).tiny).log()
        mean = crf(image[None].to(logs.device), logs[None])[0]
    labels = mean.argmax(dim=0) if mean.ndim == 3 else mean
    if recipe.min_area > 1:
        labels = RegionFilter([recipe.min_area] * len(parts[0]))(labels.to(torch.uint8)[None])[0]
    clock.after[recipe] = clock.after.get(recipe, 0.0) + time.perf_counter() - started
    return labels
