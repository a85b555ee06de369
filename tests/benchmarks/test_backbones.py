"""What the backbones promise, over all families: strides, gradients and the pretrained receptive field.

`make bench`, minutes; not part of the suite.
"""

import contextlib
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

from deeplab_lightning import DeepLabV3
from deeplab_lightning.models.backbone import build_backbone
from deeplab_lightning.models.weights import load_weights
from tests.models.test_backbone_families import receptive_field_difference, vgg_receptive_field_difference

FAMILIES = {
    "ResNet": [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "seresnet50",
        "resnet50d",
        "res2net50_26w_4s",
    ],
    "EfficientNet": [
        "efficientnet-b0",
        "efficientnet-b3",
        "tf_efficientnet_lite0",
        "tf_efficientnet_lite2",
        "tf_efficientnetv2_s",
    ],
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
        print(f"\n| {family} | {name} | {millions:.1f} M | {' | '.join(cells)} | {layouts(name)} |", end="")


@pytest.mark.parametrize("name", VGG)
def test_vggs_run_forward_and_backward(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for output_stride in (8, 16):
        net = build_backbone(name, output_stride=output_stride, pretrained=False)
        maps = net(torch.randn(2, 3, 65, 65))
        maps[-1].square().mean().backward()
        assert maps[-1].shape[-1] == -(-65 // output_stride)
    with capsys.disabled():
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        difference = vgg_receptive_field_difference(name)
        print(f"\n| VGG | {name} | {millions:.1f} M | 8 | {difference:.0e} | 16 | 0 | {layouts(name)} |", end="")
    assert difference < 1e-4


def layouts(name: str) -> str:
    """Whose classifiers of this name fill the backbone, tried with random weights."""
    sources: dict[str, Callable[[], nn.Module]] = {
        "torchvision": lambda: torchvision.models.get_model(name.removeprefix("tv-"), weights=None),
        "timm": lambda: timm.create_model(name.replace("efficientnet-b", "tf_efficientnet_b")),
        "smp": lambda: smp.encoders.get_encoder(name, weights=None),
    }
    net = DeepLabV3(2, backbone=name, aspp_channels=8, pretrained=False)
    fitting = []
    for source, build in sources.items():
        with contextlib.suppress(ValueError, KeyError, RuntimeError):  # no such model there, or other tensors
            load_weights(net, build().state_dict())
            fitting.append(source)
    return ", ".join(fitting) or "-"
