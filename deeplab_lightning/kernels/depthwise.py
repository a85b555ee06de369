"""Replace depthwise convolutions by layers with fast and correct gradients on a CPU.

The arithmetic is in `depthwise_gradients`. EfficientNets, MobileNets and separable ASPPs consist of depthwise
convolutions, dilated ones at output stride 8 or 16.
"""

from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from deeplab_lightning.kernels.depthwise_gradients import (
    Pair,
    convolve,
    input_gradient,
    is_faster_by_space_to_batch,
    stock_gradients,
    weight_gradient,
)
from deeplab_lightning.kernels.support import fast_dtypes


class DepthwiseConv2d(nn.Conv2d):
    """Compute a depthwise `torch.nn.Conv2d` with the kernels of this package on a CPU.

    The arguments are those of `torch.nn.Conv2d`; there is one channel per group.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fast_dtypes = fast_dtypes()  # not in `forward`, where torch.compile would trace the query

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = _kernel_dtype(input, self.fast_dtypes)
        if dtype is None or _is_plain(self, self.padding):
            return super()._conv_forward(input, weight, bias)
        return _convolve(input.to(dtype), weight, bias, self, self.padding)


class DepthwiseConv2dSame(Conv2dSame):
    """Compute a depthwise `Conv2dSame` of timm with the kernels of this package on a CPU.

    Its padding is TensorFlow's, which at stride 2 depends on the size of the map. The arguments are those of timm's
    layer; there is one channel per group.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fast_dtypes = fast_dtypes()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        dtype = _kernel_dtype(x, self.fast_dtypes)
        if dtype is None or _is_plain(self, (0, 0)):
            return super().forward(x)
        padded = pad_same(x.to(dtype), self.kernel_size, self.stride, self.dilation)
        return _convolve(padded, self.weight, self.bias, self, (0, 0))


def use_depthwise_kernels(net: nn.Module) -> None:
    """Replace every depthwise convolution by a `DepthwiseConv2d` or `DepthwiseConv2dSame`, in place.

    Names and parameters stay as they are. On processors for which nothing was measured, only half precision differs
    from PyTorch.
    """
    for name, layer in list(net.named_modules()):
        if name and type(layer) in (nn.Conv2d, Conv2dSame) and _is_depthwise(layer):
            net.set_submodule(name, _with_kernels(layer))


def _is_depthwise(layer: nn.Conv2d) -> bool:
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
    return is_depthwise and layer.padding_mode == "zeros" and (layer.padding != "same" or _is_centred(layer))


def _is_centred(layer: nn.Conv2d) -> bool:
    """Check whether padding that keeps the map's size is equal on both sides, whatever the map's size."""
    return layer.stride == (1, 1) and all(side % 2 for side in layer.kernel_size)


def _with_kernels(layer: nn.Conv2d) -> nn.Conv2d:
    """Build the layer that replaces a depthwise convolution, with the same parameters."""
    is_same = isinstance(layer, Conv2dSame) or layer.padding == "same"
    padding: Any = (0, 0) if layer.padding == "valid" else layer.padding
    if is_same and _is_centred(layer):
        padding = tuple(d * (side // 2) for d, side in zip(layer.dilation, layer.kernel_size, strict=True))
        is_same = False
    with torch.device("meta"):  # draws no random numbers
        new: nn.Conv2d = (DepthwiseConv2dSame if is_same else DepthwiseConv2d)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=0 if is_same else padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
        )
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def _kernel_dtype(input: Tensor, fast_dtypes: tuple[torch.dtype, ...]) -> torch.dtype | None:
    """Return the precision in which a convolution is computed here; None leaves it to PyTorch."""
    is_traced = _is_exporting() or torch.jit.is_tracing()  # the program will run elsewhere
    if input.device.type != "cpu" or input.ndim != 4 or is_traced:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    is_half = dtype in (torch.bfloat16, torch.float16)  # PyTorch's gradients are wrong, see `stock_gradients`
    return dtype if is_half or dtype in fast_dtypes else None


def _is_plain(layer: Any, padding: Any) -> bool:
    """Check whether a layer computes what PyTorch's does: without gradients, and not by space to batch."""
    return not torch.is_grad_enabled() and not is_faster_by_space_to_batch(layer.stride, padding, layer.dilation)


def _is_exporting() -> bool:
    # PyTorch 2.6 cannot tell compiling from exporting.
    return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, padding: Any) -> Tensor:
    """Convolve x (B, C, H, W) in its own precision, with the stride and dilation of a layer of this module."""
    y: Tensor
    if torch.is_grad_enabled():
        is_fast = x.dtype in layer.fast_dtypes
        y = _DepthwiseConv.apply(x, weight, layer.stride, padding, layer.dilation, is_fast)
    else:
        y = convolve(x, weight.to(x.dtype), layer.stride, padding, layer.dilation)
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _DepthwiseConv(torch.autograd.Function):
    """Cast the weights to the input's precision, and convolve; `is_fast` says whether oneDNN is fast in it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, is_fast: bool) -> Tensor:
        return convolve(x, weight.to(x.dtype), stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.geometry, ctx.is_fast = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        arguments = (grad_outputs[0], x, weight.to(x.dtype), *ctx.geometry)
        if not ctx.is_fast:
            grad_input, grad_weight = stock_gradients(*arguments, needed=ctx.needs_input_grad[:2])
        else:
            grad_input = input_gradient(*arguments) if ctx.needs_input_grad[0] else None
            grad_weight = weight_gradient(*arguments) if ctx.needs_input_grad[1] else None
        return grad_input, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None
