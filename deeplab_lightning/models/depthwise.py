"""Dilated depthwise convolutions whose gradients are right in bfloat16 on a CPU.

There, in channels-last memory, PyTorch 2.14's kernel for the gradient of their weights reads memory that nobody
wrote: the gradient is wrong, or nan, by what happens to lie there. Every EfficientNet or MobileNet at output
stride 8 or 16 has such layers, and so do separable ASPPs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn


class AtrousDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution at stride 1 that takes the gradient of its weights in float32 where bfloat16 is wrong.

    Everywhere else, and in the forward pass, it is `torch.nn.Conv2d` itself.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu":
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
            if dtype in (torch.bfloat16, torch.float16):
                # A cast of its own, for autograd; the weights are cast inside.
                y: Tensor = _DepthwiseConv.apply(input.to(dtype), weight, self.padding, self.dilation)
                return y if bias is None else y + bias.to(dtype)[:, None, None]
        return super()._conv_forward(input, weight, bias)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight.to(x.dtype), None, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        geometry = (None, (1, 1), ctx.padding, ctx.dilation, False, (0, 0), len(weight))
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = torch.ops.aten.convolution_backward(
                gradient, x, weight.to(x.dtype), *geometry, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            by_weight = torch.ops.aten.convolution_backward(
                gradient.float(), x.float(), weight.float(), *geometry, (False, True, False)
            )[1].to(weight.dtype)
        return by_input, by_weight, None, None


def mend_depthwise(net: nn.Module) -> None:
    """Make every dilated depthwise convolution of stride 1 an `AtrousDepthwiseConv2d`, in place.

    Names, parameters and outputs stay as they are.
    """
    for name, layer in list(net.named_modules()):
        if type(layer) in (nn.Conv2d, Conv2dSame) and _is_dilated_depthwise(layer):
            net.set_submodule(name, _mended(layer))


def _is_dilated_depthwise(layer: nn.Conv2d) -> bool:
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
    is_odd = all(side % 2 for side in layer.kernel_size)
    return (
        is_depthwise and is_odd and max(layer.dilation) > 1 and layer.stride == (1, 1) and layer.padding_mode == "zeros"
    )


def _mended(layer: nn.Conv2d) -> AtrousDepthwiseConv2d:
    # TensorFlow's padding is the same on both sides at stride 1.
    is_same = isinstance(layer, Conv2dSame) or layer.padding == "same"
    kept = [d * (side // 2) for d, side in zip(layer.dilation, layer.kernel_size, strict=True)]
    new = AtrousDepthwiseConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        padding=tuple(kept) if is_same else layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
        device="meta",  # draws no random numbers
    )
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)
