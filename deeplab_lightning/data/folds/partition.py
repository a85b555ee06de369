"""Distribute images or groups over folds so that objects, pixels and presence of each class are even."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack

from deeplab_lightning.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_BITS = 18  # of a feature as an integer
_MANTISSA_BITS = 53  # of float64
_MAX_PAIRED_FOLDS = 64  # up to which all pairs of folds are compared
_NUM_PARTNERS = 16  # of each fold among more: those that differ most from it
_MAX_ALL_PAIRS = 1000  # images per fold up to which all images of two folds are compared
_SAMPLE_SIZE = 700  # random images per fold that are compared in a larger set
_WORST_CLASSES, _MAX_HOLDERS = 4, 100  # classes that differ most, and images of each that are compared as well
_MIN_GAIN = 1e-2  # a round over a large set must lower the cost by this fraction, or it is the last


@dataclass(frozen=True)
class FoldWeights:
    """Weight the squared relative deviations from the even share in the cost of a split.

    Args:
        objects: Weight of the number of objects of a class.
        pixels: Weight of the number of pixels of a class.
        presence: Weight of the number of images that hold a class.
        images: Weight of the number of images; used with groups, which rule out exact fold sizes.
        totals: Weight of the number of all objects, and of the number of all foreground pixels.

    Raises:
        ValueError: If a weight is negative or not finite.
    """

    objects: float = 3.0
    pixels: float = 1.0
    presence: float = 0.1
    images: float = 10.0
    totals: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < np.inf:
                raise UserError(f"the weight {name} must be finite and not negative, got {value}.")


class Partition:
    """Distribute units (images or groups) over folds and track the deviations from the even share.

    Args:
        counts: (N, K) objects of each class in each unit.
        areas: (N, K) area of each class in each unit.
        sizes: (N,) images of each unit.
        n_folds: Number of folds.
        weights: Weights of the deviations.
        is_grouped: Whether units are groups, so that fold sizes may differ.

    Attributes:
        features: (N, d) integers in float64: objects, pixels and presence per class, images, and totals.
        deviation: (n_folds, d) integers in float64: n_folds times a fold's sum, minus the sum over all folds.
        folds: (N,) fold of each unit; -1 if not assigned yet.
    """

    def __init__(
        self,
        counts: csr_matrix,
        areas: csr_matrix,
        sizes: Floats,
        n_folds: int,
        weights: FoldWeights,
        *,
        is_grouped: bool,
    ) -> None:
        self.n_folds, self.is_grouped = n_folds, is_grouped
        self.counts, self.presence = counts, (counts + areas).astype(bool)
        self.holders = self.presence.tocsc()  # the units of each class
        self.features = _integer_features(counts, areas, self.presence, sizes, n_folds, weights)
        self.squares = self.features.multiply(self.features).sum(axis=1).A1
        self.folds = np.full(len(sizes), -1, dtype=np.int64)
        self.deviation = np.tile(-self.features.sum(axis=0).A1, (n_folds, 1))
        self.sizes = np.zeros(n_folds, dtype=np.int64)
        self.num_units = np.bincount(self.presence.indices, minlength=counts.shape[1])  # of each class
        self.rare_in = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
        self.rare_of: dict[int, Ints] = {}
        pairs = self.presence.tocoo()
        for unit in np.unique(pairs.row[self.num_units[pairs.col] < n_folds]).tolist():
            columns = self.presence[unit].indices
            self.rare_of[unit] = columns[self.num_units[columns] < n_folds]

    def cost(self) -> int:
        """Compute the exact sum of squared deviations."""
        return sum(int(value) ** 2 for value in self.deviation.reshape(-1))

    def assign_greedily(self, rng: np.random.Generator, *, is_shuffled: bool) -> None:
        """Assign each unit to the fold that lacks its features most, starting with the rarest class."""
        order = rng.permutation(len(self.folds)) if is_shuffled else self._rarest_first(rng)
        starts, indices, data = self.features.indptr.tolist(), self.features.indices, self.features.data
        deviation = np.ascontiguousarray(self.deviation.T)  # (d, n_folds): rows are gathered per unit
        full, num_larger = divmod(len(order), self.n_folds)
        closed = np.zeros(self.n_folds)  # inf for full folds
        num_open = len(order)
        for unit in order.tolist():
            columns, values = indices[starts[unit] : starts[unit + 1]], data[starts[unit] : starts[unit + 1]]
            rows = deviation.take(columns, axis=0)
            excess = values @ rows + closed
            if self.is_grouped and num_open <= np.count_nonzero(self.sizes == 0):
                excess[self.sizes > 0] = np.inf  # the last groups fill the empty folds
            if (rare := self.rare_of.get(unit)) is not None:
                taken = self.rare_in[:, rare].any(axis=1)
                if not (taken | np.isinf(excess)).all():
                    excess[taken] = np.inf
                fold = int(excess.argmin())
                self.rare_in[fold, rare] += 1
            else:
                fold = int(excess.argmin())
            deviation[columns, fold] = rows[:, fold] + self.n_folds * values
            self.folds[unit] = fold
            self.sizes[fold] += 1
            num_open -= 1
            if not self.is_grouped and self.sizes[fold] >= full:
                larger_taken = np.count_nonzero(self.sizes > full)
                closed[self.sizes >= full + (larger_taken < num_larger)] = np.inf
        self.deviation = np.ascontiguousarray(deviation.T)

    def exchange(self, rng: np.random.Generator) -> None:
        """Swap and move units between pairs of folds as long as the cost falls and the sizes allow it."""
        is_small = len(self.folds) <= _MAX_ALL_PAIRS * self.n_folds
        cost = self.cost()
        while True:
            gained = 0
            for one, other in self._pairs():
                gained += self._move(one, other) + self._move(other, one)
                gained += self._swap(*self._candidates(one, other, None if is_small else rng))
            cost -= gained
            if gained == 0 or (not is_small and gained < _MIN_GAIN * cost):
                return

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs of folds to compare: all of them, or of many folds those that differ most."""
        if self.n_folds <= _MAX_PAIRED_FOLDS:
            yield from combinations(range(self.n_folds), 2)
            return
        for one in range(self.n_folds):
            distance = np.square(self.deviation - self.deviation[one]).sum(axis=1)
            for other in np.argsort(-distance, kind="stable")[:_NUM_PARTNERS].tolist():
                if other != one:
                    yield one, other

    def _rarest_first(self, rng: np.random.Generator) -> Ints:
        """Order the units by their rarest class, ties by most objects and then at random."""
        pairs, counts = self.presence.tocoo(), self.counts.tocoo()
        rarest_size = np.full(len(self.folds), len(self.folds) + 1)
        np.minimum.at(rarest_size, pairs.row, self.num_units[pairs.col])
        # Among equally rare classes of a unit, take the one with most objects, independently of the columns' order.
        most_objects = np.zeros(len(self.folds))
        is_rarest = self.num_units[counts.col] == rarest_size[counts.row]
        np.maximum.at(most_objects, counts.row[is_rarest], counts.data[is_rarest])
        tie = rng.permutation(len(self.folds))
        return np.lexsort((tie, -self.counts.sum(axis=1).A1, -most_objects, rarest_size))

    def _candidates(self, one: int, other: int, rng: np.random.Generator | None) -> tuple[Ints, Ints]:
        """Choose the units of two folds to compare.

        Args:
            one: A fold.
            other: Another fold.
            rng: If given, only random units and random holders of the classes that differ most are chosen.

        Returns:
            Units of `one`, and units of `other`.
        """
        both = [np.flatnonzero(self.folds == fold) for fold in (one, other)]
        if rng is None:
            return both[0], both[1]
        difference = (self.deviation[other] - self.deviation[one])[: 3 * self.counts.shape[1]]
        worst = np.argsort(-np.square(difference.reshape(3, -1)).sum(axis=0), kind="stable")[:_WORST_CLASSES]
        holders = [self.holders.indices[self.holders.indptr[c] : self.holders.indptr[c + 1]] for c in worst]
        for side, fold in enumerate((one, other)):
            chosen = [_sample(units[self.folds[units] == fold], _MAX_HOLDERS, rng) for units in holders]
            both[side] = np.unique(np.concatenate([_sample(both[side], _SAMPLE_SIZE, rng), *chosen]))
        return both[0], both[1]

    def _swap(self, units: Ints, others: Ints) -> int:
        """Exchange units of two folds with their best partners, and return the reduction of the cost.

        An exchange of x of fold `one` and y of fold `other` changes the cost by 2 n_folds times
        (x - y).E + n_folds |x - y|^2, where E is the difference of the folds' deviations.
        """
        if not (len(units) and len(others)):
            return 0
        one, other = self.folds[units[0]], self.folds[others[0]]
        x, y = self.features[units].toarray(), self.features[others].toarray()
        difference = self.deviation[other] - self.deviation[one]
        change = (x @ difference + self.n_folds * self.squares[units])[:, None] - 2 * self.n_folds * (x @ y.T)
        change += self.n_folds * self.squares[others] - y @ difference
        partner = change.argmin(axis=1)
        best = change[np.arange(len(units)), partner]
        gained = 0
        is_used = np.zeros(len(others), dtype=bool)
        for row in np.argsort(best, kind="stable"):
            if best[row] >= 0:
                break
            column = partner[row]
            if is_used[column]:
                continue
            step = x[row] - y[column]
            difference = self.deviation[other] - self.deviation[one]
            change_now = step @ difference + self.n_folds * (step @ step)
            if change_now < 0 and self._keeps_rare_apart(int(units[row]), one, int(others[column]), other):
                is_used[column] = True
                self._place(int(units[row]), one, other, x[row])
                self._place(int(others[column]), other, one, y[column])
                gained -= 2 * self.n_folds * int(change_now)
        return gained

    def _move(self, source: int, target: int) -> int:
        """Move single units while this lowers the cost and keeps sizes even, and return the reduction of the cost."""
        gained = 0
        while self.sizes[source] > 1 and (self.is_grouped or self.sizes[source] > self.sizes[target]):
            units = np.flatnonzero(self.folds == source)
            difference = self.deviation[target] - self.deviation[source]
            change = (self.features @ difference + self.n_folds * self.squares)[units]
            row = int(change.argmin())
            if change[row] >= 0 or not self._keeps_rare_apart(int(units[row]), source, None, target):
                return gained
            self._place(int(units[row]), source, target, self.features[[units[row]]].toarray().reshape(-1))
            gained -= 2 * self.n_folds * int(change[row])
        return gained

    def _place(self, unit: int, source: int, target: int, features: Floats) -> None:
        """Move a unit from fold `source` to fold `target`."""
        self.deviation[source] -= self.n_folds * features
        self.deviation[target] += self.n_folds * features
        self.folds[unit] = target
        self.sizes[source] -= 1
        self.sizes[target] += 1
        if (rare := self.rare_of.get(unit)) is not None:
            self.rare_in[source, rare] -= 1
            self.rare_in[target, rare] += 1

    def _keeps_rare_apart(self, unit: int, source: int, partner: int | None, target: int) -> bool:
        """Check whether an exchange keeps the units of each rare class in different folds."""
        nothing = np.zeros(0, dtype=np.int64)
        mine = self.rare_of.get(unit, nothing)
        theirs = nothing if partner is None else self.rare_of.get(partner, nothing)
        into_target = np.setdiff1d(mine, theirs)
        into_source = np.setdiff1d(theirs, mine)
        return not (self.rare_in[target, into_target].any() or self.rare_in[source, into_source].any())


def _sample(units: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Draw at most `size` units."""
    return units if len(units) <= size else rng.choice(units, size, replace=False)


def _integer_features(
    counts: csr_matrix, areas: csr_matrix, presence: csr_matrix, sizes: Floats, n_folds: int, weights: FoldWeights
) -> csr_matrix:
    """Scale all features to integers, so that the even share of a column is proportional to its weight's root.

    The number of bits is chosen so that the largest possible sum of an exchange is below 2^53.
    """
    blocks = (
        (counts, weights.objects),
        (areas, weights.pixels),
        (presence.astype(np.float64), weights.presence),
        (csr_matrix(sizes[:, None]), weights.images),
        (csr_matrix(counts.sum(axis=1)), weights.totals),
        (csr_matrix(areas.sum(axis=1)), weights.totals),
    )
    total_weight = sum(values.shape[1] * weight for values, weight in blocks)
    bits = min(_MAX_BITS, int((_MANTISSA_BITS - np.log2(2 * n_folds**3 * max(total_weight, 1.0))) // 2))
    scaled = []
    for values, weight in blocks:
        share = values.sum(axis=0).A1 / n_folds
        scale = np.divide(np.sqrt(weight) * 2.0**bits, share, out=np.zeros_like(share), where=share > 0)
        whole = np.rint(values.data * scale[values.indices])
        scaled.append(csr_matrix((whole, values.indices, values.indptr), values.shape))
    return hstack(scaled, format="csr")
