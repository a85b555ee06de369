"""The CRF against a mean field over all pairs of pixels, written here from the papers in NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.crf import DenseCRF, Filter, mean_field, smoothness_filter

Array = npt.NDArray[np.float64]


def all_pairs(image: Tensor, *, sigma_alpha: float, sigma_beta: float, sigma_gamma: float) -> tuple[Array, Array]:
    """Computes the (N, N) appearance and smoothness kernels."""
    height, width = image.shape[1:]
    points = [(y, x) for y in range(height) for x in range(width)]
    colours = [image[:, y, x].tolist() for y, x in points]
    position, colour = np.array(points, dtype=float), np.array(colours, dtype=float)
    near = ((position[:, None] - position[None]) ** 2).sum(-1)
    alike = ((colour[:, None] - colour[None]) ** 2).sum(-1)
    appearance = np.exp(-near / (2 * sigma_alpha**2) - alike / (2 * sigma_beta**2))
    return appearance, np.exp(-near / (2 * sigma_gamma**2))


def brute_force(logits: Tensor, kernels: list[tuple[float, Array]], iterations: int) -> Tensor:
    """Computes probabilities (K, H, W) in float64 from logits (K, H, W)."""
    values = logits.double().flatten(1).numpy()
    unary = -(values - np.log(np.exp(values).sum(0)))  # (K, N)
    q = np.exp(-unary)
    for _ in range(iterations):
        energy = unary.copy()
        for weight, kernel in kernels:
            degree = kernel.sum(1)
            symmetric = kernel / np.sqrt(np.outer(degree, degree))
            message = q @ symmetric  # (K, N)
            # Potts: the cost of a label is the probability of all other labels at the neighbours.
            energy += weight * (message.sum(0) - message)
        q = np.exp(-(energy - energy.min(0)))
        q /= q.sum(0)
    return torch.from_numpy(q).reshape(logits.shape)


def scene(height: int = 20, width: int = 24, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Draws coloured bands with camera noise (3, H, W), and logits of their classes with much more (K, H, W)."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.arange(width) * num_classes // width).expand(height, width)
    colours = torch.tensor([[60, 90, 120], [100, 110, 70], [150, 80, 60]])[truth].permute(2, 0, 1)
    image = (colours + 2 * torch.randn(3, height, width, generator=generator)).clamp(0, 255).to(torch.uint8)
    logits = F.one_hot(truth, num_classes).permute(2, 0, 1) * 1.5
    return image, logits + torch.randn(num_classes, height, width, generator=generator)


SIGMAS: dict[str, Any] = {"sigma_alpha": 67.0, "sigma_beta": 3.0, "sigma_gamma": 3.0}


@pytest.mark.parametrize("weights", [(4.0, 3.0), (1.0, 0.0), (0.0, 3.0), (1.0, 1.0)])
def test_it_agrees_with_all_pairs(weights: tuple[float, float]) -> None:
    image, logits = scene()
    appearance, smoothness = all_pairs(image, **SIGMAS)
    expected = brute_force(logits, [(weights[0], appearance), (weights[1], smoothness)], 10)
    found = DenseCRF(w1=weights[0], w2=weights[1], **SIGMAS)(image[None], logits[None])[0]
    # The lattice's kernel is off by some percent, which ten updates amplify near a tie. Without it, the only errors
    # are the smoothness kernel's cutoff at 4 deviations and the rounding of float32.
    assert float((found - expected).abs().mean()) < (0.01 if weights[0] else 1e-4)
    assert float((found.argmax(0) == expected.argmax(0)).double().mean()) >= (0.99 if weights[0] else 1)


def test_exact_filters_give_exact_results() -> None:
    image, logits = scene(9, 11)
    logits = logits.double()
    kernels = [(4.0, k) for k in all_pairs(image, sigma_alpha=20.0, sigma_beta=10.0, sigma_gamma=2.0)]
    filters: list[tuple[float, Filter]] = [(w, torch.from_numpy(k).__matmul__) for w, k in kernels]
    found = mean_field(logits.flatten(1).t(), filters, iterations=7)
    expected = brute_force(logits, kernels, 7)
    assert torch.allclose(found.t().reshape(expected.shape), expected, rtol=0, atol=1e-12)


def test_the_smoothness_filter_is_a_gaussian() -> None:
    image, _ = scene(13, 17)
    _, kernel = all_pairs(image, **SIGMAS)
    values = torch.rand(13 * 17, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(kernel) @ values
    # The cutoff is at 4 deviations, where the kernel is 0.0003 of its peak.
    assert torch.allclose(smoothness_filter((13, 17), 3.0)(values), expected, rtol=1e-3)


def test_equal_logits_of_a_constant_image_stay_equal() -> None:
    image = torch.full((1, 3, 11, 13), 90, dtype=torch.uint8)
    assert torch.allclose(DenseCRF()(image, torch.zeros(1, 4, 11, 13)), torch.full((1, 4, 11, 13), 0.25))


def test_zero_weights_change_nothing() -> None:
    image, logits = scene()
    assert torch.allclose(DenseCRF(w1=0, w2=0)(image[None], logits[None]), logits.softmax(0)[None], atol=1e-6)


def test_labels_are_repaired_along_the_colour_edge() -> None:
    height, width, edge = 32, 40, 17
    truth = (torch.arange(width) >= edge).long().expand(height, width)
    image = torch.where(truth == 1, 180, 60).to(torch.uint8).expand(3, -1, -1)
    predicted = (torch.arange(width) >= edge + 3).long().expand(height, width)  # three pixels late
    is_wrong = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.2
    logits = F.one_hot(torch.where(is_wrong, 1 - predicted, predicted), 2).permute(2, 0, 1).float()
    assert float((logits.argmax(0) == truth).float().mean()) < 0.8
    assert torch.equal(DenseCRF()(image[None], logits[None])[0].argmax(0), truth)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (13, 5)])
def test_any_size_works(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
    probs = DenseCRF()(images, torch.randn(2, 5, *size, generator=generator))
    assert probs.shape == (2, 5, *size)
    assert torch.allclose(probs.sum(1), torch.ones(2, *size), atol=1e-5)


def test_images_of_a_batch_are_independent() -> None:
    (image, logits), other = scene(), scene()[0].flip(2)
    batch = DenseCRF()(torch.stack([image, other]), torch.stack([logits, logits]))
    assert torch.equal(batch[0], DenseCRF()(image[None], logits[None])[0])


def test_inputs_are_not_changed_and_extreme_logits_give_finite_results() -> None:
    image, logits = scene(9, 11)
    logits = logits * 1e4
    before = logits.clone()
    assert DenseCRF()(image[None], logits[None]).isfinite().all()
    assert torch.equal(logits, before)


def test_autocast_does_not_change_it() -> None:
    image, logits = scene()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = DenseCRF()(image[None], logits[None].bfloat16())
    assert torch.equal(mixed, DenseCRF()(image[None], logits[None].bfloat16().float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w1": -1.0}, "w1 must be 0 or more, got -1.0"),
        ({"w2": float("nan")}, "w2 must be 0 or more, got nan"),
        ({"sigma_alpha": 0.0}, "sigma_alpha must be positive, got 0.0"),
        ({"sigma_beta": -3.0}, "sigma_beta must be positive, got -3.0"),
        ({"sigma_gamma": float("inf")}, "sigma_gamma must be positive, got inf"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_invalid_parameters_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRF(**arguments)


def test_inputs_that_do_not_fit_are_refused() -> None:
    image, logits = scene()
    with pytest.raises(ValueError, match="the CRF needs images .* of uint8"):
        DenseCRF()(image[None].float(), logits[None])
    with pytest.raises(ValueError, match="differ in number or size: resize the logits first"):
        DenseCRF()(image[None], logits[None, :, ::2])
