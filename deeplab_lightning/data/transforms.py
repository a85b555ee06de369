"""Transform images and masks together, in uint8."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from deeplab_lightning.data.augmentations import augment
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.images import DecodedImage, ImageSource, planar
from deeplab_lightning.errors import UserError
from deeplab_lightning.resizing import shrink

IMAGENET_MEAN_COLOR = (124, 116, 104)
_MAX_TRIALS = 10  # of the place of a crop
_GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in the luminance (ITU-R BT.601)


class TrainTransforms:
    """Augment training images: scale jitter, random crop, horizontal flip and colour jitter.

    There is no hue jitter: it is slow and rarely helps. The crop window is chosen in the file and cut out
    before it is resized, and a JPEG that is resized to half its size or less is decoded at reduced size,
    so that only the pixels of the crop are processed. Padding is added last and keeps its colour.

    Args:
        crop_size: Height and width of the crops in pixels, one number or two.
        scale_range: Smallest and largest factor by which the file's image is resized, drawn uniformly.
        flip_probability: Probability of mirroring a crop left to right, in [0, 1].
        brightness: Largest relative change of the brightness: its factor is drawn uniformly from
            [1 - brightness, 1 + brightness], or from [0, 1 + brightness] above 1.
        contrast: Largest relative change of the contrast, as for brightness.
        saturation: Largest relative change of the saturation, as for brightness.
        fill: RGB colour in 0-255 where a crop extends beyond the image. The default is the ImageNet mean,
            which becomes about zero in normalisation. Images of other channels get its mean in each. Masks are padded
            with the ignore index.
        rare_class_probability: Probability that a crop is laid over a pixel of a class that is drawn among those of the
            image, a class with a share f of the training pixels with a weight of 1 / sqrt(f); in [0, 1].
        max_class_share: Largest share of a crop that one class should have: the place of a crop is drawn up to 10
            times until none has more (`cat_max_ratio` of mmsegmentation, often 0.75); 1 accepts every crop.
        augmentations: Transforms of the finished crop in their order, see `augment`: modules of
            `torchvision.transforms.v2`, or anything that takes `image=` and `mask=`, as albumentations does.

    Raises:
        ValueError: If a size or scale is not positive, the scales are not ordered, a jitter is negative, or a share or
            probability is outside its range.
    """

    class_pixels: npt.NDArray[np.int64] | None = None
    """(K,) pixels of the classes in the training images, which the data module sets for `rare_class_probability`."""

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
        rare_class_probability: float = 0.0,
        max_class_share: float = 1.0,
        augmentations: list[Callable[..., Any]] | None = None,
    ) -> None:
        jitter = (brightness, contrast, saturation)
        if any(not isinstance(value, int | float) for value in (*scale_range, flip_probability, *jitter)):
            raise UserError("scale_range, flip_probability, brightness, contrast and saturation must be numbers.")
        size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if min(size) < 1 or not 0 < scale_range[0] <= scale_range[1]:
            raise UserError(f"crop_size and scale_range must be positive and ordered, got {size}, {scale_range}.")
        if min(jitter) < 0:
            raise UserError(
                f"brightness, contrast and saturation must not be negative, got {brightness}, {contrast}, {saturation}."
            )
        if not 0 <= rare_class_probability <= 1 or not 0 < max_class_share <= 1:
            raise UserError(
                "rare_class_probability must be in [0, 1] and max_class_share in (0, 1], got "
                f"{rare_class_probability} and {max_class_share}."
            )
        self.crop_size, self.scale_range, self.flip_probability = size, scale_range, flip_probability
        self.rare_class_probability, self.max_class_share = rare_class_probability, max_class_share
        self.augmentations = augmentations or []
        self.jitter, self.fill = (brightness, contrast, saturation), fill

    def __call__(self, image: Tensor | ImageSource, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cut one augmented crop out of an image and its mask.

        All random numbers are drawn from torch's global generator.

        Args:
            image: (C, h, w) uint8, or an image that is not decoded yet.
            mask: (h, w) uint8 train ids.

        Returns:
            Image (C, H, W) and mask (H, W) in uint8, where (H, W) is the crop size.
        """
        source = image if isinstance(image, ImageSource) else DecodedImage(image)
        scale = _uniform(*self.scale_range)
        reduction = source.reduction(scale)
        rows, columns = self._place(source.size, mask, scale, reduction)
        is_flipped = _uniform(0, 1) < self.flip_probability
        factors = [_uniform(max(0.0, 1 - jitter), 1 + jitter) for jitter in self.jitter]
        window = source.pixels(reduction)[..., rows.window, columns.window]
        resized = F.resize(window, [rows.size, columns.size], antialias=True)  # the window itself at equal sizes
        resized = adjust_colors(resized, *factors)
        labels = resize_mask(mask[..., rows.in_file, columns.in_file], (rows.size, columns.size))
        if is_flipped:
            resized, labels = resized.flip(-1), labels.flip(-1)
        crop = self._padded(resized, labels, rows.before, columns.before)
        return augment(*crop, self.augmentations) if self.augmentations else crop

    def _place(
        self, size: tuple[int, int], mask: Tensor, scale: float, reduction: int
    ) -> "tuple[_CropAxis, _CropAxis]":
        """Draw the place of a crop in an image of a size, whose mask is (h, w)."""
        target: Sequence[int | None] = (None, None)
        if self.rare_class_probability > 0 and _uniform(0, 1) < self.rare_class_probability:
            target = self._rare_pixel(mask) or target
        for _ in range(_MAX_TRIALS):
            rows, columns = (
                _crop_axis(length, crop, scale, reduction, place)
                for length, crop, place in zip(size, self.crop_size, target, strict=True)
            )
            if self.max_class_share == 1 or _largest_share(mask[rows.in_file, columns.in_file]) <= self.max_class_share:
                break
        return rows, columns

    def _rare_pixel(self, mask: Tensor) -> tuple[int, int] | None:
        """Draw a pixel (row, column) of one of the classes in a mask, rare ones more often; None if all is ignored."""
        if self.class_pixels is None:
            raise UserError("rare_class_probability needs a SegmentationDataModule, which counts the classes.")
        labels = mask.as_subclass(Tensor).numpy()
        present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX])
        if not len(present):
            return None
        weights = 1 / np.sqrt(np.maximum(self.class_pixels[present], 1))
        chosen = int(torch.multinomial(torch.from_numpy(weights), 1))
        places = np.flatnonzero(labels.reshape(-1) == present[chosen])
        place = int(places[int(torch.randint(len(places), ()))])
        return place // labels.shape[1], place % labels.shape[1]

    def _padded(self, image: Tensor, mask: Tensor, above: int, left: int) -> tuple[Tensor, Tensor]:
        """Pad image and mask to the crop size, with `above` rows and `left` columns before them."""
        height, width = mask.shape
        if (height, width) == self.crop_size:
            return tv_tensors.Image(image), tv_tensors.Mask(mask)
        inside = (..., slice(above, above + height), slice(left, left + width))
        channels = len(image)
        fill = self.fill if channels == len(self.fill) else [round(sum(self.fill) / len(self.fill))] * channels
        full_image = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, *self.crop_size)
        full_mask = torch.full(self.crop_size, IGNORE_INDEX, dtype=torch.uint8)
        full_image[inside], full_mask[inside] = image, mask
        return tv_tensors.Image(full_image), tv_tensors.Mask(full_mask)


class EvalTransforms:
    """Evaluate at the file's own resolution, or limit the size of large images.

    Args:
        max_size: Images whose longer side exceeds this number of pixels are shrunk to it together with their
            masks, so the metrics are computed at that size. Predictions are still written at the image's
            own size. If null, nothing is resized.

    Raises:
        ValueError: If `max_size` is less than 1.
    """

    def __init__(self, max_size: int | None = None) -> None:
        if max_size is not None and max_size < 1:
            raise UserError(f"max_size must be a positive number of pixels or null, got {max_size}.")
        self.max_size = max_size

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Shrink an image (C, h, w) and its mask (h, w) until the longer side is at most `max_size` pixels."""
        small = shrink(image, self.max_size)
        if small is image or mask is None:
            return small, mask
        return small, resize_mask(mask, small.shape[-2:])


def resize_mask(mask: Tensor, size: Sequence[int]) -> tv_tensors.Mask:
    """Resize a mask so that each new pixel takes the label under its centre.

    This keeps mask and image aligned. torchvision resizes masks with `nearest`, which takes the label under
    the pixel's corner instead.

    Args:
        mask: (h, w) uint8 train ids.
        size: New (height, width) in pixels.
    """
    rows, columns = (_centres(length, new) for length, new in zip(mask.shape, size, strict=True))
    return tv_tensors.Mask(torch.from_numpy(mask.as_subclass(Tensor).numpy().take(rows, axis=0).take(columns, axis=1)))


def adjust_colors(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Change brightness, contrast and saturation in one pass.

    Saturation mixes each pixel with its grey value, contrast mixes it with the mean grey value of the image,
    and brightness multiplies it. Apart from clamping, the three commute, so no random order is needed.
    Values are clamped and rounded once at the end, where torchvision does so after each step. Of images that are not
    RGB the grey value is the mean of the channels, and they have no saturation.

    Args:
        image: (C, H, W) uint8, in any memory order.
        brightness: Factor; 1 changes nothing.
        contrast: Factor; 1 changes nothing.
        saturation: Factor; 1 changes nothing.

    Returns:
        (C, H, W) uint8, contiguous, in its own memory.
    """
    is_rgb = len(image) == 3
    saturation = saturation if is_rgb else 1.0
    if brightness == contrast == saturation == 1:
        return torch.from_numpy(np.array(image.numpy(), order="C"))
    colors = planar(image.as_subclass(Tensor)).float()
    if is_rgb:
        grey = torch.mul(colors[0], _GREY[0]).add_(colors[1], alpha=_GREY[1]).add_(colors[2], alpha=_GREY[2])
    else:
        grey = colors.mean(dim=0)
    offset = brightness * (1 - contrast) * float(grey.mean()) + 0.5  # 0.5: conversion to uint8 truncates
    grey.mul_(brightness * contrast * (1 - saturation)).add_(offset)
    colors.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 255)
    return colors.to(torch.uint8)


class _CropAxis(NamedTuple):
    """Describe one axis of a crop, in pixels.

    Attributes:
        window: Slice of the decoded image.
        in_file: The same slice at the file's full size, for the mask.
        size: Length after resizing.
        before: Padding before the resized slice.
    """

    window: slice
    in_file: slice
    size: int
    before: int


def _largest_share(labels: Tensor) -> float:
    """Return the share of the most frequent class among the pixels that are not ignored; 0 if all are."""
    counts = np.bincount(labels.as_subclass(Tensor).numpy().reshape(-1), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    return float(counts.max() / max(counts.sum(), 1))


def _crop_axis(length: int, crop: int, scale: float, reduction: int, target: int | None = None) -> _CropAxis:
    """Draw the position of a crop of `crop` pixels along an axis of `length`, over the pixel `target` if given."""
    decoded = -(-length // reduction)
    window = max(1, round(crop / (scale * reduction)))
    if window <= decoded:
        first, last = 0, decoded - window
        if target is not None:
            place = target // reduction
            first, last = max(first, place - window + 1), min(last, place)
        start, size, before = first + int(torch.randint(last - first + 1, ())), crop, 0
    else:
        start, window, size = 0, decoded, min(crop, max(1, round(length * scale)))
        before = int(torch.randint(crop - size + 1, ()))
    end = start + window
    return _CropAxis(slice(start, end), slice(start * reduction, min(end * reduction, length)), size, before)


def _centres(length: int, size: int) -> npt.NDArray[np.int64]:
    """Return the (size,) positions in an axis of `length` pixels under the centres of `size` equal parts."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
