from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix
from statsmodels.stats.multitest import multipletests

from deeplab_lightning.experiments.significance import (
    Difference,
    bootstrap,
    detectable_difference,
    holm,
    jackknife,
    leave_out,
    weighted_t,
)
from deeplab_lightning.metrics.per_image import PerImageConfusion


def images(seed: int, skill: float, num_images: int = 40, num_classes: int = 3) -> PerImageConfusion:
    """Images of 1000 pixels, each right with probability `skill` plus an offset of the image."""
    difficulty = np.random.default_rng(99).normal(0, 0.08, num_images)  # of the image, the same for all models
    rng = np.random.default_rng(seed)
    matrices = []
    for index in range(num_images):
        right = np.clip(skill + difficulty[index] + rng.normal(0, 0.03), 0, 1)
        truth = rng.multinomial(1000, [0.6, 0.3, 0.1][:num_classes])
        wrong = (1 - right) / (num_classes - 1)
        rows = [rng.multinomial(n, np.where(np.arange(num_classes) == c, right, wrong)) for c, n in enumerate(truth)]
        matrices.append((f"{index:03d}.png", np.array(rows)))
    return PerImageConfusion.of(matrices)


def equal(values: "list[float] | np.ndarray[Any, Any]", *, overlap: float = 0.0) -> Difference:
    """The mean of values of equal weight."""
    return weighted_t(np.asarray(values) / len(values), [1 / len(values)] * len(values), overlap=overlap)


def test_equal_weights_without_overlap_are_students_t() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    ours, theirs = equal(values), stats.ttest_1samp(values, 0)
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((0.026, interval.low, interval.high))
    assert ours.freedom == pytest.approx(4)


def test_the_overlap_widens_by_nadeau_and_bengio() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    plain, corrected = equal(values), equal(values, overlap=1 / 5)
    # 1/5 + (1/5)/(4/5) = 9/20 instead of 1/5
    assert (corrected.high - corrected.mean) / (plain.high - plain.mean) == pytest.approx((9 / 4) ** 0.5)


def test_too_few_or_equal_units_have_no_interval() -> None:
    """Equal differences gave p = 0."""
    assert np.isnan(equal([0.1]).low)
    assert equal([0.0, 0.0]).p == 1
    assert np.isnan(equal([0.1, 0.1]).p)
    unequal = weighted_t([0.09, 0.01], [0.9, 0.1])  # both differ by 0.1
    assert unequal.mean == pytest.approx(0.1)
    assert np.isnan(unequal.p)
    assert np.isnan(weighted_t([0.1, 0.0], [1.0, 0.0]).p)


def test_unequal_weights_have_an_unbiased_variance_and_its_degrees_of_freedom() -> None:
    rng, weights = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    drawn = [weighted_t(row * weights, weights) for row in rng.normal(size=(4000, 4))]
    freedom = drawn[0].freedom
    variances = np.array([((d.high - d.low) / 2 / stats.t.ppf(0.975, freedom)) ** 2 for d in drawn])
    assert variances.mean() == pytest.approx((weights**2).sum(), rel=0.04)
    assert freedom == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.1)  # of a scaled chi-squared
    assert freedom < 3
    assert 0.01 <= np.mean([d.p < 0.05 for d in drawn]) <= 0.06  # conservative, if not equal


@pytest.mark.parametrize("freedom", [2.0, 4.0, 9.0, 1e5])
def test_the_detectable_difference_is_found_in_four_of_five_repetitions(freedom: float) -> None:
    rng = np.random.default_rng(0)
    reach = stats.t.ppf(0.975, freedom)
    effect = detectable_difference(Difference(0.0, -reach, reach, 1.0, freedom))  # of an error of 1
    errors = np.sqrt(rng.chisquare(freedom, 20_000) / freedom)
    found = np.abs(rng.normal(effect, 1, 20_000)) > reach * errors
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)
    assert np.isnan(detectable_difference(Difference(0.1, np.nan, np.nan, np.nan)))


@pytest.mark.parametrize("n_folds", [3, 5, 10])
def test_folds_fire_in_one_of_twenty_when_there_is_no_difference(n_folds: int) -> None:
    rng = np.random.default_rng(n_folds)
    correlation = 1 / n_folds  # of the folds' differences, as the correction assumes
    shared = rng.normal(size=(2000, 1)) * correlation**0.5
    values = shared + rng.normal(size=(2000, n_folds)) * (1 - correlation) ** 0.5
    fired = [equal(row, overlap=correlation).p < 0.05 for row in values]
    assert 0.03 <= np.mean(fired) <= 0.07
    assert np.mean([equal(row).p < 0.05 for row in values]) > 0.085  # what it corrects


@pytest.mark.long
@pytest.mark.parametrize("num_groups", [3, 4, 10, 19])
def test_few_groups_fire_in_one_of_twenty_when_there_is_no_difference(num_groups: int) -> None:
    """Groups of six images with an offset per group; a percentile bootstrap would fire in up to one of four."""
    rng = np.random.default_rng(num_groups)
    groups = [f"{index // 6}" for index in range(6 * num_groups)]
    fired = []
    for _ in range(2000):
        luck = np.repeat(rng.normal(0, 0.05, (2, num_groups)), 6, axis=1)
        shares = np.clip(0.7 + luck + rng.normal(0, 0.02, luck.shape), 0.05, 0.95)
        right = np.rint(500 * shares).astype(int)
        sets = [
            PerImageConfusion(groups, csr_matrix(np.stack([r, 500 - r, 0 * r, 0 * r + 500], axis=1))) for r in right
        ]
        iou = leave_out(sets, groups).mean(axis=-1)
        difference = jackknife(iou[1] - iou[0], _miou(sets[1].total()) - _miou(sets[0].total()))
        assert (difference.p < 0.05) == (difference.low > 0 or difference.high < 0)
        fired.append(difference.p < 0.05)
    assert 0.03 <= np.mean(fired) <= 0.07


def test_the_jackknife_of_a_mean_is_students_t() -> None:
    values = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    without = (values.sum() - values) / 4
    found, theirs = jackknife(without, float(values.mean())), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert np.isnan(jackknife(values[:1], 0.02).p)
    assert np.isnan(jackknife(np.array([0.1, np.nan]), 0.02).low)


def _miou(matrix: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> float:
    hits = np.diag(matrix)
    return float((hits / (matrix.sum(0) + matrix.sum(1) - hits)).mean())


def test_the_bootstrap_covers_the_observed_and_repeats() -> None:
    a, b = images(1, 0.7), images(2, 0.75)
    iou = bootstrap([a, b], num_resamples=500)
    assert iou.shape == (2, 500, 3)
    low, high = np.quantile(iou.mean(-1), [0.025, 0.975], axis=1)
    assert low[0] < _miou(a.total()) < high[0] < _miou(b.total()) < high[1]
    assert np.array_equal(iou, bootstrap([a, b], num_resamples=500))


def test_resamples_pool_like_a_loop_over_images() -> None:
    a = images(1, 0.7, num_images=6)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(6, np.full(6, 1 / 6), size=3)
    dense = np.asarray(a.counts.todense()).reshape(6, 3, 3)
    expected = [_miou(sum(n * m for n, m in zip(row, dense, strict=True))) for row in draws]
    assert bootstrap([a], num_resamples=3).mean(-1)[0] == pytest.approx(expected)


def test_groups_are_drawn_together() -> None:
    a = images(1, 0.7, num_images=40)
    apart, together = (
        bootstrap([a], groups=groups, num_resamples=800)[0].mean(-1).std()
        for groups in (None, [f"{i // 10}" for i in range(40)])
    )
    one_group = bootstrap([a], groups=["x"] * 40, num_resamples=20)[0].mean(-1)
    assert np.ptp(one_group) == 0
    assert together != apart


def test_different_images_stop() -> None:
    with pytest.raises(ValueError, match="hold different images"):
        bootstrap([images(1, 0.7), images(1, 0.7, num_images=39)])


def test_holm_is_that_of_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.2, 0.005]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([float("nan"), 0.02, 0.03]) == pytest.approx([float("nan"), 0.04, 0.04], nan_ok=True)
    assert holm([]).tolist() == []
