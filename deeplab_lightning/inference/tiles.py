"""Predict large images tile by tile, in memory that the tile bounds and not the image."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from numbers import Integral  # also NumPy's
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.inference import Ensemble
from deeplab_lightning.models.deeplab import DeepLab

_GRID = 32  # pixels; tiles start on multiples of it, so that their features lie where those of the whole image do
_SMALLEST = 2 * _GRID
_OVERLAP_SHARE = 8  # size over overlap where none is given
_SIGMA_SHARE = 8  # size of a tile over the deviation of its weights, as in nnU-Net
ComputeTile = Callable[[Tensor], Tensor]
"""Function of a tile (1, C, h, w) uint8 that returns values (1, V, h, w), such as probabilities."""


class Block(NamedTuple):
    """Hold the values of a part of an image.

    Attributes:
        top: Its first row in the image.
        left: Its first column.
        values: (V, h, w) float.
    """

    top: int
    left: int
    values: Tensor


class Tiles(NamedTuple):
    """Hold the size of square tiles and the overlap of neighbours.

    Attributes:
        size: Height and width in pixels, a multiple of 32.
        overlap: Least number of rows or columns that neighbours share.
    """

    size: int
    overlap: int

    @classmethod
    def parse(cls, size: int | None, overlap: int | None = None) -> "Tiles | None":
        """Check the options `--tile` and `--overlap`; None if images are to be predicted as a whole.

        Args:
            size: Height and width of the tiles in pixels.
            overlap: In pixels; an eighth of the size if None.

        Raises:
            ValueError: If the size is not a multiple of 32 from 64, the overlap is negative or more than half the size,
                one of them is no whole number, or there is an overlap without a size.
        """
        if size is None:
            if overlap is not None:
                raise UserError(f"--overlap needs the size of the tiles, such as --tile 1024; got --overlap {overlap}.")
            return None
        if not isinstance(size, Integral) or size < _SMALLEST or size % _GRID:
            raise UserError(f"--tile must be a multiple of {_GRID} from {_SMALLEST} pixels, got {size!r}.")
        chosen = size // _OVERLAP_SHARE if overlap is None else overlap
        if not isinstance(chosen, Integral) or not 0 <= chosen <= size // 2:
            raise UserError(f"--overlap must be from 0 to half of --tile, {size // 2} pixels, got {chosen!r}.")
        return cls(int(size), int(chosen))

    def __str__(self) -> str:
        return f"tiles of {self.size} pixels that overlap by {self.overlap}"


class _Span(NamedTuple):
    """Hold the rows or the columns of tiles: [start, stop), of which those from `shared` on lie in later tiles too.

    Attributes:
        weights: (stop - start,) float; those of all tiles on a pixel add up to 1.
    """

    start: int
    stop: int
    shared: int
    weights: Tensor


def blend(compute: ComputeTile, image: Tensor, tiles: Tiles) -> Iterator[Block]:
    """Compute the weighted mean of the values of the tiles on each pixel of an image.

    Tiles lie in rows and columns. The weights fall off from a tile's centre like a Gaussian of an eighth of its size,
    as in nnU-Net (Isensee et al. 2021), since a network sees most around the centre. What is kept between tiles are the
    columns that the next tile shares, and the rows that the next row of tiles shares.

    Args:
        compute: Computes the values of a tile.
        image: (1, C, H, W) uint8.
        tiles: Size and overlap. A tile is smaller where the image is, and by up to 31 pixels at its end.

    Yields:
        Parts that cover each pixel once, in the order of the tiles.
    """
    rows, columns = (_spans(length, tiles, image.device) for length in image.shape[-2:])
    above: Tensor | None = None  # (V, rows shared with the tiles above, W), weighted sums
    for row in rows:
        below: Tensor | None = None
        left: Tensor | None = None  # (V, h, columns shared with the tile before)
        for column in columns:
            tile = image[..., row.start : row.stop, column.start : column.stop]
            values = compute(tile)[0].float() * row.weights[:, None] * column.weights  # (V, h, w)
            if left is not None:
                values[..., : left.shape[-1]] += left
            own = column.shared - column.start
            left, values = values[..., own:].clone(), values[..., :own]
            if above is not None:
                values[:, : above.shape[1]] += above[..., column.start : column.shared]
            own = row.shared - row.start
            if below is None:
                below = values.new_empty(len(values), row.stop - row.shared, image.shape[-1])
            below[..., column.start : column.shared] = values[:, own:]
            yield Block(row.start, column.start, values[:, :own])
        above = below


def _spans(length: int, tiles: Tiles, device: torch.device) -> list[_Span]:
    """Place tiles along an axis of an image.

    The last tile ends with the image, and starts on the grid like the others.
    """
    room = length - tiles.size
    stride = (tiles.size - tiles.overlap) // _GRID * _GRID
    starts = [*range(0, room, stride), -(-room // _GRID) * _GRID] if room > 0 else [0]
    stops = [min(start + tiles.size, length) for start in starts]
    total = torch.zeros(length, dtype=torch.float64)
    for start, stop in zip(starts, stops, strict=True):
        total[start:stop] += _gaussian(stop - start)
    shared = [later for _, later in pairwise(starts)] + [length]
    return [
        _Span(start, stop, end, (_gaussian(stop - start) / total[start:stop]).float().to(device))
        for start, stop, end in zip(starts, stops, shared, strict=True)
    ]


def _gaussian(length: int) -> Tensor:
    """Compute the weights (length,) of the pixels of a tile along one axis, before they are normalised."""
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (length / _SIGMA_SHARE)) ** 2)


class Tiled(nn.Module):
    """Average the probabilities of a network over the overlapping tiles of an image.

    It stands in for the network in evaluation, as an `Ensemble` does: its output is the logarithm of the weighted mean.
    An image that is no larger than a tile has the network's own output. In a larger one, a pixel has the same output
    as in the whole image if it is farther from the ends of its tiles than the network sees, and the image's height and
    width are multiples of the output stride. The image pooling of DeepLab v3 and v3+ sees the whole input, so there the
    mean is that of the tile instead of the image, and the outputs of the same pixel differ.

    Args:
        net: Network or ensemble. Images are to be shrunk to its evaluation size before they are cut into tiles.
        tiles: Size and overlap.
    """

    def __init__(self, net: DeepLab | Ensemble, tiles: Tiles) -> None:
        super().__init__()
        self.net, self.tiles = net, tiles
        self.preprocess, self.num_classes, self.in_channels = net.preprocess, net.num_classes, net.in_channels
        self.class_names, self.palette = net.class_names, net.palette

    def is_whole(self, images: Tensor) -> bool:
        """Check whether images (..., H, W) are no larger than a tile."""
        return max(images.shape[-2:]) <= self.tiles.size

    def probabilities(self, tile: Tensor) -> Tensor:
        """Compute the probabilities (1, K, h, w) of a tile (1, C, h, w) uint8."""
        logits: Tensor = self.net(tile)
        return logits.float().softmax(dim=1)

    def blocks(self, image: Tensor, compute: ComputeTile | None = None) -> Iterator[Block]:
        """Compute the mean probabilities of an image part by part, see `blend`.

        Args:
            image: (1, C, H, W) uint8.
            compute: Computes the probabilities of a tile; those of the network if None.
        """
        return blend(compute or self.probabilities, image, self.tiles)

    def assembled(self, images: Tensor, compute: ComputeTile | None = None) -> Tensor:
        """Compute the logarithm of the mean probabilities (B, K, H, W) of images (B, C, H, W) uint8."""
        found = images.new_empty(len(images), self.num_classes, *images.shape[-2:], dtype=torch.float32)
        for image, own in zip(images.split(1), found, strict=True):
            for top, left, values in self.blocks(image, compute):
                own[:, top : top + values.shape[1], left : left + values.shape[2]] = values
        return found.clamp_min_(torch.finfo(found.dtype).tiny).log_()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the network's output for small images, else the logarithm of the mean probabilities (B, K, H, W)."""
        whole: Tensor = self.net(images) if self.is_whole(images) else self.assembled(images)
        return whole

    def describe(self) -> dict[str, Any]:
        """Return what is averaged, for a record."""
        own = self.net.describe() if isinstance(self.net, Ensemble) else {}
        return {**own, "tile": self.tiles.size, "overlap": self.tiles.overlap}
