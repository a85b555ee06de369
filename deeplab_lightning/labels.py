"""Turn logits into labels, in all commands by the same function."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.inference.tiles import ComputeTile, Tiled
from deeplab_lightning.kernels import Door
from deeplab_lightning.models.preprocessing import image_batch
from deeplab_lightning.resizing import resize

Postprocess = nn.Module | Callable[..., Any]
"""(images (B, 3, H, W) uint8, logits (B, K, H, W)) -> labels (B, H, W) or probabilities (B, K, H, W)."""


def label_images(module: Any, images: Tensor, *, door: Door, postprocess: Postprocess | None = None) -> Tensor:
    """Find the class of each pixel of images: shrink, network, resize and postprocess.

    Args:
        module: A `SegmentationModule` in evaluation mode.
        images: (B, C, H, W) or (C, H, W) uint8, of any H and W; RGB if C is 3.
        door: See `find_labels`.
        postprocess: See `find_labels`.

    Returns:
        (B, H, W) or (H, W) uint8.

    Raises:
        ValueError: If the images have another shape or dtype.
    """
    size, preprocess = (images.shape[-2], images.shape[-1]), module.net.preprocess
    shrunk = preprocess.shrink(image_batch(images, module.net.in_channels).to(preprocess.mean.device))
    labels = find_labels(door.logits(module, shrunk), shrunk, size, door=door, postprocess=postprocess)
    return labels.reshape(*images.shape[:-3], *size)


def find_labels(
    logits: Tensor, images: Tensor, size: tuple[int, int], *, door: Door, postprocess: Postprocess | None = None
) -> Tensor:
    """Find the class of each pixel.

    Args:
        logits: (B, K, h, w) float, at the images' size or before the resize to it.
        images: (B, 3, H, W) uint8.
        size: Height and width of the labels, such as those of the image file.
        door: Resizes and compares the logits.
        postprocess: Function of the images and their logits at the images' size; the highest logit if None.

    Returns:
        (B, *size) uint8.

    Raises:
        ValueError: If `postprocess` returns neither labels nor probabilities.
    """
    image_size = (images.shape[-2], images.shape[-1])
    if postprocess is None:
        return door.labels(logits if size == image_size else resize(logits.float(), image_size), size)
    result = _postprocessed(images, resize(logits.float(), image_size), postprocess)
    if result.ndim == 4:
        return door.labels(result, size)
    return F.interpolate(result[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.uint8)


def _postprocessed(images: Tensor, logits: Tensor, postprocess: Postprocess) -> Tensor:
    """Return what a postprocess finds: probabilities (B, K, H, W) or labels (B, H, W).

    Raises:
        ValueError: If it returns neither.
    """
    result: Tensor = postprocess(images, logits)
    if result.ndim != (4 if result.is_floating_point() else 3):
        raise UserError(
            "postprocess must return integer labels (B, H, W) or probabilities (B, K, H, W), got "
            f"{tuple(result.shape)} {result.dtype}."
        )
    return result


def tile_function(net: Tiled, postprocess: Postprocess | None) -> ComputeTile:
    """Return the function that computes the probabilities of a tile, with the postprocess within the tile.

    A CRF over all pixels of a large image would take more memory than the tiles save. Labels of a postprocess count as
    probabilities of 0 and 1.
    """
    if postprocess is None:
        return net.probabilities

    def compute(tile: Tensor) -> Tensor:
        result = _postprocessed(tile, net.net(tile).float(), postprocess)
        return result if result.ndim == 4 else F.one_hot(result.long(), net.num_classes).movedim(-1, 1)

    return compute


def find_in_tiles(
    net: Tiled, images: Tensor, size: tuple[int, int], *, door: Door, postprocess: Postprocess | None = None
) -> Tensor:
    """Find the class of each pixel of images that are larger than a tile.

    At the images' own size, the probabilities of an image are never all in memory.

    Args:
        net: The network and its tiles.
        images: (B, C, H, W) uint8.
        size: Height and width of the labels, such as those of the image file.
        door: Resizes and compares the probabilities at another size.
        postprocess: See `find_labels`; used within each tile.

    Returns:
        (B, *size) uint8.
    """
    compute = tile_function(net, postprocess)
    if size != (images.shape[-2], images.shape[-1]):
        return find_labels(net.assembled(images, compute), images, size, door=door)
    return torch.stack([_in_tiles(net, image, compute, Wanted()).labels for image in images.split(1)])


class Wanted(NamedTuple):
    """Say what is wanted of an image besides its labels.

    Attributes:
        confidence: The probability of the most probable class of each pixel.
        probabilities: Type of the probabilities of all classes; None for none.
        temperature: Temperature of both. It changes no label.
    """

    confidence: bool = False
    probabilities: Literal["float16", "uint8"] | None = None
    temperature: float = 1.0


class Found:
    """Hold what was found in an image. Probabilities of uint8 are multiplied by 255 and rounded.

    Args:
        size: Height and width (H, W) in pixels.
        num_classes: Number of classes K.
        wanted: What is wanted besides the labels.
        device: Device of the tensors.

    Attributes:
        labels: (H, W) uint8.
        confidence: (H, W) uint8, or None.
        probabilities: (K, H, W) of the wanted type, or None.
    """

    def __init__(self, size: tuple[int, int], num_classes: int, wanted: Wanted, device: torch.device) -> None:
        self._temperature = wanted.temperature
        self.labels = torch.zeros(size, dtype=torch.uint8, device=device)
        self.confidence = torch.zeros_like(self.labels) if wanted.confidence else None
        self.probabilities: Tensor | None = None
        if wanted.probabilities is not None:
            kind = getattr(torch, wanted.probabilities)
            self.probabilities = torch.zeros(num_classes, *size, dtype=kind, device=device)

    def add(self, top: int, left: int, values: Tensor) -> None:
        """Add the probabilities (K, h, w) of the pixels from a row and a column on."""
        rows, columns = slice(top, top + values.shape[1]), slice(left, left + values.shape[2])
        highest, labels = values.max(dim=0)
        self.labels[rows, columns] = labels.to(torch.uint8)
        if self._temperature != 1:
            values = at_temperature(values, self._temperature)
            highest = values.amax(dim=0)
        if self.confidence is not None:
            self.confidence[rows, columns] = _eight_bits(highest)
        if self.probabilities is not None:
            is_short = self.probabilities.dtype == torch.uint8
            self.probabilities[:, rows, columns] = _eight_bits(values) if is_short else values.half()


def at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Compute the softmax of the log-probabilities (K, ...) divided by a temperature (Guo et al. 2017, section 4.2)."""
    logs = probabilities.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    return logs.div_(temperature).softmax(dim=0)


def _eight_bits(probabilities: Tensor) -> Tensor:
    return (probabilities * 255).round_().clamp_(0, 255).to(torch.uint8)


def find_image(
    net: nn.Module,
    logits: Tensor | None,
    image: Tensor,
    size: tuple[int, int],
    *,
    door: Door,
    postprocess: Postprocess | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008
) -> Found:
    """Find the labels of one image, and what else is wanted.

    Args:
        net: The network; a `Tiled` one if there are no logits.
        logits: (1, K, h, w) float; None for an image that is processed in tiles.
        image: (1, C, H, W) uint8.
        size: Height and width of the labels, such as those of the image file.
        door: See `find_labels`.
        postprocess: See `find_labels`.
        wanted: What is wanted besides the labels.
    """
    if logits is None:
        assert isinstance(net, Tiled)
        compute, postprocess = tile_function(net, postprocess), None
        if size == (image.shape[-2], image.shape[-1]):
            return _in_tiles(net, image, compute, wanted)
        logits = net.assembled(image, compute)
    found = Found(size, logits.shape[1], wanted, logits.device)
    if wanted != Wanted():
        found.add(0, 0, _probabilities(logits.float(), image, size, postprocess)[0])
    if wanted == Wanted() or postprocess is None:  # whose labels are those of the logits, where probabilities round
        found.labels = find_labels(logits, image, size, door=door, postprocess=postprocess)[0]
    return found


def _in_tiles(net: Tiled, image: Tensor, compute: ComputeTile, wanted: Wanted) -> Found:
    found = Found((image.shape[-2], image.shape[-1]), net.num_classes, wanted, image.device)
    for block in net.blocks(image, compute):
        found.add(*block)
    return found


def _probabilities(logits: Tensor, images: Tensor, size: tuple[int, int], postprocess: Postprocess | None) -> Tensor:
    """Compute the probabilities (B, K, *size) whose highest is the label that `find_labels` finds."""
    full = resize(logits, (images.shape[-2], images.shape[-1]))
    if postprocess is None:
        return resize(full, size).softmax(dim=1)
    result = _postprocessed(images, full, postprocess)
    if result.ndim == 4:
        return resize(result.float(), size)
    labels = F.interpolate(result[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    return F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
