"""Estimate intervals and p-values of paired differences, over folds and over images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.optimize import brentq

from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.iou import truth_iou
from deeplab_lightning.metrics.per_image import PerImageCounts

Floats = npt.NDArray[np.float64]
Figure = Callable[[Floats], Floats]
MIN_BOOTSTRAP_UNITS = 20
"""Fewer images or groups than these are left out one by one (jackknife) instead of resampled. A percentile interval of
so few would be too narrow: with 4 groups, it excludes zero in one of four comparisons without any difference."""
_ROUNDING = 1e-12  # of a difference of mIoU
_LARGE = 1e6  # degrees of freedom that are as good as infinite
_MAX_WEIGHTS = 20_000_000  # images times resamples held in memory at once


@dataclass(frozen=True)
class Difference:
    """Hold a paired difference B - A with its 95 % interval.

    Attributes:
        mean: The difference.
        low: Lower end of the interval; nan if there are too few folds or images.
        high: Upper end of the interval; nan likewise.
        p: Two-sided p-value of no difference; nan likewise.
        freedom: Degrees of freedom of the interval; nan likewise.
    """

    mean: float
    low: float
    high: float
    p: float
    freedom: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Check whether the interval excludes no difference."""
        return bool(self.low > 0 or self.high < 0)

    def untested(self) -> "Difference":
        """Return the difference alone, without what a test says of it."""
        return Difference(self.mean, math.nan, math.nan, math.nan)


UNKNOWN = Difference(math.nan, math.nan, math.nan, math.nan)


def pooled_iou(counts: Floats) -> Floats:
    """Compute the (R, K) IoU of summed confusion matrices, (R, K * K)."""
    k = round(counts.shape[-1] ** 0.5)
    return truth_iou(counts.reshape(-1, k, k))


def weighted_t(
    contributions: Sequence[float] | Floats,
    weights: Sequence[float] | Floats,
    *,
    overlap: float = 0.0,
    level: float = 0.95,
) -> Difference:
    """Compute Student's t interval of a pooled difference from the contributions of its units.

    A contribution is the weight of a unit, a fold or an image, times the unit's difference. Without any true
    difference, all contributions have the mean 0, and the t-test of independent ones finds a difference in at most 5 %
    of cases even if their variances differ (Ibragimov and Mueller 2010, "t-Statistic Based Correlation and
    Heterogeneity Robust Inference"), as they do when one fold holds most of a rare class. Units of unequal weight get
    the unbiased variance and the degrees of freedom of Bell and McCaffrey (2002, "Bias Reduction in Standard Errors
    for Linear Regression with Multi-Stage Samples").

    The training sets of K folds overlap, so the differences of the folds are correlated, and their spread is smaller
    than the error of their mean. Nadeau and Bengio (2003, "Inference for the Generalization Error") take a correlation
    of 1/K, the share of the images that a fold holds out. The variance of the mean of K folds is then
    s^2 (1/K + 1/(K - 1)) instead of s^2 / K.

    Args:
        contributions: (U,) contributions; their sum is the difference.
        weights: (U,) weights, which sum to 1; units of weight 0 do not count.
        overlap: Correlation of the units' differences, in [0, 1).
        level: Confidence level of the interval, in (0, 1).

    Returns:
        Difference, interval and p-value. The last two are nan for fewer than two units, and for units with the same
        difference, which are no measurement of their spread.
    """
    values, shares = np.asarray(contributions, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    difference = float(values.sum())
    values, shares = values[shares > 0], shares[shares > 0]
    if len(values) < 2:
        return Difference(difference, np.nan, np.nan, np.nan)
    squares = float((shares**2).sum())
    scale = 1 / (1 - 2 * shares + squares)  # of a unit's squared residual, to be unbiased
    variance = float((scale * (values - difference * shares) ** 2).sum())
    if variance**0.5 <= _ROUNDING:
        is_none = abs(difference) <= _ROUNDING and bool((values == 0).all())
        return Difference(0.0, 0.0, 0.0, 1.0) if is_none else Difference(difference, np.nan, np.nan, np.nan)
    variance *= 1 + overlap / (1 - overlap) / squares
    return _of_t(difference, variance**0.5, _freedom(shares, squares, scale), level)


def _freedom(shares: Floats, squares: float, scale: Floats) -> float:
    """Return the degrees of freedom of the variance for units of equal variance; U - 1 for equal weights.

    The variance is a sum of squares of normal residuals with the covariance matrix G, and has (tr G)^2 / tr(G^2).
    """
    squared = scale * shares**2  # of the factor of a unit's difference in its residual
    zeroth, first, second = (float((squared * shares**power).sum()) for power in range(3))
    diagonal = float((squared**2 * (1 + 2 * (squares - 2 * shares))).sum())
    rest = squares**2 * zeroth**2 + 2 * second * zeroth - 4 * squares * first * zeroth + 2 * first**2
    return squares**2 / (diagonal + rest)


def _of_t(mean: float, error: float, freedom: float, level: float) -> Difference:
    """Return a difference with Student's t interval."""
    reach = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * special.stdtr(freedom, -abs(mean) / error)), freedom)


def detectable_difference(found: Difference, *, level: float = 0.95, power: float = 0.8) -> float:
    """Compute the smallest difference that a design would find in a share of its repetitions.

    Args:
        found: A difference whose interval shows the design's error.
        level: Confidence level of the interval.
        power: The share.

    Returns:
        The difference; nan without an interval.
    """
    if np.isnan(found.low) or found.high <= found.low:
        return float("nan")
    freedom = min(found.freedom, _LARGE)
    reach = float(special.stdtrit(freedom, (1 + level) / 2))
    error = (found.high - found.low) / (2 * reach)
    # Where the true difference is `errors` errors, difference / error has a noncentral t distribution.
    errors = brentq(lambda errors: 1 - float(special.nctdtr(freedom, errors, reach)) - power, 0, 2 * reach + 4)
    return float(errors) * error


def bootstrap(
    sets: Sequence[PerImageCounts],
    *,
    figure: Figure = pooled_iou,
    groups: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """Compute figures, such as the IoU, of bootstrap resamples of the images, with the same ones for every set.

    Args:
        sets: M sets of counts of the same N images in the same order.
        figure: Function of counts that are summed over images, (R, C) -> (R, F).
        groups: (N,) labels; images of one label are drawn together, as neighbours in a video must be.
        num_resamples: Number of resamples R.
        seed: Seed of the resamples.

    Returns:
        (M, R, F) figures; nan for classes that a resample lacks.

    Raises:
        ValueError: If the sets hold different images.
    """
    names = sets[0].names
    if any(other.names != names for other in sets):
        raise UserError("the sets hold different images; select the common ones with PerImageConfusion.keep.")
    counts = [own.counts.astype(np.float64) for own in sets]
    labels = np.arange(len(names)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_units = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    parts = []
    chunk = max(1, min(num_resamples, _MAX_WEIGHTS // len(names)))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        weights = draws[:, labels.reshape(-1)].astype(np.float64)  # (size, N) number of draws of each image
        parts.append(np.stack([figure(weights @ values) for values in counts]))
    return np.concatenate(parts, axis=1)


def leave_out(sets: Sequence[PerImageCounts], groups: Sequence[str], *, figure: Figure = pooled_iou) -> Floats:
    """Compute figures, such as the IoU, without the images of one group, for each group in turn.

    Args:
        sets: M sets of counts of the same N images in the same order.
        groups: (N,) labels of G groups, or the names of the images.
        figure: See `bootstrap`.

    Returns:
        (M, G, F) figures; nan for classes that only the omitted group has.
    """
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    weights = (np.arange(labels.max() + 1)[:, None] != labels).astype(np.float64)  # (G, N)
    return np.stack([figure(weights @ own.counts.astype(np.float64)) for own in sets])


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
