"""Is B better than A: intervals of paired differences, over folds and over pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.iou import class_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion

FEW_UNITS = 20
"""Fewer pictures or groups than these are left out one by one instead of drawn again: a percentile interval of so few
would be too narrow (with 4 groups it misses no difference in one of four comparisons)."""
_MAX_WEIGHTS = 20_000_000  # pictures times resamples that are in memory at once


@dataclass(frozen=True)
class Difference:
    """A paired difference B - A with its 95 % interval.

    Attributes:
        mean: The difference.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value of no difference; nan where there is too little to tell.
    """

    mean: float
    low: float
    high: float
    p: float


def corrected_resampled_t(differences: Sequence[float], *, test_share: float, level: float = 0.95) -> Difference:
    """Student's t over the folds of one data set, corrected for their overlap.

    The training sets of K folds overlap, so the folds' differences are correlated, and the plain t-test finds
    differences where there are none. The variance of their mean is s^2 (1/K + n_test/n_train) instead of
    s^2 / K (Nadeau and Bengio 2003, "Inference for the Generalization Error").

    Args:
        differences: K differences, one per fold.
        test_share: Share of the pictures that a fold holds out, in (0, 1); 1/K for all folds of K.
        level: Of the interval, in (0, 1).

    Returns:
        Mean, interval and p-value; the interval is nan for fewer than two folds.
    """
    values = np.asarray(differences, dtype=np.float64)
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Difference(mean, np.nan, np.nan, np.nan)
    variance = float(values.var(ddof=1)) * (1 / count + test_share / (1 - test_share))
    if variance == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = variance**0.5
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def bootstrap_iou(
    sets: Sequence[PerImageConfusion],
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Resample the pictures, the same draws for every set, and pool each set's matrices.

    Args:
        sets: M matrices of the same pictures in the same order.
        groups: (N,) labels; pictures of one label are drawn together, as neighbours in a video must be.
        num_resamples: R.
        seed: Decides the draws.

    Returns:
        (M, R, K) IoU; nan for classes that a resample lacks.

    Raises:
        ValueError: If the pictures differ.
    """
    names = sets[0].names
    if any(other.names != names for other in sets):
        raise UserError("the sets hold other pictures; keep the common ones with PerImageConfusion.keep.")
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
        weights = draws[:, labels.reshape(-1)].astype(np.float64)  # (size, N) times that a picture was drawn
        parts.append(np.stack([class_iou((weights @ values).reshape(size, k, k)) for values in counts]))
    return np.concatenate(parts, axis=1)


def leave_out_iou(sets: Sequence[PerImageConfusion], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Pool each set's matrices of all pictures but those of one group, for each group in turn.

    Args:
        sets: M matrices of the same pictures in the same order.
        groups: (N,) labels of G groups; each picture's own name where there are no groups.

    Returns:
        (M, G, K) IoU; nan for classes that only the group left out has.
    """
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    weights = (np.arange(labels.max() + 1)[:, None] != labels).astype(np.float64)  # (G, N)
    k = sets[0].num_classes
    return np.stack([class_iou((weights @ values.counts.astype(np.float64)).reshape(-1, k, k)) for values in sets])


def jackknife(values: npt.NDArray[np.float64], observed: float, *, level: float = 0.95) -> Difference:
    """Student's t interval by the jackknife (Efron and Tibshirani 1993, chapter 11).

    Args:
        values: (G,) the figure without each group of pictures.
        observed: The figure with all of them.
        level: Of the interval, in (0, 1).

    Returns:
        The figure, its interval, and the p-value of its being 0; nan for fewer than 2 groups, or where the figure
        is unknown without one.
    """
    count = len(values)
    if count < 2 or np.isnan(observed) or np.isnan(values).any():
        return Difference(observed, np.nan, np.nan, np.nan)
    error = float(((count - 1) / count * ((values - values.mean()) ** 2).sum()) ** 0.5)
    if error == 0:
        return Difference(observed, observed, observed, 1.0 if observed == 0 else 0.0)
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Difference(
        observed, observed - reach, observed + reach, float(2 * stats.t.sf(abs(observed) / error, count - 1))
    )


def bootstrap_difference(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], observed: float, *, level: float = 0.95
) -> Difference:
    """Percentile interval of B - A (Efron and Tibshirani 1993, chapter 13).

    It tells how far the difference depends on the pictures at hand, not on the training's own chance.

    Args:
        a: (R,) scores of A in paired resamples.
        b: (R,) scores of B in the same resamples.
        observed: The difference on the pictures as they are.
        level: Of the interval, in (0, 1).
    """
    values = (b - a)[~np.isnan(b - a)]
    if len(values) == 0 or np.isnan(observed):
        return Difference(observed, np.nan, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    # Twice the share of resamples on the other side of no difference, never 0.
    tail = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0)) + 1
    return Difference(observed, float(low), float(high), float(min(1.0, 2 * tail / (len(values) + 1))))


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Holm's adjustment (1979): p-values that bound the chance of any false finding among all of them.

    Args:
        p_values: M of them; nan stays nan and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted
