"""Convolutions for evaluation on a CPU: weights laid out once as oneDNN wants them, what follows them inside."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeplab_lightning.models.atrous import AtrousConv2d, convolve_by_taps
from deeplab_lightning.models.depthwise import DepthwiseConv2d
from deeplab_lightning.models.depthwise_kernels import (
    Sides,
    batch_to_space,
    divided,
    goes_by_phases,
    output_size,
    space_to_batch,
)
from deeplab_lightning.models.folding import applied_after
from deeplab_lightning.models.followers import CONVOLUTIONS, Pair, followers
from deeplab_lightning.models.onednn import has_onednn

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")
_EXACT = {"none", "relu", "hardtanh"}  # rounding before or after them is the same


def activations_to_fuse(net: nn.Module) -> list[Pair]:
    """Names of the convolutions and of the activations that they can apply themselves; see `followers`."""
    return followers(net, lambda module: _fused([module]) is not None)


def pack_convolutions(net: nn.Module, norms: Sequence[Pair] = (), activations: Sequence[Pair] = ()) -> None:
    """Make the convolutions of a network `PackedConv2d`, and what follows them a part of these, in place.

    Args:
        net: For evaluation on a CPU.
        norms: `norms_to_fold` of the network.
        activations: `activations_to_fuse` of the network with these norms folded.
    """
    norm_of, activation_of = dict(norms), dict(activations)
    for name, conv in list(net.named_modules()):
        if not isinstance(conv, nn.Conv2d) or not _is_packable(conv):
            continue
        names = dict.fromkeys(key for key in (norm_of.get(name), activation_of.get(name)) if key)  # timm's are one
        net.set_submodule(name, PackedConv2d(conv, [net.get_submodule(key) for key in names]))
        for key in names:
            net.set_submodule(key, nn.Identity())


class _Packed(NamedTuple):
    """What a convolution computes with in one precision.

    Attributes:
        weight: For oneDNN, or (O, C, 3, 3) for a convolution by taps.
        bias: (O,) or None.
        fused: oneDNN's name and arguments of the activation inside.
        after: What is applied after it.
        has_taps: Whether it is computed by taps.
    """

    weight: Tensor
    bias: Tensor | None
    fused: tuple[str, list[float]]
    after: Sequence[nn.Module]
    has_taps: bool


class PackedConv2d(nn.Conv2d):
    """A convolution and the norm and activation after it, without gradients.

    PyTorch's own convolution casts its weights for mixed precision and lays them out anew in every call. In single
    precision the norm is folded into the weights too, and the activation applied within. In bfloat16 folding would
    round other weights, and change one label in a hundred: there all layers do what they do. Where oneDNN cannot
    serve, and where gradients are wanted, they are the layers themselves.

    Args:
        conv: The convolution, of whose weights it takes what they are at the first call.
        after: What follows it, in evaluation mode.
    """

    def __init__(self, conv: nn.Conv2d, after: Sequence[nn.Module]) -> None:
        geometry: dict[str, Any] = {key: getattr(conv, key) for key in _GEOMETRY}
        super().__init__(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta", **geometry)
        self.weight, self.bias, self.after = conv.weight, conv.bias, nn.ModuleList(after)
        self._plain = (conv,)  # in a tuple: its weights are here already
        self._packed: dict[torch.dtype, _Packed] = {}
        stride, padding, dilation = geometry["stride"], geometry["padding"], geometry["dilation"]
        self._pads_itself = isinstance(conv, Conv2dSame)
        self._padding: Sides = padding
        self._phases: Sides | None = None
        """The dilation, where every d-th pixel is taken at a time."""
        if isinstance(conv, DepthwiseConv2d) and goes_by_phases(stride, padding, dilation):
            self._phases, padding, dilation = dilation, divided(padding, dilation), (1, 1)
        self._given = (stride, (0, 0) if self._pads_itself else padding, dilation)  # to oneDNN

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, H, W) -> (B, O, H', W')."""
        (conv,) = self._plain
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if torch.is_grad_enabled() or not has_onednn(input.device, dtype):
            return _applied(self.after, conv(input))
        x = input.to(dtype)
        if self._pads_itself:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        if self._phases is not None:
            x = space_to_batch(x, self._phases)
        if dtype not in self._packed:
            self._packed[dtype] = self._pack(dtype, x)
        packed = self._packed[dtype]
        if packed.has_taps:
            y = convolve_by_taps(x, packed.weight, self.dilation[0])
            y = y if packed.bias is None else y + packed.bias[:, None, None]
        else:
            stride, padding, dilation = self._given
            shape = (padding, stride, dilation, self.groups)
            arguments = (packed.weight, packed.bias, *shape, *packed.fused, "")
            y = torch.ops.mkldnn._convolution_pointwise(x, *arguments)
        if self._phases is not None:
            y = batch_to_space(y, self._phases, output_size(input, self.weight, self._padding, self._phases))
        return _applied(packed.after, y)

    def _pack(self, dtype: torch.dtype, x: Tensor) -> _Packed:
        conv, after, fused = self._plain[0], list(self.after), _fused(self.after)
        if dtype == torch.float32 and after and isinstance(after[0], nn.BatchNorm2d):
            conv = fuse_conv_bn_eval(conv, after[0])
            rest = [*applied_after(after[0]), *after[1:]]
            fused = _fused(rest)
            after = [] if fused is not None else rest  # an activation that oneDNN does not have
        elif fused is not None and (dtype == torch.float32 or fused[0] in _EXACT):
            after = []
        else:
            fused = None
        weight = conv.weight.detach().to(dtype)
        bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        has_taps = isinstance(self._plain[0], AtrousConv2d) and self._plain[0].takes_taps(x.device, dtype)
        if has_taps:
            return _Packed(weight, bias, ("none", []), list(self.after), has_taps)
        stride, padding, dilation = self._given
        arguments: tuple[Any, ...] = (padding, stride, dilation, conv.groups, list(x.shape))
        weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *arguments)
        return _Packed(weight, bias, fused or ("none", []), after, has_taps)


def _is_packable(conv: nn.Conv2d) -> bool:
    return type(conv) in CONVOLUTIONS and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _applied(modules: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _fused(after: Sequence[nn.Module] | nn.ModuleList) -> tuple[str, list[float]] | None:
    """oneDNN's name and arguments of an activation, of nothing too; None where it has none."""
    if len(after) != 1:
        return None if len(after) else ("none", [])
    [activation] = after
    if isinstance(activation, nn.Hardtanh):  # ReLU6 too
        return "hardtanh", [activation.min_val, activation.max_val]
    names: Mapping[type[nn.Module], str] = {
        nn.Identity: "none", nn.ReLU: "relu", nn.SiLU: "swish", nn.Hardswish: "hardswish"
    }  # fmt: skip
    name = names.get(type(activation))
    return None if name is None else (name, [])
