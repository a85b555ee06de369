from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deeplab_lightning import DeepLabV2, DeepLabV3
from deeplab_lightning.models.deeplab import DeepLab

MEMBERS: list[tuple[Callable[..., DeepLab], dict[str, Any]]] = [
    (DeepLabV2, {"backbone": "vgg16", "hidden_channels": 16}),
    (DeepLabV2, {"backbone": "vgg16", "hidden_channels": 16, "share_head": False}),
    (DeepLabV2, {"backbone": "resnet18", "hidden_channels": 16}),
    (DeepLabV3, {"backbone": "resnet18", "aspp_channels": 16}),
    (DeepLabV3, {"backbone": "vgg16_bn", "aspp_channels": 16, "output_stride": 8}),
    (DeepLabV3, {"backbone": "tf_efficientnet_lite0", "aspp_channels": 16, "output_stride": 32}),
]


@pytest.mark.parametrize(("member", "arguments"), MEMBERS)
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_logits_have_the_size_of_the_input(
    member: Callable[..., DeepLab], arguments: dict[str, Any], size: tuple[int, int]
) -> None:
    net = member(3, pretrained=False, **arguments)
    assert net(torch.randn(1, 3, *size)).shape == (1, 3, *size)  # a batch of one, in training


@pytest.mark.parametrize(("member", "arguments"), MEMBERS)
def test_gradient_reaches_every_parameter(member: Callable[..., DeepLab], arguments: dict[str, Any]) -> None:
    net = member(3, pretrained=False, dropout=0.0, **arguments)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    net(torch.randn(2, 3, 65, 65)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_v2_returns_321_for_321() -> None:
    net = DeepLabV2(2, hidden_channels=8, pretrained=False).eval()
    with torch.no_grad():
        assert net.backbone(torch.zeros(1, 3, 321, 321))[-1].shape == (1, 512, 41, 41)
        assert net(torch.zeros(1, 3, 321, 321)).shape == (1, 2, 321, 321)


def test_v2_has_the_papers_parameters() -> None:
    # VGG-16's 13 convolutions; per branch fc6 3x3x512x1024 + 1024; fc7 1024x1024 + 1024; score 1024x21 + 21.
    vgg, fc6, fc7, score = 14_714_688, 3 * 3 * 512 * 1024 + 1024, 1024 * 1024 + 1024, 1024 * 21 + 21
    for share_head, heads in ((True, 1), (False, 4)):
        net = DeepLabV2(21, share_head=share_head, pretrained=False)
        assert sum(p.numel() for p in net.parameters()) == vgg + 4 * fc6 + heads * (fc7 + score)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_v3_rates_follow_the_output_stride(output_stride: int, rates: list[int]) -> None:
    net = DeepLabV3(3, backbone="resnet18", output_stride=output_stride, pretrained=False)
    dilated = [m for m in net.head.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert [m.dilation[0] for m in dilated] == rates
    assert all(m.padding == m.dilation for m in dilated)


def test_v3_overfits_one_batch() -> None:
    torch.manual_seed(0)
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=32, dropout=0.0, pretrained=False)
    images = torch.randn(2, 3, 64, 64)
    mask = torch.zeros(2, 64, 64, dtype=torch.long)
    mask[0, :32], mask[1, :, 32:] = 1, 2
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(images), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3  # chance is log(3) = 1.1


def test_zero_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        DeepLabV3(0)
