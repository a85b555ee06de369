"""Convolutions for evaluation on a CPU: weights laid out once as oneDNN wants them, activations inside."""

import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from deeplab_lightning.models.atrous import AtrousConv2d, convolve_by_taps
from deeplab_lightning.models.followers import CONVOLUTIONS, Pair, followers

_KINDS = {*CONVOLUTIONS} - {Conv2dSame}  # which pads by the size of the map
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")
_Fused = tuple[str, list[float]]


def activations_to_fuse(net: nn.Module) -> list[Pair]:
    """Names of the convolutions and of the activations that they can apply themselves; see `followers`."""
    return followers(net, lambda module: _fused(module) is not None)


def pack_convolutions(net: nn.Module, activations: Sequence[Pair] | None = None) -> None:
    """Make the convolutions of a network `PackedConv2d`, and the activations after them a part of these, in place.

    Args:
        net: For evaluation on a CPU.
        activations: `activations_to_fuse(net)`, found now if None.
    """
    found = activations_to_fuse(net) if activations is None else activations
    after = {conv: name for conv, name in found if type(net.get_submodule(conv)) in _KINDS}
    for name, conv in list(net.named_modules()):
        if (
            isinstance(conv, nn.Conv2d)
            and type(conv) in _KINDS
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        ):
            activation = net.get_submodule(after[name]) if name in after else nn.Identity()
            net.set_submodule(name, PackedConv2d(conv, activation))
            if name in after:
                net.set_submodule(after[name], nn.Identity())


class PackedConv2d(nn.Conv2d):
    """A convolution and its activation in one pass, without gradients.

    PyTorch's own convolution casts its weights for mixed precision and lays them out anew in every call. Where
    oneDNN cannot serve, and where gradients are wanted, it is the convolution and the activation themselves.

    Args:
        conv: The convolution, of whose weights it takes what they are at the first call.
        activation: What follows it.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        geometry: dict[str, Any] = {key: getattr(conv, key) for key in _GEOMETRY}
        super().__init__(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta", **geometry)
        self.weight, self.bias, self.activation = conv.weight, conv.bias, activation
        self._plain = (conv,)  # in a tuple: its weights are here already
        self._packed: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, H, W) -> (B, O, H', W')."""
        (conv,), fused = self._plain, _fused(self.activation)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if fused is None or torch.is_grad_enabled() or not can_pack(input.device, dtype):
            return self.activation(conv(input))  # type: ignore[no-any-return]
        has_taps = isinstance(conv, AtrousConv2d) and conv.takes_taps(input.device, dtype)
        if dtype not in self._packed:
            self._packed[dtype] = self._pack(dtype, input.shape, has_taps=has_taps)
        weight, bias = self._packed[dtype]
        if has_taps:
            y = convolve_by_taps(input.to(dtype), weight, self.dilation[0])
            return self.activation(y if bias is None else y + bias[:, None, None])  # type: ignore[no-any-return]
        shape = (list(conv.padding), list(self.stride), list(self.dilation), self.groups)
        return torch.ops.mkldnn._convolution_pointwise(input.to(dtype), weight, bias, *shape, *fused, "")  # type: ignore[no-any-return]

    def _pack(self, dtype: torch.dtype, size: Sequence[int], *, has_taps: bool) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weight.detach().to(dtype), None if self.bias is None else self.bias.detach().to(dtype)
        if not has_taps:
            arguments: tuple[Any, ...] = (self.padding, self.stride, self.dilation, self.groups, list(size))
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *arguments)
        return weight, bias


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has such convolutions with a packed weight. On processors other than x86 nothing was measured."""
    return device.type == "cpu" and dtype in _packable_dtypes()


@cache
def _packable_dtypes() -> frozenset[torch.dtype]:
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if not is_there or platform.machine().lower() not in {"x86_64", "amd64"}:
        return frozenset()
    has_half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_half else {torch.float32})


def _fused(activation: nn.Module) -> _Fused | None:
    """oneDNN's name and arguments of an activation; None where it has none."""
    if isinstance(activation, nn.Hardtanh):  # ReLU6 too
        return "hardtanh", [activation.min_val, activation.max_val]
    names: dict[type[nn.Module], str] = {
        nn.Identity: "none", nn.ReLU: "relu", nn.SiLU: "swish", nn.Hardswish: "hardswish"
    }  # fmt: skip
    name = names.get(type(activation))
    return None if name is None else (name, [])
