"""Prepare networks so that `torch.export` can trace them once for all image sizes."""

import copy
from typing import cast

import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

_Window = nn.Conv2d | nn.MaxPool2d


def traceable(net: nn.Module) -> nn.Module:
    """Copy a network without steps that depend on the image size, with the same outputs.

    "Same" padding is a maximum that depends on the size, and a pool that rounds up decides by the size whether its last
    window counts. Both are replaced by a padding by a remainder, which is one formula for all sizes.

    Args:
        net: Network to copy; not changed.
    """
    net = copy.deepcopy(net)
    for name, layer in list(net.named_modules()):
        replacement = _replacement(layer)
        if replacement is not None:
            net.set_submodule(name, replacement)
    return net


def needs_formulas(net: nn.Module) -> bool:
    """Check whether a network can be traced only if the size of its input is a formula of the graph's input.

    A size that is known when the graph runs is enough for all layers but average pools that round up.
    """
    return any(isinstance(layer, nn.AvgPool2d) and layer.ceil_mode for layer in net.modules())


def _replacement(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, Conv2dSame | MaxPool2dSame):
        return _SamePadded(cast("_Window", layer))
    if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode and not _skips_windows(layer):
        return _RoundedUp(layer)
    return None


def _skips_windows(layer: nn.MaxPool2d) -> bool:
    """Check whether a window can begin in the padding after the map, which PyTorch then skips."""
    return any(_reach(layer, i) + 2 <= _pair(layer.padding)[i] + _pair(layer.stride)[i] for i in (0, 1))


class _SamePadded(nn.Module):
    """Compute a convolution or max pool with "same" padding: the map has ceil(size / stride) samples."""

    def __init__(self, layer: _Window) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C', ceil(h / stride), ceil(w / stride)) from x (B, C, h, w)."""
        before_w, after_w, before_h, after_h = *self._sides(x.shape[-1], 1), *self._sides(x.shape[-2], 0)
        layer, sides = self.layer, (before_w, after_w, before_h, after_h)
        if isinstance(layer, nn.MaxPool2d):
            x = F.pad(x, sides, value=-float("inf"))
            return F.max_pool2d(x, layer.kernel_size, layer.stride, 0, layer.dilation)
        x = F.pad(x, sides)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

    def _sides(self, size: int, axis: int) -> tuple[int, int]:
        stride, window = _pair(self.layer.stride)[axis], _reach(self.layer, axis) + 1
        if stride == 1:
            total = window - 1
        elif window >= stride:
            total = window - stride + -size % stride
        else:
            total = max(-size % stride - (stride - window), 0)
        return total // 2, total - total // 2


class _RoundedUp(nn.Module):
    """Compute a max pool that rounds up: its last window may extend beyond the map."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C, ceil((h - k + 2 p) / stride) + 1, ...) from x (B, C, h, w)."""
        layer, sides = self.layer, []
        for axis, size in ((1, x.shape[-1]), (0, x.shape[-2])):
            padding, stride = _pair(layer.padding)[axis], _pair(layer.stride)[axis]
            spare = (_reach(layer, axis) + 1 - 2 * padding - size) % stride
            sides += [padding, padding + spare]
        x = F.pad(x, sides, value=-float("inf"))
        return F.max_pool2d(x, layer.kernel_size, layer.stride, 0, layer.dilation)


def _reach(layer: _Window, axis: int) -> int:
    """Return the distance from the first to the last sample of a window."""
    return _pair(layer.dilation)[axis] * (_pair(layer.kernel_size)[axis] - 1)


def _pair(value: int | tuple[int, ...] | str) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value[0], value[-1]
    return int(value), int(value)
