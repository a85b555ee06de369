"""Estimate intervals and p-values of paired differences, over folds and over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.iou import truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion

MIN_BOOTSTRAP_UNITS = 20
"""Fewer images or groups than these are left out one by one (jackknife) instead of resampled. A percentile interval of
so few would be too narrow: with 4 groups, it excludes zero in one of four comparisons without any difference."""
_MAX_WEIGHTS = 20_000_000  # images times resamples held in memory at once


@dataclass(frozen=True)
class Difference:
    """Hold a paired difference B - A with its 95 % interval.

    Attributes:
        mean: The difference.
        low: Lower end of the interval; nan if there are too few folds or images.
        high: Upper end of the interval; nan likewise.
        p: Two-sided p-value of no difference; nan likewise.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """Check whether the interval excludes no difference."""
        return bool(self.low > 0 or self.high < 0)


def corrected_resampled_t(
    differences: Sequence[float], *, test_share: float, level: float = 0.95, center: float | None = None
) -> Difference:
    """Compute Student's t interval of the mean difference over folds, corrected for the folds' overlap.

    The training sets of K folds overlap, so the folds' differences are correlated, and the plain t-test finds
    differences where there are none. The variance of their mean is s^2 (1/K + n_test/n_train) instead of
    s^2 / K (Nadeau and Bengio 2003, "Inference for the Generalization Error").

    Args:
        differences: K differences, one per fold.
        test_share: Share of the images that a fold holds out, in (0, 1); 1/K for a split into K folds.
        level: Confidence level of the interval, in (0, 1).
        center: Estimate that the interval is of, such as the pooled difference; the mean of the differences if None.

    Returns:
        Estimate, interval and p-value; the interval is nan for fewer than two folds, and for folds with exactly the
        same difference.
    """
    values = np.asarray(differences, dtype=np.float64)
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Difference(mean if center is None else center, np.nan, np.nan, np.nan)
    variance = float(values.var(ddof=1)) * (1 / count + test_share / (1 - test_share))
    estimate = mean if center is None else center
    if variance == 0:  # folds that agree to the last digit are no measurement of their spread
        is_none = mean == 0 and estimate == 0
        return Difference(0.0, 0.0, 0.0, 1.0) if is_none else Difference(estimate, np.nan, np.nan, np.nan)
    return _of_t(estimate, variance**0.5, count - 1, level)


def _of_t(mean: float, error: float, freedom: int, level: float) -> Difference:
    """Return a difference with Student's t interval."""
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def detectable_difference(found: Difference, freedom: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """Compute the smallest difference that a design would find in a share of its repetitions.

    Args:
        found: A difference whose interval shows the design's error.
        freedom: Degrees of freedom of the interval; infinite for a bootstrap.
        level: Confidence level of the interval.
        power: The share.

    Returns:
        The difference; nan without an interval.
    """
    if np.isnan(found.low) or found.high <= found.low:
        return float("nan")
    reach = float(stats.t.ppf((1 + level) / 2, freedom))
    error = (found.high - found.low) / (2 * reach)
    return (reach + float(stats.t.ppf(power, freedom))) * error


def bootstrap_iou(
    sets: Sequence[PerImageConfusion],
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Compute the IoU of bootstrap resamples of the images, with the same resamples for every set.

    Args:
        sets: M sets of matrices of the same N images in the same order.
        groups: (N,) labels; images of one label are drawn together, as neighbours in a video must be.
        num_resamples: Number of resamples R.
        seed: Seed of the resamples.

    Returns:
        (M, R, K) IoU of the pooled matrices; nan for classes that a resample lacks.

    Raises:
        ValueError: If the sets hold different images.
    """
    names = sets[0].names
    if any(other.names != names for other in sets):
        raise UserError("the sets hold different images; select the common ones with PerImageConfusion.keep.")
    counts = [matrices.counts.astype(np.float64) for matrices in sets]
    k = sets[0].num_classes
    labels = np.arange(len(names)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_units = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    parts = []
    chunk = max(1, min(num_resamples, _MAX_WEIGHTS // len(names)))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        weights = draws[:, labels.reshape(-1)].astype(np.float64)  # (size, N) number of draws of each image
        parts.append(np.stack([truth_iou((weights @ values).reshape(size, k, k)) for values in counts]))
    return np.concatenate(parts, axis=1)


def leave_out_iou(sets: Sequence[PerImageConfusion], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Compute the IoU without the images of one group, for each group in turn.

    Args:
        sets: M sets of matrices of the same N images in the same order.
        groups: (N,) labels of G groups, or the names of the images.

    Returns:
        (M, G, K) IoU of the pooled matrices; nan for classes that only the omitted group has.
    """
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    weights = (np.arange(labels.max() + 1)[:, None] != labels).astype(np.float64)  # (G, N)
    k = sets[0].num_classes
    return np.stack([truth_iou((weights @ values.counts.astype(np.float64)).reshape(-1, k, k)) for values in sets])


def jackknife(values: npt.NDArray[np.float64], observed: float, *, level: float = 0.95) -> Difference:
    """Compute Student's t interval by the jackknife (Efron and Tibshirani 1993, chapter 11).

    Args:
        values: (G,) figure without each group of images.
        observed: Figure of all images.
        level: Confidence level of the interval, in (0, 1).

    Returns:
        The figure, its interval, and the p-value of a figure of 0. Interval and p-value are nan for fewer than 2
        groups, or if the figure is nan without one of them.
    """
    count = len(values)
    if count < 2 or np.isnan(observed) or np.isnan(values).any():
        return Difference(observed, np.nan, np.nan, np.nan)
    error = float(((count - 1) / count * ((values - values.mean()) ** 2).sum()) ** 0.5)
    if error == 0:
        return Difference(observed, 0.0, 0.0, 1.0) if observed == 0 else Difference(observed, np.nan, np.nan, np.nan)
    return _of_t(observed, error, count - 1, level)


def bootstrap_difference(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], observed: float, *, level: float = 0.95
) -> Difference:
    """Compute the percentile interval of B - A (Efron and Tibshirani 1993, chapter 13).

    The interval covers the choice of the images, but not the randomness of the training.

    Args:
        a: (R,) figures of A in paired resamples.
        b: (R,) figures of B in the same resamples.
        observed: Difference on the original images.
        level: Confidence level of the interval, in (0, 1).
    """
    values = (b - a)[~np.isnan(b - a)]
    if len(values) == 0 or np.isnan(observed):
        return Difference(observed, np.nan, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    # Twice the share of resamples on the other side of zero, counting the observed sample, so that p is never 0.
    tail = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0)) + 1
    return Difference(observed, float(low), float(high), float(min(1.0, 2 * tail / (len(values) + 1))))


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Adjust p-values by Holm's method (1979), which bounds the chance of any false finding among them.

    Args:
        p_values: M p-values; nan stays nan and does not count.

    Returns:
        (M,) adjusted p-values, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted
