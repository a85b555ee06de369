"""Depthwise convolutions and their gradients, composed of those that oneDNN has fast kernels for on a CPU.

oneDNN computes a depthwise convolution of any dilation quickly while its padding is small, but the gradient of its
weights only for kernels of 3x3 without dilation; the rest goes a path that is up to 50 times slower. All of it can
be had from the fast ones:

- A convolution of dilation d is one without dilation on each of the d x d maps that hold every d-th pixel
  (Chen et al., DeepLab v2, arXiv:1606.00915, section 3.1; "space to batch").
- The gradient by the input is a convolution with the mirrored kernel.
- The gradient by a kernel of 5x5 or 7x7 is that by its 3x3 parts, each on a shifted map.
- Where the dilation nears the map's size, few pixels meet a tap: a product and a sum for each.

Maps are (B, C, H, W), fastest in channels-last memory, weights (C, 1, kernel height, kernel width), of one dtype.
"""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.kernels.taps import shifted_slices

Pair = tuple[int, int]
"""Along rows and columns."""
_LARGEST_FAST_KERNEL = 3  # of which oneDNN computes the gradient quickly
_MAX_PADDING = 6  # pixels; above it oneDNN takes its slow path


def convolve(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """A depthwise convolution without bias, as `torch.nn.functional.conv2d` gives it.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k').
        stride: Of the output's pixels.
        padding: Zeros on each side.
        dilation: Distance of the taps.

    Returns:
        (B, C, H', W').
    """
    if not goes_by_phases(stride, padding, dilation):
        return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))
    size = output_size(x, weight, padding, dilation)
    y = F.conv2d(space_to_batch(x, dilation), weight, None, 1, divided(padding, dilation), 1, len(weight))
    return batch_to_space(y, dilation, size)


def goes_by_phases(stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether such a convolution is faster on every d-th pixel at a time: as measured, by 2 to 30 times."""
    return dilation != (1, 1) and max(padding) > _MAX_PADDING and _is_divisible(stride, padding, dilation)


def output_size(x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Pair:
    """(H', W') of a convolution of stride 1; arguments as of `convolve`."""
    sides = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return _pair(length + 2 * p - d * (k - 1) for length, k, p, d in sides)


def input_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of a depthwise convolution by its input.

    Args:
        grad_output: Gradient by the output, (B, C, H', W').
        x: Input, (B, C, H, W), of which the size is needed.
        weight: (C, 1, k, k').
        stride: Of the output's pixels.
        padding: Zeros on each side.
        dilation: Distance of the taps.

    Returns:
        (B, C, H, W).
    """
    mirrored = _pair(d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True))
    is_strided = stride != (1, 1)
    # A convolution cannot leave out pixels of its input; in float32 oneDNN's own is the faster one at larger strides.
    if min(mirrored) < 0 or (is_strided and x.dtype == torch.float32):
        grad_input, _ = stock_gradients(grad_output, x, weight, stride, padding, dilation, needed=(True, False))
        assert grad_input is not None
        return grad_input
    if is_strided:  # zeros where the stride passed
        size = output_size(x, weight, padding, dilation)
        spread = torch.empty(
            *grad_output.shape[:2], *size, dtype=grad_output.dtype, memory_format=torch.channels_last
        ).zero_()
        spread[:, :, :: stride[0], :: stride[1]] = grad_output
        grad_output = spread
    return convolve(grad_output, weight.flip(2, 3), (1, 1), mirrored, dilation)


def weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of a depthwise convolution by its weights; arguments as of `input_gradient`.

    Returns:
        (C, 1, k, k'), in float32 where PyTorch's own is taken.
    """
    if x.shape[3] == 1 and stride[1] > 1 and x.dtype != torch.float32:  # see `stock_gradients`
        return _stock_weight_gradient(grad_output, x, weight, stride, padding, dilation)
    if dilation != (1, 1):
        if any(2 * d >= side for d, side in zip(dilation, x.shape[2:], strict=True)) and stride == (1, 1):
            return _by_taps(grad_output, x, weight, padding, dilation)
        if not _is_divisible(stride, padding, dilation):
            return _stock_weight_gradient(grad_output, x, weight, stride, padding, dilation)
        grad_output, x, padding = (
            space_to_batch(grad_output, dilation),
            space_to_batch(x, dilation),
            divided(padding, dilation),
        )
    if max(weight.shape[2:]) <= _LARGEST_FAST_KERNEL:
        return _by_small_weight(grad_output, x, weight, stride, padding)
    return _by_parts(grad_output, x, weight, stride, padding)


def stock_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    *,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's own gradients by input and weights, computed in float32 for inputs in half precision.

    In bfloat16 and channels-last memory, PyTorch 2.14's gradient by the weights reads memory that nobody wrote if
    there is dilation, or a stride along maps of one pixel: it is wrong, or nan, by what happens to lie there. With
    dilation and stride together it was seen to be wrong in float32 too, in this memory order.

    Returns:
        The gradient by the input in the input's dtype, that by the weights in float32 or finer.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    tensors = [grad_output.to(dtype), x.to(dtype), weight.to(dtype)]
    if dilation != (1, 1) and stride != (1, 1):
        tensors = [tensor.contiguous() for tensor in tensors]
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        *tensors, None, stride, padding, dilation, False, (0, 0), len(weight), (*needed, False)
    )
    return None if grad_input is None else grad_input.to(x.dtype), grad_weight


def divided(padding: Pair, dilation: Pair) -> Pair:
    """The padding of a convolution that takes every d-th pixel at a time."""
    return padding[0] // dilation[0], padding[1] // dilation[1]


def _stock_weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    _, grad_weight = stock_gradients(grad_output, x, weight, stride, padding, dilation, needed=(False, True))
    assert grad_weight is not None
    return grad_weight


def space_to_batch(x: Tensor, dilation: Pair) -> Tensor:
    """Every d-th pixel as a map of its own, zeros where the last ones are too short.

    Args:
        x: (B, C, H, W).
        dilation: d along rows, d' along columns.

    Returns:
        (B * d * d', C, ceil(H / d), ceil(W / d')) in channels-last memory.
    """
    (rows, columns), (height, width) = dilation, x.shape[2:]
    if height % rows or width % columns:
        x = F.pad(x, (0, -width % columns, 0, -height % rows))
    pixels = x.permute(0, 2, 3, 1).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # (B, h, d, w, d', C)
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def batch_to_space(x: Tensor, dilation: Pair, size: Pair) -> Tensor:
    """What `space_to_batch` took apart, cut to its size.

    Args:
        x: (B * d * d', C, h, w).
        dilation: d along rows, d' along columns.
        size: (H, W).

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    pixels = x.permute(0, 2, 3, 1).unflatten(0, (-1, *dilation)).permute(0, 3, 1, 4, 2, 5)  # (B, h, d, w, d', C)
    whole = pixels.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
    return whole.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _by_small_weight(grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    geometry = (stride, padding, (1, 1), False, (0, 0), len(weight))
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output, x, weight, None, *geometry, (False, True, False)
    )
    return grad_weight  # type: ignore[no-any-return]


def _by_parts(grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Of a larger kernel: its parts of at most 3x3."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    grad_weight = torch.empty_like(weight)
    for rows, columns in product(_parts(weight.shape[2]), _parts(weight.shape[3])):
        part = weight[:, :, rows, columns]
        height, width = (
            (length - 1) * step + side
            for length, step, side in zip(grad_output.shape[2:], stride, part.shape[2:], strict=True)
        )
        window = x[:, :, rows.start : rows.start + height, columns.start : columns.start + width]
        window = window.contiguous(memory_format=torch.channels_last)
        grad_weight[:, :, rows, columns] = _by_small_weight(grad_output, window, part.contiguous(), stride, (0, 0))
    return grad_weight


def _parts(length: int) -> list[slice]:
    """[0, length) in slices of at most 3, of which the last two may overlap."""
    part = _LARGEST_FAST_KERNEL
    starts = {*range(0, length - part + 1, part), max(0, length - part)}
    return [slice(start, min(start + part, length)) for start in sorted(starts)]


def _by_taps(grad_output: Tensor, x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Tensor:
    grad_weight = torch.zeros_like(weight)
    for row, column in product(range(weight.shape[2]), range(weight.shape[3])):
        (rows_in, rows_out), (columns_in, columns_out) = (
            shifted_slices(x.shape[2 + axis], grad_output.shape[2 + axis], tap * dilation[axis] - padding[axis])
            for axis, tap in enumerate((row, column))
        )
        products = x[:, :, rows_in, columns_in] * grad_output[:, :, rows_out, columns_out]
        grad_weight[:, 0, row, column] = products.sum((0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return grad_weight


def _is_divisible(stride: Pair, padding: Pair, dilation: Pair) -> bool:
    return stride == (1, 1) and all(p % d == 0 for p, d in zip(padding, dilation, strict=True))


def _pair(values: Iterator[int]) -> Pair:
    first, second = values
    return first, second
