"""What the backbones promise, over all families: strides, gradients and the pretrained receptive field.

`make bench`, minutes; not part of the suite.
"""

import pytest
import torch

from deeplab_lightning.models.backbone import build_backbone
from tests.models.test_backbone_families import receptive_field_difference

FAMILIES = {
    "ResNet": ["resnet18", "resnet50", "resnet101", "resnext50_32x4d", "seresnet50", "resnet50d", "res2net50_26w_4s"],
    "EfficientNet": ["efficientnet-b0", "efficientnet-b3", "tf_efficientnet_lite0", "tf_efficientnetv2_s"],
    "MobileNet": ["mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", "tv-mobilenet_v3_large"],
    "ConvNeXt": ["convnext_atto", "convnext_tiny", "convnextv2_atto"],
    "RegNet": ["regnetx_002", "regnety_002", "regnety_032"],
    "DenseNet": ["densenet121", "densenet169"],
    "others": [
        "xception41",
        "dpn68",
        "ghostnet_100",
        "mobileone_s0",
        "gernet_s",
        "repvgg_a0",
        "cspresnet50",
        "mnasnet_100",
    ],
}
VGG = ["vgg11", "vgg13", "vgg16", "vgg16_bn", "vgg19"]


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in FAMILIES.items() for name in names])
def test_strides_gradients_and_receptive_field(family: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cells = []
    for output_stride in (8, 16):
        net = build_backbone(name, output_stride=output_stride, pretrained=False)
        maps = net(torch.randn(2, 3, 64, 64))
        maps[-1].square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())
        assert net.strides[-1] == output_stride
        difference = receptive_field_difference(name, output_stride)
        cells += [str(round(64 / maps[-1].shape[-1])), f"{difference:.0e}"]
        assert difference < 1e-4  # rounding; a wrong dilation makes 1e-2 and more
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    with capsys.disabled():
        print(f"\n| {family} | {name} | {millions:.1f} M | {' | '.join(cells)} |", end="")


@pytest.mark.parametrize("name", VGG)
def test_vggs_run_forward_and_backward(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for output_stride in (8, 16):
        net = build_backbone(name, output_stride=output_stride, pretrained=False)
        maps = net(torch.randn(2, 3, 65, 65))
        maps[-1].square().mean().backward()
        assert maps[-1].shape[-1] == -(-65 // output_stride)
    with capsys.disabled():
        print(f"\n| VGG | {name} | {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M | 8 | - | 16 | - |", end="")
