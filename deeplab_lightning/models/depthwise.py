"""Depthwise convolutions whose gradients are right, and quicker, in bfloat16 on a CPU.

There, in channels-last memory, PyTorch 2.14's kernel for the gradient of their weights reads memory that nobody
wrote if they are dilated: the gradient is wrong, or nan, by what happens to lie there. Every EfficientNet or
MobileNet at output stride 8 or 16 has such layers, and so do separable ASPPs. At stride 2 it is right, but takes
five times as long as in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

_Sides = Any  # two ints, which torch types as any number


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that takes its gradients in float32 where it computes in half precision on a CPU.

    Everywhere else, and in the forward pass, it is `torch.nn.Conv2d` itself.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = _half_dtype(input)
        if dtype is None:
            return super()._conv_forward(input, weight, bias)
        return _convolved(input.to(dtype), weight, bias, self.stride, self.padding, self.dilation)


class DepthwiseConv2dSame(Conv2dSame):  # type: ignore[misc]
    """The same with TensorFlow's padding, which depends on the size of the map at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        dtype = _half_dtype(x)
        if dtype is None:
            return super().forward(x)  # type: ignore[no-any-return]
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return _convolved(padded.to(dtype), self.weight, self.bias, self.stride, (0, 0), self.dilation)


def _half_dtype(input: Tensor) -> torch.dtype | None:
    """The half precision in which a convolution whose gradients are wanted would be computed on a CPU; None else."""
    if input.device.type != "cpu" or not torch.is_grad_enabled():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Sides, padding: _Sides, dilation: _Sides
) -> Tensor:
    y: Tensor = _DepthwiseConv.apply(x, weight, stride, padding, dilation)  # weights are cast inside
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: _Sides, padding: _Sides, dilation: _Sides) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(x, weight.to(x.dtype), None, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
        by_input, by_weight, _ = torch.ops.aten.convolution_backward(
            gradients[0].float(), x.float(), weight.float(), None, *ctx.geometry, False, (0, 0), len(weight), wanted
        )
        by_input = None if by_input is None else by_input.to(x.dtype)
        return by_input, None if by_weight is None else by_weight.to(weight.dtype), None, None, None


def mend_depthwise(net: nn.Module) -> None:
    """Make every depthwise convolution a `DepthwiseConv2d` or `DepthwiseConv2dSame`, in place.

    Names, parameters and outputs stay as they are.
    """
    for name, layer in list(net.named_modules()):
        if type(layer) in (nn.Conv2d, Conv2dSame) and _is_depthwise(layer):
            net.set_submodule(name, _mended(layer))


def _is_depthwise(layer: nn.Conv2d) -> bool:
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
    return is_depthwise and layer.padding_mode == "zeros" and (layer.padding != "same" or _is_centred(layer))


def _is_centred(layer: nn.Conv2d) -> bool:
    """Whether padding that keeps the map's size is the same on both sides, for maps of all sizes."""
    return layer.stride == (1, 1) and all(side % 2 for side in layer.kernel_size)


def _mended(layer: nn.Conv2d) -> nn.Conv2d:
    is_same = isinstance(layer, Conv2dSame) or layer.padding == "same"
    padding: _Sides = layer.padding
    if is_same and _is_centred(layer):
        padding = tuple(d * (side // 2) for d, side in zip(layer.dilation, layer.kernel_size, strict=True))
        is_same = False
    geometry: dict[str, Any] = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    with torch.device("meta"):  # draws no random numbers
        new: nn.Conv2d = (DepthwiseConv2dSame if is_same else DepthwiseConv2d)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            padding=0 if is_same else padding,
            bias=layer.bias is not None,
            **geometry,
        )
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)
