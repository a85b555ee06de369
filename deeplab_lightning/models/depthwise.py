"""Depthwise convolutions that are quick, and train rightly, on a CPU: see `depthwise_kernels`.

Every EfficientNet and MobileNet is made of them, dilated ones at output stride 8 or 16, and so are separable ASPPs.
"""

from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from deeplab_lightning.models.depthwise_kernels import (
    Sides,
    convolve,
    gradient_by_input,
    gradient_by_weight,
    stock_gradients,
)
from deeplab_lightning.models.onednn import has_onednn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution; `torch.nn.Conv2d` but for how it is computed in single and half precision on a CPU."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = _own_dtype(input)
        if dtype is None:
            return super()._conv_forward(input, weight, bias)
        return _convolved(input.to(dtype), weight, bias, self, self.padding)


class DepthwiseConv2dSame(Conv2dSame):  # type: ignore[misc]
    """The same with TensorFlow's padding, which depends on the size of the map at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        dtype = _own_dtype(x)
        if dtype is None:
            return super().forward(x)  # type: ignore[no-any-return]
        padded = pad_same(x.to(dtype), self.kernel_size, self.stride, self.dilation)
        return _convolved(padded, self.weight, self.bias, self, (0, 0))


def _own_dtype(input: Tensor) -> torch.dtype | None:
    """The precision in which a convolution is computed here; None where it is left to PyTorch."""
    is_traced = _is_exporting() or torch.jit.is_tracing()  # to be run elsewhere
    if input.device.type != "cpu" or input.ndim != 4 or is_traced:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    is_half = dtype in (torch.bfloat16, torch.float16)  # whose gradients PyTorch has wrong, see `stock_gradients`
    return dtype if is_half or has_onednn(input.device, dtype) else None


def _is_exporting() -> bool:
    # Before PyTorch 2.7 compiling and exporting could not be told apart.
    return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, padding: Any) -> Tensor:
    y: Tensor = _DepthwiseConv.apply(x, weight, layer.stride, padding, layer.dilation)  # weights are cast inside
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: Sides, padding: Sides, dilation: Sides) -> Tensor:
        return convolve(x, weight.to(x.dtype), stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        arguments = (gradients[0], x, weight.to(x.dtype), *ctx.geometry)
        by_input = by_weight = None
        if not has_onednn(x.device, x.dtype):
            by_input, by_weight = stock_gradients(*arguments, wanted=ctx.needs_input_grad[:2])
        else:
            by_input = gradient_by_input(*arguments) if ctx.needs_input_grad[0] else None
            by_weight = gradient_by_weight(*arguments) if ctx.needs_input_grad[1] else None
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
    padding: Any = (0, 0) if layer.padding == "valid" else layer.padding
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
