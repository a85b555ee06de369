"""Other implementations of the family, written from their papers and published layouts, for parity tests."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Draws biases, and norms whose statistics keep the features varied up to the last layer; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, 0, 0.1, generator=generator)
    momenta = [norm.momentum for norm in norms]
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    for norm in norms:
        norm.momentum = 1.0  # the statistics of one batch
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 96, 96, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_var is not None
        norm.running_var.clamp_(min=0.01)
    return net.eval()


def spread(x: Tensor) -> float:
    """Computes how much a map varies over its samples, relative to its largest value: 0 if it only holds biases."""
    return float(x.std(dim=(-2, -1)).mean() / x.abs().max())


def _unit(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    unit = nn.Module()
    padding = dilation * (kernel // 2)
    unit.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    unit.bn = nn.BatchNorm2d(out_channels)
    return unit


def _apply(unit: Any, x: Tensor) -> Tensor:
    result: Tensor = unit.bn(unit.conv(x))
    return result


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int, has_shortcut: bool) -> None:
        super().__init__()
        self.reduce = _unit(in_channels, channels, 1, stride=stride)
        self.conv3x3 = _unit(channels, channels, 3, dilation=dilation)
        self.increase = _unit(channels, 4 * channels, 1)
        self.shortcut = _unit(in_channels, 4 * channels, 1, stride=stride) if has_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(_apply(self.conv3x3, F.relu(_apply(self.reduce, x))))
        shortcut = x if self.shortcut is None else _apply(self.shortcut, x)
        return F.relu(_apply(self.increase, residual) + shortcut)


class CaffeDeepLabV2(nn.Module):
    """DeepLab v2 on a ResNet as its authors define it, with the names of kazuto1011/deeplab-pytorch."""

    def __init__(self, num_classes: int, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.layer1 = nn.Module()
        self.layer1.conv1 = _unit(3, 64, 7, stride=2)
        in_channels = 64
        for index, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            channels, layer = 64 * 2**index, nn.Sequential()
            for number in range(count):
                first = number == 0
                block = _Block(
                    in_channels, channels, stride=stride if first else 1, dilation=dilation, has_shortcut=first
                )
                layer.add_module(f"block{number + 1}", block)
                in_channels = 4 * channels
            self.add_module(f"layer{index + 2}", layer)
        self.aspp = nn.Module()
        for index, rate in enumerate((6, 12, 18, 24)):
            self.aspp.add_module(f"c{index}", nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate))

    def forward(self, bgr: Tensor) -> Tensor:
        x: Tensor = F.relu(_apply(self.layer1.conv1, bgr))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        for index in range(2, 6):
            x = self.get_submodule(f"layer{index}")(x)
        logits: list[Tensor] = [branch(x) for branch in self.aspp.children()]
        return logits[0] + logits[1] + logits[2] + logits[3]


def multi_scale(net: nn.Module, images: Tensor) -> Tensor:
    """Computes the maximum of the logits at scales 1, 0.5 and 0.75, at the first one's size."""
    logits: Tensor = net(images)
    for scale in (0.5, 0.75):
        size = [int(side * scale) for side in images.shape[-2:]]
        smaller = net(F.interpolate(images, size=size, mode="bilinear", align_corners=False))
        smaller = F.interpolate(smaller, size=logits.shape[-2:], mode="bilinear", align_corners=False)
        logits = torch.maximum(logits, smaller)
    return logits


def written_out_v3plus(net: Any, images: Tensor) -> Tensor:
    """Computes DeepLab v3+ on a ResNet as in section 3.1 of its paper, with our network's tensors."""
    state = net.state_dict()

    def unit(x: Tensor, name: str, padding: int = 0, dilation: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=padding, dilation=dilation)
        norm = [state[f"{name}.1.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm).relu()

    _, low, _, _, deep = net.backbone(images)
    branches = [unit(deep, "head.aspp.branches.0")]
    branches += [unit(deep, f"head.aspp.branches.{i}", rate, rate) for i, rate in enumerate((6, 12, 18), start=1)]
    pooled = F.conv2d(deep.mean(dim=(2, 3), keepdim=True), state["head.aspp.branches.4.project.weight"])
    norm = [state[f"head.aspp.branches.4.norm.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
    branches.append(F.batch_norm(pooled, *norm).relu().expand_as(branches[0]))
    context = unit(torch.cat(branches, 1), "head.aspp.project")
    context = F.interpolate(context, size=low.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.cat([context, unit(low, "head.reduce")], 1)
    x = unit(unit(x, "head.refine.0", 1), "head.refine.1", 1)
    x = F.conv2d(x, state["head.classify.weight"], state["head.classify.bias"])
    return F.interpolate(x, size=images.shape[-2:], mode="bilinear", align_corners=False)
