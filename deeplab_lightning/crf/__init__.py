"""Refine logits along the image's edges with the fully connected CRF of DeepLab v1 and v2."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.crf.permutohedral import PermutohedralLattice
from deeplab_lightning.errors import UserError

Filter = Callable[[Tensor], Tensor]
"""Function of values (N, K) that returns, for each pixel, the sum of kernel times value over all pixels."""
_CUTOFF = 4.0  # deviations at which the smoothness kernel, below 0.0004 there, is cut off


class DenseCRF(nn.Module):
    """Refine labels by mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun 2011).

    The unary term is -log softmax(logits). Every pair of pixels with different labels has the cost (DeepLab v2, section
    3.3, equation 3)

        w1 exp(-|p_i - p_j|^2 / 2 sigma_alpha^2 - |I_i - I_j|^2 / 2 sigma_beta^2)
        + w2 exp(-|p_i - p_j|^2 / 2 sigma_gamma^2)

    with positions p in pixels and colours I in 0-255. As in the authors' code, each kernel k is divided by
    sqrt(sum_j k_ij sum_i k_ij), so that the weights have the same effect at any size. w2, sigma_gamma and the number of
    iterations are those that the paper fixes (section 4.1). It finds w1, sigma_alpha and sigma_beta by
    cross-validation, w1 and sigma_beta in [3, 6] and sigma_alpha in [30, 100]; the defaults are in these ranges, and
    `deeplab tune-crf` finds the values for a model. The CRF has no weights and is not trained.

    Args:
        w1: Weight of the appearance kernel; 0 leaves it out.
        sigma_alpha: Deviation of the appearance kernel in position, in pixels.
        sigma_beta: Deviation of the appearance kernel in colour, in values of 0-255.
        w2: Weight of the smoothness kernel; 0 leaves it out.
        sigma_gamma: Deviation of the smoothness kernel, in pixels.
        iterations: Number of mean-field updates.

    Raises:
        ValueError: If a weight is negative, a deviation is not positive, or iterations is below 1.
    """

    def __init__(
        self,
        *,
        w1: float = 4.0,
        sigma_alpha: float = 67.0,
        sigma_beta: float = 3.0,
        w2: float = 3.0,
        sigma_gamma: float = 3.0,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        for name, weight in (("w1", w1), ("w2", w2)):
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"{name} must be 0 or more, got {weight}.")
        deviations = {"sigma_alpha": sigma_alpha, "sigma_beta": sigma_beta, "sigma_gamma": sigma_gamma}
        for name, deviation in deviations.items():
            if not (math.isfinite(deviation) and deviation > 0):
                raise UserError(f"{name} must be positive, got {deviation}.")
        if iterations < 1:
            raise UserError(f"iterations must be at least 1, got {iterations}; leave the CRF out instead.")
        self.w1, self.sigma_alpha, self.sigma_beta = w1, sigma_alpha, sigma_beta
        self.w2, self.sigma_gamma, self.iterations = w2, sigma_gamma, iterations

    @torch.no_grad()
    def forward(self, images: Tensor, logits: Tensor) -> Tensor:
        """Refine the logits of a batch, image by image.

        Args:
            images: (B, 3, H, W) uint8, RGB, any H and W.
            logits: (B, K, H, W) float, unnormalised.

        Returns:
            (B, K, H, W) probabilities, float64 for logits of float64, else float32.

        Raises:
            ValueError: If the images are not uint8, or differ in number or size from the logits.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"the CRF needs images (B, 3, H, W) of uint8, got {tuple(images.shape)} {images.dtype}.")
        if logits.ndim != 4 or (len(images), *images.shape[2:]) != (len(logits), *logits.shape[2:]):
            raise UserError(
                f"images {tuple(images.shape)} and logits {tuple(logits.shape)} differ in number or size: resize the "
                "logits first."
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        with torch.autocast(logits.device.type, enabled=False):
            refined = [self._refine(image, own_logits) for image, own_logits in zip(images, logits, strict=True)]
        return torch.stack(refined)

    def kernels(self, image: Tensor, dtype: torch.dtype = torch.float32) -> list[tuple[float, Filter]]:
        """Return weight and filter of each kernel of one image, without kernels of weight 0.

        Args:
            image: (3, H, W) uint8.
            dtype: Dtype of the values to filter.
        """
        kernels: list[tuple[float, Filter]] = []
        if self.w1 > 0:
            kernels.append((self.w1, appearance_filter(image, self.sigma_alpha, self.sigma_beta, dtype)))
        if self.w2 > 0:
            kernels.append((self.w2, smoothness_filter((image.shape[1], image.shape[2]), self.sigma_gamma)))
        return kernels

    def _refine(self, image: Tensor, logits: Tensor) -> Tensor:
        """Compute probabilities (K, H, W) from an image (3, H, W) and logits (K, H, W)."""
        pixels = logits.flatten(1).t()  # (N, K)
        refined = mean_field(pixels, self.kernels(image, logits.dtype), iterations=self.iterations)
        return refined.t().reshape(logits.shape)


def mean_field(logits: Tensor, kernels: Sequence[tuple[float, Filter]], *, iterations: int) -> Tensor:
    """Run mean-field updates with Potts compatibility (Kraehenbuehl and Koltun 2011, algorithm 1).

    As in the authors' code, a pixel's message to itself is not subtracted.

    Args:
        logits: (N, K) float, unnormalised.
        kernels: Weight and unnormalised filter of each kernel.
        iterations: Number of updates.

    Returns:
        (N, K) probabilities.
    """
    log_probs = logits.log_softmax(dim=1)
    normalized = []
    for weight, apply in kernels:
        sums = apply(logits.new_ones(len(logits), 1))  # (N, 1)
        normalized.append((weight, apply, sums.clamp(min=torch.finfo(sums.dtype).tiny).rsqrt()))
    probs = _softmax(log_probs)
    for _ in range(iterations):
        negative_energy = log_probs.clone()
        for weight, apply, root in normalized:
            negative_energy.addcmul_(apply(probs.mul(root)), root, value=weight)
        probs = _softmax(negative_energy)
    return probs


def appearance_filter(
    image: Tensor, sigma_alpha: float, sigma_beta: float, dtype: torch.dtype = torch.float32
) -> Filter:
    """Build the Gaussian filter of position and colour.

    Args:
        image: (3, H, W) uint8.
        sigma_alpha: Deviation in position, in pixels.
        sigma_beta: Deviation in colour, in values of 0-255.
        dtype: Dtype of the values to filter.
    """
    rows, columns = (torch.arange(n, device=image.device, dtype=dtype) / sigma_alpha for n in image.shape[1:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, H, W)
    return PermutohedralLattice(torch.cat([grid, image.to(dtype) / sigma_beta]).flatten(1).t())


def smoothness_filter(size: tuple[int, int], sigma_gamma: float) -> Filter:
    """Build the Gaussian filter of position, exact up to its cutoff at 4 deviations.

    Args:
        size: (H, W).
        sigma_gamma: Deviation, in pixels.
    """

    def apply(values: Tensor) -> Tensor:
        channels = values.shape[1]
        x = values.reshape(1, *size, channels).permute(0, 3, 1, 2)  # (1, K, H, W), channels last in memory
        for axis, length in enumerate(size):
            reach = min(math.ceil(_CUTOFF * sigma_gamma), length - 1)
            offsets = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
            kernel = torch.exp(-0.5 * (offsets / sigma_gamma) ** 2)
            shape, padding = ((-1, 1), (reach, 0)) if axis == 0 else ((1, -1), (0, reach))
            x = F.conv2d(x, kernel.reshape(1, 1, *shape).repeat(channels, 1, 1, 1), padding=padding, groups=channels)
        return x.permute(0, 2, 3, 1).reshape(-1, channels)

    return apply


def _softmax(logits: Tensor) -> Tensor:
    """Compute the softmax over K of (N, K); along the first axis it is several times faster."""
    return logits.t().contiguous().softmax(dim=0).t().contiguous()
