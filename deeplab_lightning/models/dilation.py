"""Dilate any convolutional network to a smaller output stride.

Strides are removed, and later convolutions and pools are dilated instead. No layer is known by name. The stride of a
layer's input, measured in the original network, gives the dilation with which the layer reads the samples that it was
trained on.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from deeplab_lightning.errors import UserError

DilationRule = Literal["torchvision", "smp"]
_PROBE_SIZE = 256  # pixels; a multiple of every stride
_Pool = nn.MaxPool2d | nn.AvgPool2d


@dataclass(frozen=True)
class _Strides:
    """Hold the input size over the map size, before and after a layer."""

    before: int
    after: int


def dilate(net: nn.Module, output_stride: int, *, rule: DilationRule = "torchvision") -> list[int]:
    """Remove strides beyond the output stride and dilate the layers after them, in place.

    Under the rule `torchvision` (and timm's), a layer whose input had stride t > s is dilated t / s times. A layer
    whose own stride is removed thus keeps the previous dilation. Each weight reads the samples of the original network,
    and the features equal the original ones where the sampling grids coincide. Under the rule `smp`
    (segmentation_models_pytorch, torchvision's MobileNetV3), a layer whose stride is removed is itself dilated.

    After an error, the network must not be used.

    Args:
        net: Network of images (1, 3, H, W) that returns a map or a list of maps, with convolutions and pools of odd or
            even size.
        output_stride: Largest stride s that remains, in input pixels per sample: 8, 16 or 32.
        rule: `torchvision` or `smp`.

    Returns:
        The input size over the map size, for each map.

    Raises:
        ValueError: If the rule is unknown, or the network reduces its maps by other means than strided convolutions and
            pools.
        RuntimeError: If the network fails on images of 256x256, or on odd sizes once it is dilated.
    """
    if rule not in get_args(DilationRule):
        raise UserError(f"dilation must be one of {', '.join(get_args(DilationRule))}, got {rule!r}.")
    strides, outputs = _measure(net)
    if outputs[-1] <= output_stride:
        return outputs
    for name, measured in strides.items():
        layer = net.get_submodule(name)
        before, after = measured.before, measured.after
        dilation = max(1, (before if rule == "torchvision" else after) // output_stride)
        dilation = dilation if _side(layer.kernel_size) > 1 else 1
        is_reduced = after > before and after > output_stride
        stride = max(1, min(after, output_stride) // before) if is_reduced else _side(layer.stride)
        if dilation == 1 and not is_reduced:
            continue
        new = _dilated(layer, dilation=dilation, stride=stride)
        if new is not layer:
            net.set_submodule(name, new)
    reached = _measure(net, height=_PROBE_SIZE + 1, width=_PROBE_SIZE - 1)[1]  # some networks fail on odd sizes
    if reached != [min(stride, output_stride) for stride in outputs]:
        raise UserError(f"its maps have strides {reached}, but {output_stride} should be the largest")
    return reached


def map_strides(net: nn.Module) -> list[int]:
    """Measure the input size over the map size, for each map."""
    return _measure(net)[1]


def map_channels(net: nn.Module) -> list[int]:
    """Measure the channels of each map."""
    probe = _probe(net)
    with torch.no_grad():
        return [x.shape[1] for x in probe(torch.empty(1, 3, _PROBE_SIZE, _PROBE_SIZE, device="meta"))]


def _measure(
    net: nn.Module, *, height: int = _PROBE_SIZE, width: int = _PROBE_SIZE
) -> tuple[dict[str, _Strides], list[int]]:
    """Measure the strides of the layers with kernel or stride above 1, and of the network's maps."""
    strides: dict[str, _Strides] = {}
    probe = _probe(net)
    for name, layer in probe.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and (
            _side(layer.kernel_size) > 1 or _side(layer.stride) > 1
        ):

            def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                strides[name] = _Strides(_stride(inputs[0]), _stride(output))

            layer.register_forward_hook(record)
    with torch.no_grad():
        maps = probe(torch.empty(1, 3, height, width, device="meta"))
    return strides, [_stride(x) for x in (maps if isinstance(maps, list | tuple) else [maps])]


def _probe(net: nn.Module) -> nn.Module:
    """Copy a network that computes shapes alone: without weights, and without norms, which shapes do not depend on."""
    tensors = [*net.parameters(), *net.buffers()]
    copies = {id(tensor): _shape_of(tensor) for tensor in tensors}
    probe = copy.deepcopy(net, copies).eval()
    for layer in probe.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # half of the time that all layers take
            layer.forward = nn.Identity().forward  # type: ignore[method-assign]
    return probe


def _shape_of(tensor: Tensor) -> Tensor:
    """Return a parameter or buffer of the same shape without memory."""
    shape = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


def _stride(x: Tensor) -> int:
    # Rounded to a power of two: layers without padding lose some samples at the border.
    return int(2 ** round(math.log2(_PROBE_SIZE / x.shape[-1])))


def _dilated(layer: nn.Module, *, dilation: int, stride: int) -> nn.Module:
    """Return the layer with `dilation` times its own dilation, or a new module if the layer cannot be changed."""
    layer = cast("nn.Conv2d | _Pool", layer)
    kernel, padding = _side(layer.kernel_size), layer.padding
    if isinstance(layer, nn.AvgPool2d):
        return AtrousAvgPool2d(kernel, dilation=dilation, counts_padding=layer.count_include_pad and padding != 0)
    own = _side(layer.dilation)
    is_centred = not isinstance(padding, str) and 2 * _side(padding) == own * (kernel - 1)
    if isinstance(layer, nn.Conv2d) and not isinstance(layer, Conv2dSame) and is_centred:
        layer.padding = (own * dilation * (kernel - 1) // 2,) * 2
    elif not isinstance(layer, Conv2dSame | MaxPool2dSame):
        layer = _with_same_padding(layer)
    layer.dilation, layer.stride = (own * dilation,) * 2, (stride,) * 2
    return layer


def _with_same_padding(layer: nn.Conv2d | nn.MaxPool2d) -> nn.Conv2d | nn.MaxPool2d:
    """Build a layer that pads as much as its dilated kernel needs to keep the map's size."""
    if isinstance(layer, nn.MaxPool2d):  # PyTorch's padding cannot exceed half the kernel
        return cast(nn.MaxPool2d, MaxPool2dSame(_side(layer.kernel_size), stride=1))
    new = Conv2dSame(
        layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, bias=layer.bias is not None
    )
    new.weight, new.bias = layer.weight, layer.bias
    return cast(nn.Conv2d, new)


class AtrousAvgPool2d(nn.Module):
    """Average over a dilated window at stride 1; the map keeps its size.

    Args:
        kernel_size: Samples along each side of the window.
        dilation: Distance between the samples, in samples of the map.
        counts_padding: Whether samples outside the map count, as zeros.
    """

    def __init__(self, kernel_size: int, *, dilation: int, counts_padding: bool) -> None:
        super().__init__()
        self.kernel_size, self.dilation, self.counts_padding = kernel_size, dilation, counts_padding

    def forward(self, x: Tensor) -> Tensor:
        """Average x (B, C, h, w) to (B, C, h, w)."""
        total = self._window_sum(x)
        if self.counts_padding:
            return total / self.kernel_size**2
        return total / self._window_sum(torch.ones_like(x[:1, :1]))

    def _window_sum(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        before = self.dilation * ((self.kernel_size - 1) // 2)  # even windows extend forward, as at stride 2
        after = self.dilation * (self.kernel_size - 1) - before
        padded = F.pad(x, (before, after, before, after))
        steps = [index * self.dilation for index in range(self.kernel_size)]
        shifted = [padded[..., top : top + height, left : left + width] for top in steps for left in steps]
        return torch.stack(shifted).sum(dim=0)


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)
