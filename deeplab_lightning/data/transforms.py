"""Joint transforms of picture and mask, on uint8."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.images import DecodedImage, ImageSource, planar
from deeplab_lightning.errors import UserError

IMAGENET_MEAN_COLOR = (124, 116, 104)
_GREY = (0.2989, 0.587, 0.114)  # shares of red, green and blue in brightness (ITU-R BT.601)


class TrainTransforms:
    """Scale jitter, crop, horizontal flip and photometric jitter (no hue: it is slow and rarely helps).

    The window is chosen in the file and cut before it is resized, and a JPEG that is to be shown at half
    its size or less is decoded at that size, so that only pixels that are used are touched. Padding is
    added last and keeps its colour.

    Args:
        crop_size: Height and width of the crops in pixels, one number or two.
        scale_range: Smallest and largest scale factor of the file's resolution, drawn uniformly.
        flip_probability: Share of crops that are mirrored left to right.
        brightness: Factor drawn from [1 - brightness, 1 + brightness].
        contrast: As brightness.
        saturation: As brightness.
        fill: RGB colour in 0-255 where a crop reaches out of the picture: the ImageNet mean, which
            normalises to about zero. The mask is padded with the ignore index.

    Raises:
        ValueError: If a size or scale is not positive, the scales are not ordered, or a jitter is negative.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int] = 512,
        *,
        scale_range: tuple[float, float] = (0.5, 2.0),
        flip_probability: float = 0.5,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.3,
        fill: tuple[int, int, int] = IMAGENET_MEAN_COLOR,
    ) -> None:
        size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if min(size) < 1 or not 0 < scale_range[0] <= scale_range[1]:
            raise UserError(f"crop_size and scale_range must be positive and ordered, got {size}, {scale_range}.")
        if min(brightness, contrast, saturation) < 0:
            raise UserError(
                f"brightness, contrast and saturation must not be negative, got {brightness}, {contrast}, {saturation}."
            )
        self.crop_size, self.scale_range, self.flip_probability = size, scale_range, flip_probability
        self.jitter, self.fill = (brightness, contrast, saturation), fill

    def __call__(self, image: Tensor | ImageSource, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(3, h, w) uint8 or an undecoded picture, and (h, w) uint8 -> (3, H, W) and (H, W) uint8 of the crop size.

        Everything random is drawn from torch's global generator.
        """
        picture = image if isinstance(image, ImageSource) else DecodedImage(image)
        scale = _uniform(*self.scale_range)
        reduction = picture.reduction(scale)
        rows, columns = (
            _span(length, crop, scale, reduction) for length, crop in zip(picture.size, self.crop_size, strict=True)
        )
        is_flipped = _uniform(0, 1) < self.flip_probability
        factors = [_uniform(max(0.0, 1 - jitter), 1 + jitter) for jitter in self.jitter]
        window = picture.scratch_pixels(reduction)[..., rows.window, columns.window]
        resized = F.resize(window, [rows.size, columns.size], antialias=True)  # the window itself where sizes agree
        resized = adjust_colors(resized, *factors)
        labels = resize_mask(mask[..., rows.in_file, columns.in_file], (rows.size, columns.size))
        if is_flipped:
            resized, labels = resized.flip(-1), labels.flip(-1)
        return self._padded(resized, labels, rows.before, columns.before)

    def _padded(self, image: Tensor, mask: Tensor, above: int, left: int) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        if (height, width) == self.crop_size:
            return tv_tensors.Image(image), tv_tensors.Mask(mask)
        inside = (..., slice(above, above + height), slice(left, left + width))
        full_image = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, *self.crop_size)
        full_mask = torch.full(self.crop_size, IGNORE_INDEX, dtype=torch.uint8)
        full_image[inside], full_mask[inside] = image, mask
        return tv_tensors.Image(full_image), tv_tensors.Mask(full_mask)


class EvalTransforms:
    """Evaluation at the file's own resolution, or shrunk to a limit.

    Args:
        max_size: Pictures whose longer side exceeds this number of pixels are shrunk to it, their masks
            too, so the figures are those at that size. Predictions are still written at the picture's
            own size. If null, nothing is resized.
    """

    def __init__(self, max_size: int | None = None) -> None:
        if max_size is not None and max_size < 1:
            raise UserError(f"max_size must be a positive number of pixels, got {max_size}.")
        self.max_size = max_size

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(3, h, w) and (h, w) uint8 -> the same, at most `max_size` pixels long."""
        longest = max(image.shape[-2:])
        if self.max_size is None or longest <= self.max_size:
            return image, mask
        size = [max(1, round(side * self.max_size / longest)) for side in image.shape[-2:]]
        return F.resize(image, size, antialias=True), None if mask is None else resize_mask(mask, size)


def resize_mask(mask: Tensor, size: Sequence[int]) -> tv_tensors.Mask:
    """Each new pixel takes the label under its centre, so that mask and picture stay aligned.

    torchvision resizes masks with `nearest`, which takes the pixel's corner instead.
    """
    rows, columns = (_centres(length, new) for length, new in zip(mask.shape, size, strict=True))
    return tv_tensors.Mask(torch.from_numpy(mask.as_subclass(Tensor).numpy().take(rows, axis=0).take(columns, axis=1)))


def adjust_colors(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Change brightness, contrast and saturation in one go.

    Saturation mixes each pixel with its grey, contrast mixes it with the mean grey of the picture,
    brightness multiplies; apart from clamping the three commute, so their order needs no draw. They are
    clamped and rounded once at the end, where torchvision does it after each.

    Args:
        image: (3, H, W) uint8 RGB, in any memory order.
        brightness: Factor; 1 changes nothing, as of the next two.
        contrast: Factor.
        saturation: Factor.

    Returns:
        (3, H, W) uint8, contiguous, in memory of its own.
    """
    if brightness == contrast == saturation == 1:
        return planar(image, is_copied=True)
    colors, grey, short = _scratch(image.shape)
    ordered = short.view(-1).view(torch.uint8)[: image.numel()].view(image.shape)  # until `short` is written
    np.copyto(ordered.numpy(), image.as_subclass(Tensor).numpy())  # quicker at another memory order than torch
    colors.copy_(ordered)
    torch.mul(colors[0], _GREY[0], out=grey)
    grey.add_(colors[1], alpha=_GREY[1]).add_(colors[2], alpha=_GREY[2])
    offset = brightness * (1 - contrast) * float(grey.mean()) + 0.5  # 0.5: converting cuts the fraction off
    grey.mul_(brightness * contrast * (1 - saturation)).add_(offset)
    colors.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 255)
    return short.copy_(colors).to(torch.uint8)  # by way of int16, 10 times as fast


_memory = threading.local()


def _scratch(shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for (3, H, W) float, (H, W) float and (3, H, W) int16, kept per thread.

    Where the system hands out new memory, its first use takes as long as the sums.
    """
    num_pixels = shape[-2] * shape[-1]
    kept: Tensor | None = getattr(_memory, "kept", None)
    if kept is None or len(kept) < 6 * num_pixels:
        kept = _memory.kept = torch.empty(6 * num_pixels)
    colors, grey, short = kept[: 6 * num_pixels].split([3 * num_pixels, num_pixels, 2 * num_pixels])
    return colors.view(*shape), grey.view(*shape[1:]), short.view(torch.int16)[: 3 * num_pixels].view(*shape)


class _Span(NamedTuple):
    """One axis of a crop: what is cut from the decoded picture and from the file, its new size, padding before it."""

    window: slice
    in_file: slice
    size: int
    before: int


def _span(length: int, crop: int, scale: float, reduction: int) -> _Span:
    decoded = -(-length // reduction)
    window = max(1, round(crop / (scale * reduction)))
    if window <= decoded:
        start, size, before = int(torch.randint(decoded - window + 1, ())), crop, 0
    else:
        start, window, size = 0, decoded, min(crop, max(1, round(length * scale)))
        before = int(torch.randint(crop - size + 1, ()))
    end = start + window
    return _Span(slice(start, end), slice(start * reduction, min(end * reduction, length)), size, before)


def _centres(length: int, size: int) -> npt.NDArray[np.int64]:
    """(size,) positions in an axis of `length` pixels that lie under the centres of `size` pixels."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
