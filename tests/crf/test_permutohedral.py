import pytest
import torch
from torch import Tensor

from deeplab_lightning.crf.permutohedral import PermutohedralLattice


def exact(features: Tensor, values: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(features, features) ** 2) @ values


def grid(rows: int, columns: int, deviation: float) -> Tensor:
    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([ys, xs]).flatten(1).t().double() / deviation


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_it_averages_as_a_gaussian_does(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    features = torch.rand(1500, d, generator=generator, dtype=torch.double) * 6
    values = torch.cat([torch.ones(1500, 1), features[:, :1] + torch.rand(1500, 1, generator=generator)], dim=1)
    found, expected = PermutohedralLattice(features)(values.double()), exact(features, values.double())
    found, expected = found[:, 1] / found[:, 0], expected[:, 1] / expected[:, 0]
    # Linear interpolation and a binomial blur approximate the Gaussian, and the blur lacks the corners of simplices
    # without points: the error is below a tenth of the result's deviation.
    assert float((found - expected).pow(2).mean().sqrt()) < 0.1 * float(expected.std())


def test_an_impulse_spreads_with_unit_variance() -> None:
    rows, columns, deviation = 41, 43, 4.0
    impulse = torch.zeros(rows * columns, 1, dtype=torch.double)
    impulse[20 * columns + 21] = 1
    response = PermutohedralLattice(grid(rows, columns, deviation))(impulse).reshape(rows, columns)
    response /= response.sum()
    for axis, centre in ((0, 20), (1, 21)):
        distance = (torch.arange(response.shape[axis]) - centre) / deviation
        # The blur is the same everywhere in the lattice, but the interpolation depends on the point's position.
        assert float((response.sum(1 - axis) * distance**2).sum()) == pytest.approx(1, abs=0.1)


def test_columns_are_filtered_independently_and_linearly() -> None:
    generator = torch.Generator().manual_seed(0)
    features, values = torch.rand(200, 5, generator=generator) * 3, torch.rand(200, 2, generator=generator)
    lattice = PermutohedralLattice(features)
    both = lattice(values)
    assert torch.allclose(both[:, :1], lattice(values[:, :1]), atol=1e-5)
    assert torch.allclose(lattice(2 * values[:, 1:] + values[:, :1]), 2 * both[:, 1:] + both[:, :1], atol=1e-4)


def test_far_groups_do_not_mix() -> None:
    features = torch.cat([torch.rand(50, 5), torch.rand(50, 5) + 100])
    values = torch.cat([torch.ones(50, 1), torch.zeros(50, 1)])
    assert torch.equal(PermutohedralLattice(features)(values)[50:], torch.zeros(50, 1))


def test_points_at_one_position_are_averaged() -> None:
    values = torch.arange(6.0)[:, None]
    lattice = PermutohedralLattice(torch.full((6, 5), 0.3))
    assert torch.allclose(lattice(values) / lattice(torch.ones(6, 1)), torch.full((6, 1), 2.5))


def test_order_of_the_points_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(300, 3, generator=generator, dtype=torch.double) * 4
    values = torch.rand(300, 1, generator=generator, dtype=torch.double)
    order = torch.randperm(300, generator=generator)
    assert torch.allclose(
        PermutohedralLattice(features[order])(values[order]), PermutohedralLattice(features)(values)[order]
    )


def test_too_many_lattice_points_are_refused() -> None:
    with pytest.raises(ValueError, match="too many to number: use larger deviations"):
        PermutohedralLattice(torch.tensor([[0.0] * 5, [1e5] * 5]))
