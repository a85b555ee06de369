"""Compute convolutions of large dilation as nine matrix products, on CPUs with a matrix unit (AMX)."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_MIN_CHANNELS, _MIN_DILATION = 1024, 6
_CPU = torch.device("cpu")


class TapConv2d(nn.Conv2d):
    """Compute a 3x3 convolution of stride 1 as a matrix product per kernel position, in bfloat16 on a CPU.

    Each product multiplies the pixels that a kernel position reaches with its weights. The sums are those of
    `torch.nn.Conv2d`, rounded once more per position. In other precisions, on other devices and where the products are
    not faster, the layer is `torch.nn.Conv2d`.

    Args:
        in_channels: C.
        out_channels: O.
        dilation: Distance of the kernel positions in pixels, and the padding.
        bias: Whether the layer has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)
        # Not in `forward`, where torch.compile would trace the query.
        self.is_faster_by_taps = is_faster_by_taps(_CPU, torch.bfloat16, channels=in_channels, dilation=dilation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_mixed = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_mixed else input.dtype
        if not (self.is_faster_by_taps and dtype == torch.bfloat16 and input.device.type == "cpu"):
            return super()._conv_forward(input, weight, bias)
        y = convolve_by_taps(input.to(dtype), weight.to(dtype), self.dilation[0])
        return y if bias is None else y + bias.to(dtype)[:, None, None]


def use_tap_convolutions(net: nn.Module) -> None:
    """Replace the convolutions that are faster on a matrix unit by `TapConv2d`, in place.

    Names and parameters stay as they are. On processors without a matrix unit nothing is replaced.
    """
    for name, layer in list(net.named_modules()):
        if name and type(layer) is nn.Conv2d and _is_replaceable(layer):
            with torch.device("meta"):  # draws no random numbers
                new = TapConv2d(
                    layer.in_channels, layer.out_channels, dilation=layer.dilation[0], bias=layer.bias is not None
                )
            new.weight, new.bias = layer.weight, layer.bias
            net.set_submodule(name, new.train(layer.training))


def _is_replaceable(layer: nn.Conv2d) -> bool:
    rate = layer.dilation[0]
    is_atrous_3x3 = layer.kernel_size == (3, 3) and layer.dilation == layer.padding == (rate, rate)
    is_plain = layer.stride == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (is_atrous_3x3 and is_plain):
        return False
    return is_faster_by_taps(_CPU, torch.bfloat16, channels=layer.in_channels, dilation=rate)


def is_faster_by_taps(device: torch.device, dtype: torch.dtype, *, channels: int, dilation: int) -> bool:
    """Check whether matrix products are faster than PyTorch's own kernel, which misses the matrix unit.

    Measured with PyTorch 2.14 on a CPU with AMX, 48x48 maps, 2048 to 256 channels, bfloat16: 119 to 389 ms for rates 6
    to 36, where the products take 25 to 8 ms; at rates 1 and 2, or with 512 channels, PyTorch's kernel is as fast.
    Without a matrix unit PyTorch's kernel was faster at every rate. On a GPU nothing was measured.

    Args:
        device: Device of the map.
        dtype: Precision of the arithmetic.
        channels: C.
        dilation: Distance of the kernel positions in pixels.
    """
    is_bfloat16_on_cpu = device.type == "cpu" and dtype == torch.bfloat16
    return is_bfloat16_on_cpu and channels >= _MIN_CHANNELS and dilation >= _MIN_DILATION and _has_matrix_unit()


@cache
def _has_matrix_unit() -> bool:
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # a private name, which may be removed
    return bool(is_supported is not None and is_supported())


def convolve_by_taps(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Convolve with a 3x3 kernel at stride 1, without bias and with a padding that equals the dilation.

    Args:
        x: (B, C, H, W), fastest in channels-last memory.
        weight: (O, C, 3, 3) of the same dtype.
        dilation: Distance of the kernel positions in pixels.

    Returns:
        (B, O, H, W) in channels-last memory; the sum over kernel positions is in float32 or finer.
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
        for (row, column), in_window, out_window in _windows(x, dilation):
            y[out_window] += _pixel_product(pixels[in_window], weight[:, :, row, column].t())
        return y.to(x.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        grad_output = grad_outputs[0].permute(0, 2, 3, 1)  # (B, H, W, O)
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = pixels.new_zeros(pixels.shape, dtype=_sum_dtype(x.dtype))
            for (row, column), in_window, out_window in _windows(x, ctx.dilation):
                grad_input[in_window] += _pixel_product(grad_output[out_window], weight[:, :, row, column])
            grad_input = grad_input.to(x.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            for (row, column), in_window, out_window in _windows(x, ctx.dilation):
                outputs, inputs = grad_output[out_window].flatten(0, 2), pixels[in_window].flatten(0, 2)
                grad_weight[:, :, row, column] = outputs.t() @ inputs
        return grad_input, grad_weight, None


def _pixel_product(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Multiply (B, h, w, C) pixels by a (C, O) matrix as one product over all pixels.

    In prediction, `pixels @ matrix` on a window of a map is a batch of small products: with AMX 71 ms instead of 8, at
    2x42x42x2048.
    """
    return (pixels.reshape(-1, pixels.shape[-1]) @ matrix).view(*pixels.shape[:-1], -1)


_Window = tuple[slice, slice, slice]


def _windows(x: Tensor, dilation: int) -> Iterator[tuple[tuple[int, int], _Window, _Window]]:
    """Yield each kernel position that reaches the map, with the windows that it reads and adds to."""
    rows, columns = ([shifted_slices(length, length, (i - 1) * dilation) for i in range(3)] for length in x.shape[-2:])
    for i, (rows_in, rows_out) in enumerate(rows):
        for j, (columns_in, columns_out) in enumerate(columns):
            if rows_in.start < rows_in.stop and columns_in.start < columns_in.stop:
                batch = slice(None)
                yield (i, j), (batch, rows_in, columns_in), (batch, rows_out, columns_out)


def shifted_slices(in_length: int, out_length: int, shift: int) -> tuple[slice, slice]:
    """Return the slices of an axis that a kernel position reads and writes; empty if it reaches no pixel.

    Args:
        in_length: Length of the map that is read, in pixels.
        out_length: Length of the map that is written, in pixels.
        shift: Position of the pixel that is read less that of the pixel that is written.
    """
    start = max(0, -shift)
    stop = max(start, min(out_length, in_length - shift))
    return slice(start + shift, stop + shift), slice(start, stop)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
