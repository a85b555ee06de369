"""Compute depthwise convolutions and their gradients from the cases for which oneDNN has fast CPU kernels.

oneDNN computes a depthwise convolution of any dilation quickly while its padding is small, but the gradient of its
weights only for kernels of 3x3 without dilation; all other cases take a path that is up to 50 times slower. They are
reduced to the fast ones:

- A convolution of dilation d is a convolution without dilation on each of the d x d maps that hold every d-th pixel
  ("space to batch"; Chen et al., DeepLab v2, arXiv:1606.00915, section 3.1).
- The gradient with respect to the input is a convolution with the mirrored kernel.
- The gradient with respect to a 5x5 or 7x7 kernel consists of the gradients of its 3x3 parts, each on a shifted map.
- If the dilation is close to the size of the map, each kernel position reaches few pixels, and its gradient is the sum
  of their products.

Maps are (B, C, H, W), fastest in channels-last memory, and weights are (C, 1, k, k') of the same dtype.
"""

from collections.abc import Iterable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_lightning.kernels.taps import shifted_slices

Pair = tuple[int, int]
"""Values for rows and columns."""
_MAX_FAST_KERNEL = 3  # the largest kernel whose gradient oneDNN computes fast
_MAX_FAST_PADDING = 6  # pixels; with more, oneDNN takes its slow path


def convolve(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Convolve each channel with its own kernel, without bias.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k').
        stride: Step between output pixels, in input pixels.
        padding: Zeros on each side, in pixels.
        dilation: Distance of the kernel positions, in pixels.

    Returns:
        (B, C, H', W'), the result of `torch.nn.functional.conv2d`.
    """
    if not is_faster_by_space_to_batch(stride, padding, dilation):
        return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))
    size = output_size(x, weight, padding, dilation)
    y = F.conv2d(space_to_batch(x, dilation), weight, None, 1, _reduced_padding(padding, dilation), 1, len(weight))
    return batch_to_space(y, dilation, size)


def is_faster_by_space_to_batch(stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Check whether a convolution is faster after `space_to_batch`: by 2 to 30 times, as measured."""
    is_slow = dilation != (1, 1) and max(padding) > _MAX_FAST_PADDING
    return is_slow and _allows_space_to_batch(stride, padding, dilation)


def output_size(x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Pair:
    """Compute (H', W') of a convolution of stride 1; the arguments are those of `convolve`."""
    sides = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return _pair(length + 2 * p - d * (k - 1) for length, k, p, d in sides)


def input_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Compute the gradient of a depthwise convolution with respect to its input.

    Args:
        grad_output: Gradient with respect to the output, (B, C, H', W').
        x: Input, (B, C, H, W); only its size and dtype are used.
        weight: (C, 1, k, k').
        stride: Step between output pixels, in input pixels.
        padding: Zeros on each side, in pixels.
        dilation: Distance of the kernel positions, in pixels.

    Returns:
        (B, C, H, W).
    """
    mirrored_padding = _pair(d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True))
    is_strided = stride != (1, 1)
    # A convolution cannot have negative padding; in float32, oneDNN's own gradient is faster at larger strides.
    if min(mirrored_padding) < 0 or (is_strided and x.dtype == torch.float32):
        grad_input, _ = stock_gradients(grad_output, x, weight, stride, padding, dilation, needed=(True, False))
        assert grad_input is not None
        return grad_input
    if is_strided:
        grad_output = _insert_zeros(grad_output, stride, output_size(x, weight, padding, dilation))
    return convolve(grad_output, weight.flip(2, 3), (1, 1), mirrored_padding, dilation)


def weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Compute the gradient of a depthwise convolution with respect to its weights.

    The arguments are those of `input_gradient`.

    Returns:
        (C, 1, k, k'), in float32 where PyTorch's own gradient is used.
    """
    if x.shape[3] == 1 and stride[1] > 1 and x.dtype != torch.float32:  # see `stock_gradients`
        return _stock_weight_gradient(grad_output, x, weight, stride, padding, dilation)
    if dilation != (1, 1):
        is_near_map_size = any(2 * d >= side for d, side in zip(dilation, x.shape[2:], strict=True))
        if is_near_map_size and stride == (1, 1):
            return _weight_gradient_by_position(grad_output, x, weight, padding, dilation)
        if not _allows_space_to_batch(stride, padding, dilation):
            return _stock_weight_gradient(grad_output, x, weight, stride, padding, dilation)
        grad_output, x = space_to_batch(grad_output, dilation), space_to_batch(x, dilation)
        padding = _reduced_padding(padding, dilation)
    if max(weight.shape[2:]) <= _MAX_FAST_KERNEL:
        return _fast_weight_gradient(grad_output, x, weight, stride, padding)
    return _weight_gradient_by_parts(grad_output, x, weight, stride, padding)


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
    """Compute PyTorch's own gradients, in float32 if the input is in half precision.

    In bfloat16 and channels-last memory, the weight gradient of PyTorch 2.14 reads uninitialised memory if the
    convolution is dilated, or has a stride along maps of one pixel: the result is wrong or nan, depending on what the
    memory holds. With both dilation and stride, it was seen to be wrong in float32 too in this memory order.

    Args:
        grad_output: See `input_gradient`, as the next five.
        x: Input.
        weight: Kernels.
        stride: Step between output pixels.
        padding: Zeros on each side.
        dilation: Distance of the kernel positions.
        needed: Whether the gradients with respect to the input and to the weights are computed.

    Returns:
        The gradient with respect to the input in its dtype, and that to the weights in float32 or finer; None for
        those that are not needed.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    tensors = [grad_output.to(dtype), x.to(dtype), weight.to(dtype)]
    if dilation != (1, 1) and stride != (1, 1):
        tensors = [tensor.contiguous() for tensor in tensors]
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        *tensors, None, stride, padding, dilation, False, (0, 0), len(weight), (*needed, False)
    )
    return None if grad_input is None else grad_input.to(x.dtype), grad_weight


def space_to_batch(x: Tensor, dilation: Pair) -> Tensor:
    """Split each map into maps of every d-th pixel, padded with zeros to equal size.

    Args:
        x: (B, C, H, W).
        dilation: d for rows, d' for columns.

    Returns:
        (B * d * d', C, ceil(H / d), ceil(W / d')) in channels-last memory.
    """
    (rows, columns), (height, width) = dilation, x.shape[2:]
    if height % rows or width % columns:
        x = F.pad(x, (0, -width % columns, 0, -height % rows))
    pixels = x.permute(0, 2, 3, 1).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # (B, h, d, w, d', C)
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def batch_to_space(x: Tensor, dilation: Pair, size: Pair) -> Tensor:
    """Join the maps that `space_to_batch` split, and crop them to a size.

    Args:
        x: (B * d * d', C, h, w).
        dilation: d for rows, d' for columns.
        size: (H, W).

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    pixels = x.permute(0, 2, 3, 1).unflatten(0, (-1, *dilation)).permute(0, 3, 1, 4, 2, 5)  # (B, h, d, w, d', C)
    whole = pixels.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
    return whole.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _allows_space_to_batch(stride: Pair, padding: Pair, dilation: Pair) -> bool:
    return stride == (1, 1) and all(p % d == 0 for p, d in zip(padding, dilation, strict=True))


def _reduced_padding(padding: Pair, dilation: Pair) -> Pair:
    """Return the padding of the maps that `space_to_batch` makes."""
    return padding[0] // dilation[0], padding[1] // dilation[1]


def _insert_zeros(grad_output: Tensor, stride: Pair, size: Pair) -> Tensor:
    """Spread the pixels of a strided output over the output of the same convolution at stride 1, of `size`."""
    shape = (*grad_output.shape[:2], *size)
    spread = torch.empty(*shape, dtype=grad_output.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = grad_output
    return spread


def _stock_weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    _, grad_weight = stock_gradients(grad_output, x, weight, stride, padding, dilation, needed=(False, True))
    assert grad_weight is not None
    return grad_weight


def _fast_weight_gradient(grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Compute oneDNN's weight gradient of a kernel of at most 3x3 without dilation."""
    geometry = (stride, padding, (1, 1), False, (0, 0), len(weight))
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output, x, weight, None, *geometry, (False, True, False)
    )
    return grad_weight


def _weight_gradient_by_parts(grad_output: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Compute the weight gradient of a larger kernel from those of its parts of at most 3x3."""
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
        grad_weight[:, :, rows, columns] = _fast_weight_gradient(grad_output, window, part.contiguous(), stride, (0, 0))
    return grad_weight


def _parts(length: int) -> list[slice]:
    """Split [0, length) into slices of at most 3, of which the last two may overlap."""
    part = _MAX_FAST_KERNEL
    starts = {*range(0, length - part + 1, part), max(0, length - part)}
    return [slice(start, min(start + part, length)) for start in sorted(starts)]


def _weight_gradient_by_position(
    grad_output: Tensor, x: Tensor, weight: Tensor, padding: Pair, dilation: Pair
) -> Tensor:
    """Compute the weight gradient of each kernel position as a sum of products, at stride 1."""
    grad_weight = torch.zeros_like(weight)
    for row, column in product(range(weight.shape[2]), range(weight.shape[3])):
        (rows_in, rows_out), (columns_in, columns_out) = (
            shifted_slices(x.shape[2 + axis], grad_output.shape[2 + axis], index * dilation[axis] - padding[axis])
            for axis, index in enumerate((row, column))
        )
        products = x[:, :, rows_in, columns_in] * grad_output[:, :, rows_out, columns_out]
        grad_weight[:, 0, row, column] = products.sum((0, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return grad_weight


def _pair(values: Iterable[int]) -> Pair:
    first, second = values
    return first, second
