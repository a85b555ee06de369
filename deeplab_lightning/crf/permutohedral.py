"""Filter scattered points in few dimensions with a Gaussian, in time linear in their number."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.errors import UserError

_MAX_KEY_BITS = 62


class PermutohedralLattice:
    """Filter values with a Gaussian of unit deviation over features (Adams et al. 2010).

    The value of each point is distributed over the d + 1 corners of the lattice simplex that contains it (splat), the
    corners are blurred along the d + 1 lattice directions, and each point is interpolated from its corners (slice).
    Only corners of simplices that contain a point exist. They are found by sorting, not hashing, so that all steps are
    whole-tensor operations of torch on any device.

    The result is that of the Gaussian exp(-|f_i - f_j|^2 / 2) up to a common factor and to the lattice's error, a few
    percent of the kernel; divide it by the result for ones to normalise it.

    Args:
        features: (N, d) float, finite: each coordinate divided by its deviation.

    Raises:
        ValueError: If the features spread over more lattice points than 62 bits can number.
    """

    def __init__(self, features: Tensor) -> None:
        num_points, d = features.shape
        base, rank, shares = _enclosing_simplex(features)  # (d + 1, N) each
        # A key holds the first d coordinates as digits of one number, with a margin for neighbours, so that a step to
        # a neighbour adds a constant to the key.
        low = base[:d].amin(dim=1) - 2 * d - 1
        span = base[:d].amax(dim=1) + 2 * d + 1 - low  # (d,)
        if math.log2(math.prod(span.tolist())) > _MAX_KEY_BITS:
            raise UserError(
                f"the features spread over {span.tolist()} lattice steps, too many to number: use larger deviations."
            )
        digits = torch.ones_like(span)
        digits[:-1] = span.flip(0).cumprod(0).flip(0)[1:]
        keys = _corner_keys(base, rank, low, digits)  # (N, d + 1)
        ordered, order = keys.reshape(-1).sort()
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        is_first[1:] = ordered[1:] != ordered[:-1]
        corners = ordered[is_first]  # (M,)
        numbers = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0) - 1)
        weights = shares.t().contiguous()  # (N, d + 1)
        self._slice_index, self._slice_weights = numbers.reshape(num_points, d + 1).int(), weights
        self._splat_index = order.div(d + 1, rounding_mode="floor").int()
        self._splat_weights, self._splat_starts = weights.reshape(-1)[order], is_first.nonzero()[:, 0].int()
        self._neighbours = [_neighbours(corners, int(step)) for step in _steps(digits)]

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (N, K) of the features' dtype; the result (N, K) is not normalised."""
        x = F.embedding_bag(
            self._splat_index, values, self._splat_starts, mode="sum", per_sample_weights=self._splat_weights
        )
        x = torch.cat([x, x.new_zeros(1, x.shape[1])])  # (M + 1, K), the last for corners that do not exist
        for after, before in self._neighbours:
            x = x.add(x.index_select(0, after) + x.index_select(0, before), alpha=0.5)
        return F.embedding_bag(self._slice_index, x, mode="sum", per_sample_weights=self._slice_weights)


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex of each point in the lattice of sum-zero vectors of d + 1 coordinates.

    Adams et al. 2010, section 3.

    Returns:
        The remainder-0 corner and the rank of each coordinate, (d + 1, N) int64, and the barycentric weights of the
        corners of remainders 0 to d, (d + 1, N).
    """
    d = features.shape[1]
    steps = torch.arange(1, d + 1, device=features.device, dtype=features.dtype)
    # The scale makes the blur's variance that of a unit Gaussian, and normalises the basis of the plane.
    scaled = features.t() * ((2 / 3) ** 0.5 * (d + 1) / (steps * (steps + 1)).sqrt())[:, None]  # (d, N)
    elevated = F.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))  # (d + 1, N)
    elevated[1:] -= steps[:, None] * scaled
    base = (elevated / (d + 1)).round_().mul_(d + 1)
    excess = (base.sum(dim=0) / (d + 1)).round().to(torch.int16)  # (N,), difference of the sum from zero
    difference = elevated - base
    rank = excess.expand(d + 1, -1).clone()
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            is_less = difference[i] < difference[j]
            rank[i] += is_less
            rank[j] += ~is_less
    wrap = (d + 1) * ((rank < 0).to(rank.dtype) - (rank > d).to(rank.dtype))
    base += wrap
    rank = (rank + wrap).long()
    share = (elevated - base) / (d + 1)
    shares = features.new_zeros(d + 2, features.shape[0])
    shares.scatter_add_(0, d - rank, share)
    shares.scatter_add_(0, d + 1 - rank, -share)
    shares[0] += 1 + shares[d + 1]
    return base.long(), rank, shares[: d + 1]


def _corner_keys(base: Tensor, rank: Tensor, low: Tensor, digits: Tensor) -> Tensor:
    """Compute a key of each corner of each point's simplex, (N, d + 1) int64; equal corners have equal keys."""
    d = len(digits)
    steps = _steps(digits)
    keys = torch.empty_like(base).t().contiguous()  # (N, d + 1)
    keys[:, 0] = ((base[:d] - low[:, None]) * digits[:, None]).sum(dim=0)
    # From one corner to the next, the coordinate of the highest remaining rank takes a step.
    coordinate = torch.empty_like(rank)
    coordinate.scatter_(0, rank, torch.arange(d + 1, device=rank.device)[:, None].expand_as(rank))
    for remainder in range(d):
        keys[:, remainder + 1] = keys[:, remainder] + steps[coordinate[d - remainder]]
    return keys


def _steps(digits: Tensor) -> Tensor:
    """Compute the change (d + 1,) of a key if one coordinate moves d steps back and all others one step ahead."""
    return digits.sum() - (len(digits) + 1) * F.pad(digits, (0, 1))


def _neighbours(corners: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Find the numbers of the corners one step after and before each, (M + 1,) each; M if no corner exists there."""
    count = len(corners)
    target = corners + step
    found = torch.searchsorted(corners, target).clamp_(max=count - 1)
    after = torch.full((count + 1,), count, dtype=torch.int64, device=corners.device)
    after[:-1] = torch.where(corners[found] == target, found, count)
    before = torch.full_like(after, count)
    before[after] = torch.arange(count + 1, device=corners.device)
    before[-1] = count
    return after, before
