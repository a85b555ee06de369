"""Joint transforms of picture and mask, on tv_tensors and uint8."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from deeplab_lightning.data.classes import IGNORE_INDEX

IMAGENET_MEAN_COLOR = (124, 116, 104)


class ScaleJitterCrop(v2.Transform):
    """Scale by a random factor and cut a random window of a fixed size, padded where it reaches out.

    The window is cut before it is resized: only pixels that are used are touched.

    Args:
        crop_size: (height, width) of the result in pixels.
        scale_range: Smallest and largest factor, drawn uniformly; 1 keeps the file's resolution.
        fill: RGB colour in 0-255 of padding; the mask is padded with the ignore index.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        fill: tuple[int, int, int] = IMAGENET_MEAN_COLOR,
    ) -> None:
        super().__init__()
        if min(crop_size) < 1 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"crop_size and scale_range must be positive and ordered, got {crop_size}, {scale_range}.")
        self.crop_size, self.scale_range, self.fill = crop_size, scale_range, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The window in file pixels, the size it is resized to, and the padding around it."""
        image_size = v2.query_size(flat_inputs)
        scale = float(torch.empty(()).uniform_(*self.scale_range))
        spans = [_span(length, crop, scale) for length, crop in zip(image_size, self.crop_size, strict=True)]
        (top, height, out_height, above), (left, width, out_width, before) = spans
        below, after = self.crop_size[0] - out_height - above, self.crop_size[1] - out_width - before
        return {
            "window": (top, left, height, width),
            "size": (out_height, out_width),
            "padding": [before, above, after, below],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut, resize (bilinear with antialiasing; masks by the nearest pixel) and pad one tensor."""
        if isinstance(inpt, tv_tensors.Mask):
            window = F.crop(inpt, *params["window"])
            resized = resize_mask(window, params["size"])
            return F.pad(resized, params["padding"], fill=IGNORE_INDEX)
        if isinstance(inpt, tv_tensors.Image):
            resized = F.resized_crop(inpt, *params["window"], size=list(params["size"]), antialias=True)
            return F.pad(resized, params["padding"], fill=list(self.fill))
        return inpt


class TrainTransforms:
    """Scale jitter, crop, horizontal flip and photometric jitter (no hue: it is slow and rarely helps).

    Args:
        crop_size: Height and width of the crops in pixels, one number or two.
        scale_range: Smallest and largest scale factor of the file's resolution.
        flip_probability: Share of crops that are mirrored left to right.
        brightness: Factor drawn from [1 - brightness, 1 + brightness].
        contrast: As brightness.
        saturation: As brightness.
        fill: RGB colour in 0-255 where a crop reaches out of the picture: the ImageNet mean, which
            normalises to about zero.
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
        size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self._transforms = v2.Compose(
            [
                ScaleJitterCrop(size, scale_range, fill),
                v2.RandomHorizontalFlip(flip_probability),
                v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation),
            ]
        )

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """(3, h, w) and (h, w) uint8 -> (3, H, W) and (H, W) uint8 of the crop size."""
        image, mask = self._transforms(image, mask)
        return image, mask


class EvalTransforms:
    """Evaluation at the file's own resolution, or shrunk to a limit.

    Args:
        max_size: Pictures whose longer side exceeds this number of pixels are shrunk to it, their masks
            too, so the figures are those at that size. Predictions are still written at the picture's
            own size. If null, nothing is resized.
    """

    def __init__(self, max_size: int | None = None) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size must be a positive number of pixels, got {max_size}.")
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
    plain = mask.as_subclass(Tensor)[None]
    return tv_tensors.Mask(F.resize_image(plain, list(size), interpolation=v2.InterpolationMode.NEAREST_EXACT)[0])


def _span(length: int, crop: int, scale: float) -> tuple[int, int, int, int]:
    """One axis: window start and length in file pixels, its length when resized, padding before it."""
    window = max(1, round(crop / scale))
    if window <= length:
        return int(torch.randint(length - window + 1, ())), window, crop, 0
    resized = min(crop, max(1, round(length * scale)))
    return 0, length, resized, int(torch.randint(crop - resized + 1, ()))
