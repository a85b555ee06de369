import itertools

import pytest
import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from deeplab_lightning import DeepLabV3
from deeplab_lightning.export.tracing import traceable

LAYERS = [
    Conv2dSame(2, 3, 3, stride=2),
    Conv2dSame(2, 3, 5, stride=1, dilation=4),
    Conv2dSame(2, 2, 2, stride=1, groups=2),
    Conv2dSame(2, 3, 1, stride=2),
    Conv2dSame(2, 3, 2, stride=4),
    MaxPool2dSame(3, stride=2),
    MaxPool2dSame(2, stride=1),
    nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True),
    nn.MaxPool2d(2, stride=2, padding=1, ceil_mode=True),  # PyTorch skips windows
    nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0), ceil_mode=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_keeps_its_values_at_every_size(layer: nn.Module) -> None:
    net = nn.Sequential(layer)
    copied = traceable(net)
    with torch.no_grad():
        for height, width in itertools.product((8, 9, 10, 11), (12, 13, 15)):
            x = torch.randn(1, 2, height, width) - 2  # below zero, as zeros would win a maximum
            assert torch.equal(copied(x), net(x))
    assert net[0] is layer


def test_a_network_keeps_its_values() -> None:
    net = DeepLabV3(3, backbone="tf_efficientnet_lite0", output_stride=8, aspp_channels=8, pretrained=False).eval()
    copied = traceable(net)
    changed = [m for m in copied.modules() if type(m).__name__ == "_SamePadded"]
    assert changed
    with torch.no_grad():
        for size in ((64, 64), (65, 47)):
            images = torch.randn(1, 3, *size)
            assert torch.equal(copied(images), net(images))


def test_one_trace_is_right_at_every_size() -> None:
    net = nn.Sequential(LAYERS[0], nn.Conv2d(3, 2, 3), LAYERS[7], LAYERS[1]).eval()
    sizes = {2: torch.export.Dim("height", min=16), 3: torch.export.Dim("width", min=16)}
    program = torch.export.export(traceable(net), (torch.randn(1, 2, 32, 41),), dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        for height, width in itertools.product((16, 17, 18, 19), (32, 33, 34, 35)):
            x = torch.randn(1, 2, height, width)
            assert torch.equal(program(x), net(x))
