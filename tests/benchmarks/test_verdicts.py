"""How often `compare` is wrong, and what it finds, on experiments of known quality. `make bench`, minutes.

A verdict of better or worse claims an error of 5 % at most. The rates are of the sentences of the whole comparison.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.comparison import compare_experiments, compare_results
from deeplab_lightning.experiments.entries import Comparison
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from tests.benchmarks.measure import write
from tests.benchmarks.simulation import World

REPEATS = 1500  # standard error of a rate of 5 %: .56 %
LARGEST, SMALLEST = 0.06, 0.04  # rates that are taken for 5 %
RARE, NOISY = (1, 0.9, 0.7, 0.03, 0.03), (1, 1, 1, 3, 3)  # about three of 100 images show each rare class
RAREST = (1, 0.9, 0.7, 0.005, 0.005)  # one or two images, in one or two folds
UNEQUAL = (0.3, 0.25, 0.2, 0.15, 0.1)
VERY_UNEQUAL = (0.4, 0.15, 0.15, 0.15, 0.15)

EXACT = {  # folds that correlate as Nadeau and Bengio assume, and images of one training each
    "3 folds, correlation 1/3": World(n_folds=3, shared=1 / 3, image_sd=0),
    "5 folds, correlation 1/5": World(shared=1 / 5, image_sd=0),
    "10 folds, correlation 1/10": World(n_folds=10, shared=1 / 10, image_sd=0),
    "5 folds, 27 % of the effects from the training images": World(of_images=4 / 15, image_sd=0),
    "100 images, one training each": World(n_folds=1, seed_sd=0),
    "20 images, one training each": World(n_folds=1, seed_sd=0, num_images=20),
    "20 groups of 5 images, one training each": World(n_folds=1, seed_sd=0, group_sd=0.2, group_size=5),
    "5 groups of 12 images, one training each": World(n_folds=1, seed_sd=0, group_sd=0.2, group_size=12, num_images=60),
}
CONSERVATIVE = {
    "3 folds": World(n_folds=3),
    "5 folds": World(),
    "10 folds": World(n_folds=10),
    "5 folds, new trainings on the same images": World(data_seed=3),
    "5 folds, rare classes": World(presence=RARE, class_scale=NOISY),
    "5 folds, rare classes, correlation 1/5": World(presence=RARE, class_scale=NOISY, shared=1 / 5),
    "5 folds, classes of one or two images": World(presence=RAREST, class_scale=NOISY),
    "5 folds, classes of one or two images, correlation 1/5": World(presence=RAREST, class_scale=NOISY, shared=1 / 5),
    "5 folds, rare classes, of equal effects": World(presence=RARE, shared=1 / 5),
    "5 folds of 30 to 10 % of the images, correlation 1/5": World(fold_shares=UNEQUAL, shared=1 / 5),
    "5 folds of 40 and 15 % of the images, correlation 1/5": World(fold_shares=VERY_UNEQUAL, shared=1 / 5),
    "5 folds of 15 groups in all, correlation 1/5": World(num_images=90, group_sd=0.2, group_size=6, shared=1 / 5),
    "100 images, rare classes, one training each": World(n_folds=1, seed_sd=0, presence=RARE),
    "20 images, rare classes, one training each": World(
        n_folds=1, seed_sd=0, presence=(1, 0.9, 0.7, 0.1, 0.1), num_images=20
    ),
}
BEYOND = {  # more correlation than the correction covers
    "5 folds, half of the effects from the training images": World(of_images=0.5, image_sd=0),
    "5 folds, all effects from the training images": World(of_images=1, image_sd=0),
    "5 folds, correlation 1/2": World(shared=1 / 2, image_sd=0),
}

Compare = Callable[[Sequence[CrossValidation], World], Comparison]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Return a function that compares drawn experiments."""
    root = tmp_path_factory.mktemp("drawn")

    def compare(results: Sequence[CrossValidation], world: World) -> Comparison:
        folders = [root / f"{world.num_images}-{world.group_size}-{result.name}" for result in results]
        for folder in folders:
            if not folder.exists():
                folder.mkdir()
                run = RunFolder(folder)
                run.write_result({"fold": None, "n_folds": None, "val": None, "seconds": 1, "cost": {}})
                ExperimentFolder(folder).write_config({"model": {"net": folder.name}})  # nothing is better without one
                if world.group_size > 1:
                    rows = "".join(f"{n},{g},0\n" for n, g in zip(world.names, world.groups, strict=True))
                    run.folds.write_text("image,group,fold\n" + rows)
        return compare_results(
            [[folder] for folder in folders], results, num_resamples=2
        )  # resamples are not of differences

    return compare


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Any]]:
    """Collect the figures, and write them at the end."""
    figures: dict[str, Any] = {}
    yield figures
    write("verdicts", {"repeats": REPEATS, **figures})


@pytest.fixture
def show(table: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Callable[[str, dict[str, float]], None]:
    """Return a function that prints figures, past pytest's capture, and keeps them."""

    def print_figures(title: str, figures: dict[str, float]) -> None:
        table[title] = {key: round(value, 4) for key, value in figures.items()}
        with capsys.disabled():
            print(f"\n{title}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()), end="")

    return print_figures


Show = Callable[[str, dict[str, float]], None]


def is_found(sentence: str) -> bool:
    return bool(re.search(r" is (better|worse) than | differ on these images", sentence))


def repeat(world: World, compare: Compare, differences: Sequence[float] = (0.0, 0.0)) -> dict[str, float]:
    """Return the share of repetitions with any finding, and what they print on the second experiment."""
    rng = np.random.default_rng(1)
    found, stars, printed, values = [], [], [], []
    for _ in range(REPEATS):
        entries = compare(world.experiments(rng, differences), world).entries
        verdicts = [entry.verdict for entry in entries if entry.verdict is not None]
        found.append(any(is_found(verdict.sentence) for verdict in verdicts))
        stars.append(any(entry.is_starred(index) for entry in entries[1:] for index in range(world.num_classes)))
        printed.append(verdicts[0].detectable)
        values.append(verdicts[0].deciding.mean)
    return {
        "found": float(np.mean(found)),
        "starred": float(np.mean(stars)),
        "mean": float(np.mean(values)),
        "sd": float(np.std(values)),
        "detectable": float(np.sqrt(np.mean(np.square(printed)))),
    }


@pytest.mark.parametrize("name", EXACT)
def test_one_of_twenty_is_wrong(name: str, compared: Compare, show: Show) -> None:
    figures = repeat(EXACT[name], compared)
    show(name, figures)
    assert SMALLEST <= figures["found"] <= LARGEST
    assert figures["starred"] <= LARGEST  # of any class, since Holm adjusts over the classes


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_fewer_than_one_of_twenty_are_wrong(name: str, compared: Compare, show: Show) -> None:
    figures = repeat(CONSERVATIVE[name], compared)
    show(name, figures)
    assert figures["found"] <= LARGEST
    assert figures["starred"] <= LARGEST


@pytest.mark.parametrize("name", BEYOND)
def test_the_claim_ends_where_the_data_make_the_recipe(name: str, compared: Compare, show: Show) -> None:
    """Then the same folds say little about other training images."""
    figures = repeat(BEYOND[name], compared)
    show(f"{name} (beyond the claim)", figures)
    assert figures["found"] > LARGEST


def test_several_experiments_are_wrong_as_rarely_as_one(compared: Compare, show: Show) -> None:
    figures = repeat(World(shared=1 / 5, image_sd=0), compared, (0.0,) * 5)
    show("5 folds, correlation 1/5, any of 4 experiments", figures)
    assert figures["found"] <= LARGEST


@pytest.mark.parametrize("shared", [0.0, 0.2])
def test_power(shared: float, compared: Compare, show: Show) -> None:
    world, found = World(shared=shared), []
    for difference in (0.01, 0.02, 0.03):
        figures = repeat(world, compared, (0.0, difference))
        assert figures["mean"] == pytest.approx(difference, abs=0.0015)
        show(f"5 folds, correlation {shared}, true difference {difference}", figures)
        found.append(figures["found"])
    assert found == sorted(found)
    detectable = figures["detectable"]
    at_detectable = repeat(world, compared, (0.0, detectable))
    show(f"5 folds, correlation {shared}, true difference as printed, {detectable:.4f}", at_detectable)
    assert at_detectable["found"] >= 0.77
    if shared:
        assert at_detectable["found"] <= 0.83


def test_files_give_the_same_verdict(compared: Compare, tmp_path: Path) -> None:
    rng, world = np.random.default_rng(0), World(presence=RARE, class_scale=NOISY)
    for difference in (0.0, 0.03):
        results = world.experiments(rng, (0.0, difference))
        folders = [_written(tmp_path / f"{difference}-{result.name}", result) for result in results]
        read = compare_experiments(folders, num_resamples=2).entries[1].verdict
        direct = compared(results, world).entries[1].verdict
        assert read is not None
        assert direct is not None
        assert not math.isnan(direct.deciding.low)
        assert read.deciding == direct.deciding


def _written(path: Path, result: CrossValidation) -> Path:
    folder = ExperimentFolder(path)
    assert result.images is not None
    figures = {"miou": 0.5, "iou": dict.fromkeys(result.class_names, 0.5)}
    for fold in result.folds:
        names = [name for name, own in result.fold_of.items() if own == fold]
        run = folder.fold(fold)
        for file in (run.images, run.last_images):
            PerImageConfusion.write(result.images.keep(names), file)
        run.write_result({"fold": fold, "n_folds": result.n_folds, "val": figures, "seconds": 1, "cost": {}})
    return path
