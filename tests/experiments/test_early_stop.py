"""The predicted chance, against cases that are known and the definition by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.comparison import compare_results
from deeplab_lightning.experiments.early_stop import Baseline, EarlyStop, chance_of_better, fold_differences
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.runs import ExperimentFolder
from tests.benchmarks.simulation import World
from tests.experiments.test_verdict import Write, images, write  # noqa: F401, the fixture


def test_the_chance_after_all_folds_but_one_is_that_of_students_t() -> None:
    """The last difference has a t distribution, and the verdict is a function of it alone."""
    differences = np.array([0.01, 0.03, 0.015, 0.022])
    count, overlap = len(differences), 0.2
    last = stats.t(count - 1, differences.mean(), differences.std(ddof=1) * (1 + 1 / count) ** 0.5)
    grid = last.ppf((np.arange(20_000) + 0.5) / 20_000)
    folds = np.concatenate([np.tile(differences, (len(grid), 1)), grid[:, None]], axis=1)
    error = folds.std(axis=1, ddof=1) * (1 / 5 + overlap / (1 - overlap)) ** 0.5
    expected = (folds.mean(axis=1) / error > stats.t(4).ppf(0.975)).mean()
    assert 0.2 < expected < 0.8
    assert chance_of_better(differences, 5, overlap=overlap) == pytest.approx(expected, abs=0.015)


def test_the_chance_is_low_for_worse_and_high_for_better_experiments() -> None:
    assert chance_of_better([-0.02, -0.021], 5, overlap=0.2) < 0.01
    assert chance_of_better([0.02, 0.021, 0.02, 0.021], 5, overlap=0.2) > 0.95
    assert chance_of_better([0.02, 0.021], 2, overlap=0.2) == 1  # nothing is left to chance
    assert chance_of_better([0.0, 0.0], 3, overlap=0.2) == 0


def test_differences_of_folds_are_those_of_the_folds_that_all_seeds_have() -> None:
    world = World(num_images=60, n_folds=3, presence=(1.0, 1.0), data_seed=0)
    a, b = world.experiments(np.random.default_rng(0), (0.0, 0.02))
    found = fold_differences([a], [b])
    own = nan_mean(truth_iou(b.matrices)) - nan_mean(truth_iou(a.matrices))
    assert list(found.values()) == pytest.approx(own.tolist(), abs=0.003)  # to first order
    assert b.images is not None
    names = [name for name, fold in b.fold_of.items() if fold < 2]
    part = replace(
        b,
        folds=[0, 1],
        matrices=b.matrices[:2],
        images=b.images.keep(names),
        fold_of={name: b.fold_of[name] for name in names},
    )
    assert list(fold_differences([a], [b, part])) == [0, 1]
    assert fold_differences([a, a], [b, b]) == pytest.approx(found)


def test_seeds_keep_the_same_folds(write: Write) -> None:  # noqa: F811
    """Seeds with other folds would not be pooled as one recipe."""
    base, *seeds = (write(name, images(right)) for name, right in (("base", 0.9), ("s0", 0.8), ("s1", 0.81)))
    for seed, folds in zip(seeds, ((2, 3), (1, 2, 3)), strict=True):
        for fold in folds:
            shutil.rmtree(ExperimentFolder(seed).fold(fold).path)
    experiments = [Experiment(seed, {"data": {"n_folds": 4}}, range(4), "g") for seed in seeds]
    baseline = Baseline.find(base)
    assert EarlyStop(baseline, experiments[:1]).is_wanted(1)  # it is there
    stop = EarlyStop(baseline, experiments)
    assert stop.is_wanted(1)  # of the second seed, which has one fold, so nothing is decided
    assert not ExperimentFolder(seeds[0]).stopped.exists()
    stop = EarlyStop(baseline, experiments)
    shutil.copytree(ExperimentFolder(base).fold(1).path, ExperimentFolder(seeds[1]).fold(1).path)
    shutil.copytree(ExperimentFolder(base).fold(2).path, ExperimentFolder(seeds[1]).fold(2).path)
    assert not stop.is_wanted(3)
    assert stop.is_wanted(2)  # of the first seed, since the second one has it
    assert [ExperimentFolder(seed).read_stopped() for seed in seeds] == [
        {"baseline": "base", "chance": pytest.approx(0, abs=0.05), "folds": [0, 1], "planned": [0, 1, 2, 3]}
    ] * 2


def test_nothing_is_better_that_would_not_be_without_stopping(write: Write) -> None:  # noqa: F811
    """Others that were stopped cut the images and made the number of tests smaller, so some were called better."""
    world, rng, stops, better = World(num_images=60, n_folds=4, shared=1 / 4), np.random.default_rng(0), 0, 0
    folders = [[write(f"e{index}", images(0.5), n_folds=4)] for index in range(4)]
    for _ in range(40):
        drawn = world.experiments(rng, (0.0, 0.02, -0.01, 0.03))
        full = compare_results(folders, drawn, num_resamples=2)
        is_stopped = rng.random(4) < (0, 0.4, 0.4, 0.4)
        cheap = [
            replace(first_folds(own, 2), stopped="e0") if early else own
            for own, early in zip(drawn, is_stopped, strict=True)
        ]
        found = compare_results(folders, cheap, num_resamples=2)
        for early, before, now in zip(is_stopped, full.entries, found.entries, strict=True):
            if now.verdict is None or before.verdict is None or early:
                continue
            stops += bool(is_stopped.any())
            better += "is better" in now.verdict.sentence
            assert now.verdict.deciding == before.verdict.deciding
            assert now.adjusted_p >= before.adjusted_p
    assert stops > 20
    assert better > 10


def first_folds(result: CrossValidation, count: int) -> CrossValidation:
    """Return an experiment that has finished its first folds alone."""
    assert result.images is not None
    fold_of = {name: fold for name, fold in result.fold_of.items() if fold < count}
    return replace(
        result,
        folds=result.folds[:count],
        matrices=result.matrices[:count],
        images=result.images.keep(sorted(fold_of)),
        fold_of=fold_of,
    )
