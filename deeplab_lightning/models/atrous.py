"""Convolutions of large dilation as nine matrix products, for CPUs with a matrix unit."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_LEAST_CHANNELS, _LEAST_DILATION = 1024, 6


class AtrousConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the map's size; `torch.nn.Conv2d` but for how it is computed.

    Where `is_faster_by_taps`, each of the nine taps is one product of the pixels that it reaches with its weights,
    added at the pixels that it serves: the same sums, in bfloat16 rounded once more per tap.

    Args:
        in_channels: C.
        out_channels: O.
        dilation: Distance of the taps, and the padding.
        bias: Whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)

    def takes_taps(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it is computed by taps there, see `is_faster_by_taps`."""
        return is_faster_by_taps(device, dtype, channels=self.in_channels, dilation=self.dilation[0])

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_mixed = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_mixed else input.dtype
        if not self.takes_taps(input.device, dtype):
            return super()._conv_forward(input, weight, bias)
        y = convolve_by_taps(input.to(dtype), weight.to(dtype), self.dilation[0])
        return y if bias is None else y + bias.to(dtype)[:, None, None]


def is_faster_by_taps(device: torch.device, dtype: torch.dtype, *, channels: int, dilation: int) -> bool:
    """Whether PyTorch's own kernel misses the matrix unit for such a convolution.

    As measured with PyTorch 2.14 on a CPU with AMX, 48x48 maps, 2048 to 256 channels, bfloat16: 119 to 389 ms for
    rates of 6 to 36 where the taps take 25 to 8 ms; at rates of 1 and 2, or with 512 channels, its own kernel is
    as fast. Without a matrix unit it was the faster one at every rate. On a GPU nothing was measured.

    Args:
        device: Of the map.
        dtype: Of the arithmetic.
        channels: C.
        dilation: Distance of the taps.
    """
    is_half_on_cpu = device.type == "cpu" and dtype == torch.bfloat16
    return is_half_on_cpu and channels >= _LEAST_CHANNELS and dilation >= _LEAST_DILATION and _has_matrix_unit()


@cache
def _has_matrix_unit() -> bool:
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # a private name, that may go
    return bool(is_supported is not None and is_supported())


def convolve_by_taps(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """A 3x3 convolution with `dilation` and padding alike, stride 1, without bias.

    Args:
        x: (B, C, H, W), fastest in channels-last memory.
        weight: (O, C, 3, 3) of the same dtype.
        dilation: Distance of the taps in pixels.

    Returns:
        (B, O, H, W) in channels-last memory; sums over taps are in float32 or finer.
    """
    y: Tensor = _TapConvolution.apply(x, weight, dilation)
    return y


class _TapConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        y = pixels.new_zeros(*pixels.shape[:3], len(weight), dtype=_sum_dtype(x.dtype))
        for (row, column), reached, served in _taps(x, dilation):
            y[served] += pixels[reached] @ weight[:, :, row, column].t()
        return y.to(x.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        pixels, outer = x.permute(0, 2, 3, 1), gradients[0].permute(0, 2, 3, 1)  # (B, H, W, C), (B, H, W, O)
        by_pixels = by_weight = None
        if ctx.needs_input_grad[0]:
            by_pixels = pixels.new_zeros(pixels.shape, dtype=_sum_dtype(x.dtype))
            for (row, column), reached, served in _taps(x, ctx.dilation):
                by_pixels[reached] += outer[served] @ weight[:, :, row, column]
            by_pixels = by_pixels.to(x.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight)
            for (row, column), reached, served in _taps(x, ctx.dilation):
                by_weight[:, :, row, column] = outer[served].flatten(0, 2).t() @ pixels[reached].flatten(0, 2)
        return by_pixels, by_weight, None


_Window = tuple[slice, slice, slice]


def _taps(x: Tensor, dilation: int) -> Iterator[tuple[tuple[int, int], _Window, _Window]]:
    """Index of each tap that reaches the map, the pixels that it reads, and those that it adds to."""
    rows, columns = ([shifted(length, length, (i - 1) * dilation) for i in range(3)] for length in x.shape[-2:])
    for i, (rows_read, rows_served) in enumerate(rows):
        for j, (columns_read, columns_served) in enumerate(columns):
            if rows_read.start < rows_read.stop and columns_read.start < columns_read.stop:
                everywhere = slice(None)
                yield (i, j), (everywhere, rows_read, columns_read), (everywhere, rows_served, columns_served)


def shifted(length: int, served: int, shift: int) -> tuple[slice, slice]:
    """Where along an axis a tap reads, and where the pixels are that it serves; empty if it reaches none.

    Args:
        length: Of the map that is read.
        served: Length of the map that is written.
        shift: From a pixel that is written to the one that is read.
    """
    start = max(0, -shift)
    stop = max(start, min(served, length - shift))
    return slice(start + shift, stop + shift), slice(start, stop)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
