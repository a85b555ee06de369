"""What `kfold --cheap` saves and what it costs, and what claims before the last fold would. `make bench`, minutes.

The experiments are those of `test_verdicts.py`; every fold and every verdict goes through the code of the command.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.experiments.early_stop import MIN_CHANCE, MIN_FOLDS, chance_of_better, fold_differences
from tests.benchmarks.measure import write
from tests.benchmarks.simulation import World
from tests.benchmarks.test_verdicts import (  # noqa: F401, the fixtures
    LARGEST,
    NOISY,
    RARE,
    REPEATS,
    Compare,
    Show,
    compared,
    show,
)
from tests.experiments.test_early_stop import first_folds

Floats = npt.NDArray[np.float64]
WORLDS = {
    "3 folds, correlation 1/3": World(n_folds=3, shared=1 / 3),
    "5 folds": World(),
    "5 folds, correlation 1/5": World(shared=1 / 5),
    "5 folds, correlation 1/2 (beyond the claim of a verdict)": World(shared=1 / 2),
    "5 folds, rare classes, correlation 1/5": World(presence=RARE, class_scale=NOISY, shared=1 / 5),
    "10 folds, correlation 1/10": World(n_folds=10, shared=1 / 10),
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Any]]:
    """Collect the figures, and write them at the end."""
    figures: dict[str, Any] = {}
    yield figures
    write("cheap", {"repeats": REPEATS // 3, **figures})


def folds_trained(base: CrossValidation, own: CrossValidation) -> int:
    """Return the number of folds after which an experiment is stopped; all if it is not."""
    for count in range(MIN_FOLDS, own.n_folds):
        differences = list(fold_differences([base], [first_folds(own, count)]).values())
        if chance_of_better(differences, own.n_folds, overlap=1 / own.n_folds) < MIN_CHANCE:
            return count
    return own.n_folds


@pytest.mark.parametrize("name", WORLDS)
def test_stopping_saves_trainings_and_finds_as_much(name: str, compared: Compare, show: Show) -> None:  # noqa: F811
    world = WORLDS[name]
    for difference in (-0.02, 0.0, 0.01, 0.02, 0.03):
        rng = np.random.default_rng(2)
        better, cheap, trained = [], [], []
        for _ in range(REPEATS // 3):
            base, own = world.experiments(rng, (0.0, difference))
            verdict = compared([base, own], world).entries[1].verdict
            assert verdict is not None
            better.append(" is better than " in verdict.sentence)
            trained.append(folds_trained(base, own))
            cheap.append(better[-1] and trained[-1] == world.n_folds)
        figures = {
            "better": float(np.mean(better)),
            "better, cheap": float(np.mean(cheap)),
            "share of trainings": float(np.mean(trained)) / world.n_folds,
        }
        show(f"cheap, {name}, true difference {difference}", figures)
        assert figures["better, cheap"] >= figures["better"] - 0.03
        if difference <= 0:
            assert figures["better, cheap"] <= figures["better"]
            assert figures["share of trainings"] < (0.75 if world.n_folds == 3 else 0.6)


def p_values(differences: Floats, n_folds: int) -> Floats:
    """Return the two-sided p-values of (R, K) differences after each number of folds, as `weighted_t` has them."""
    found = np.ones(differences.shape)
    for count in range(2, n_folds + 1):
        part = differences[:, :count]
        error = np.sqrt(part.var(axis=1, ddof=1) * (1 / count + 1 / (n_folds - 1)))
        found[:, count - 1] = 2 * special.stdtr(count - 1, -np.abs(part.mean(axis=1)) / error)
    return found


def spent_levels(null: Floats, spend: Callable[[float], float], first: int) -> Floats:
    """Return the level of each look at which a share of the null p-values has been crossed (Lan and DeMets 1983).

    Args:
        null: (R, K) p-values of experiments that do not differ.
        spend: Share of the error that may be spent at a share of the information.
        first: Number of folds at the first look.
    """
    n_folds = null.shape[1]
    variance = np.array([1 / n_folds + (1 - 1 / n_folds) / count for count in range(1, n_folds + 1)])
    is_open, levels, spent = np.ones(len(null), dtype=bool), np.zeros(n_folds), 0.0
    for look in range(first - 1, n_folds):
        now = spend(variance[-1] / variance[look])
        levels[look] = np.sort(null[is_open, look])[max(round((now - spent) * len(null)) - 1, 0)]
        is_open &= null[:, look] > levels[look]
        spent = now
    return levels


def test_claims_before_the_last_fold_cost_more_than_they_save(show: Show) -> None:  # noqa: F811
    """With few folds, a t-test has few degrees of freedom, and the looks leave less error for the last one."""
    n_folds, rng = 5, np.random.default_rng(0)

    def draw(count: int, effect: float) -> Floats:
        common, own = rng.normal(size=(count, 1)), rng.normal(size=(count, n_folds))
        return p_values(effect + (1 / n_folds) ** 0.5 * common + (1 - 1 / n_folds) ** 0.5 * own, n_folds)

    null = draw(1_000_000, 0)
    spending: dict[str, Callable[[float], float]] = {
        "O'Brien-Fleming": lambda share: float(2 * stats.norm.sf(1.959964 / share**0.5)),
        "late (share of the information ** 8)": lambda share: 0.05 * share**8,
    }
    for name, spend in spending.items():
        levels = spent_levels(null, spend, first=3)
        for effect in (0.0, 1.0, 2.0, 3.0, 5.0):
            crossed = (p := draw(20_000, effect)) <= levels
            trained = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, n_folds)
            figures = {
                "found": float(crossed.any(axis=1).mean()),
                "found by all folds": float((p[:, -1] < 0.05).mean()),
                "share of trainings": float(trained.mean()) / n_folds,
            }
            show(f"claims before the last fold, {name}, {effect} standard deviations", figures)
            if effect == 0:
                assert figures["found"] <= LARGEST
            if effect == 2:
                assert figures["found"] < figures["found by all folds"] - 0.03
                assert figures["share of trainings"] > 0.85
