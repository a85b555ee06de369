"""Turn logits into labels, in all commands by the same function."""

from collections.abc import Callable
from typing import Any

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
    labels = images.new_empty(len(images), *size)
    for image, own in zip(images.split(1), labels, strict=True):
        for top, left, values in net.blocks(image, compute):
            own[top : top + values.shape[1], left : left + values.shape[2]] = values.argmax(dim=0)
    return labels
