from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, deeplabv3_resnet50

from deeplab_lightning import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, connection, load_weights
from deeplab_lightning.models.deeplab import TrainingLogits
from tests.models.references import CaffeDeepLabV2, multi_scale, randomise, spread

SIZES = [(64, 64), (65, 47)]
RESNET_V2: dict[str, Any] = {"hidden_channels": None, "dilation": "smp", "pretrained": False}


def random_images(size: tuple[int, int], count: int = 1) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    assert spread(theirs) > 0.01  # constant logits would prove nothing


@pytest.fixture(scope="module")
def torchvision_resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomise(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True))


@pytest.mark.slow
def test_torchvisions_deeplabv3_gives_the_same_logits(torchvision_resnet: nn.Module) -> None:
    net = DeepLabV3(5, output_stride=8, auxiliary_weight=0.5, pretrained=False).eval()
    report = load_weights(net, torchvision_resnet.state_dict())
    assert (report.layout, report.left, report.missing) == ("torchvision", [], [])
    with torch.no_grad():
        for size in SIZES:
            assert_equal(net(random_images(size)), torchvision_resnet(random_images(size))["out"])


def test_torchvisions_training_outputs_are_the_same(torchvision_resnet: nn.Module) -> None:
    net = DeepLabV3(5, output_stride=8, auxiliary_weight=0.5, pretrained=False)
    load_weights(net, torchvision_resnet.state_dict())
    for module in (*net.modules(), *torchvision_resnet.modules()):
        module.training = not isinstance(module, nn.Dropout)
    with torch.no_grad():
        ours, theirs = net(random_images((65, 47), 2)), torchvision_resnet(random_images((65, 47), 2))
    torchvision_resnet.eval()
    assert isinstance(ours, TrainingLogits)
    [(weight, auxiliary)] = ours.auxiliary
    assert weight == 0.5
    assert float((ours.logits - theirs["out"]).abs().max()) < 1e-4  # batch statistics of few samples amplify rounding
    assert float((auxiliary - theirs["aux"]).abs().max()) < 1e-4


def test_torchvisions_mobilenet_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    theirs = randomise(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5, aux_loss=True))
    net = DeepLabV3(
        5, backbone="tv-mobilenet_v3_large", atrous_rates=(12, 24, 36), dilation="smp", pretrained=False
    ).eval()
    report = load_weights(net, theirs.state_dict())
    assert report.missing == []
    assert all(key.startswith("aux_classifier.") for key in report.left)
    with torch.no_grad():
        for size in SIZES:
            assert_equal(net(random_images(size)), theirs(random_images(size))["out"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("encoder", "backbone"), [("resnet18", "resnet18"), ("mobilenet_v2", "mobilenet_v2"), ("tu-resnet18", "resnet18")]
)
def test_smps_deeplabv3_gives_the_same_logits(encoder: str, backbone: str) -> None:
    torch.manual_seed(0)
    theirs: Any = randomise(smp.DeepLabV3(encoder, encoder_weights=None, classes=5))
    rule: Any = "torchvision" if encoder.startswith("tu-") else "smp"
    net = DeepLabV3(5, backbone=backbone, output_stride=8, dilation=rule, pretrained=False).eval()
    report = load_weights(net, theirs.state_dict())
    assert (report.layout, report.missing) == ("smp", [])
    with torch.no_grad():
        images = random_images((64, 64))  # smp takes multiples of 8 only, and resizes with aligned corners
        ours = net.decode(net.backbone(images))
        assert_equal(ours, theirs.segmentation_head[0](theirs.decoder(theirs.encoder(images))))


@pytest.mark.parametrize(
    ("encoder", "rule", "wanted"), [("tu-resnet18", "smp", "torchvision"), ("resnet18", "torchvision", "smp")]
)
def test_a_backbone_that_smp_dilated_otherwise_is_refused(
    encoder: str, rule: Any, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All tensors were loaded, and up to a fifth of the labels differed."""
    theirs = smp.DeepLabV3(encoder, encoder_weights=None, classes=5)
    net = DeepLabV3(5, backbone="resnet18", output_stride=8, dilation=rule, pretrained=False)
    misfit = f"the weights were trained with dilation '{wanted}', the network has '{rule}'"
    with pytest.raises(ValueError, match=misfit):
        load_weights(net, theirs.state_dict())
    load_weights(DeepLabV3(5, backbone="resnet18", output_stride=32, pretrained=False), theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    DeepLabV3(
        7, backbone="resnet18", output_stride=8, dilation=rule, pretrained=False, weights=str(tmp_path / "smp.pth")
    )  # a training may start so
    assert f"Note: {misfit}" in capsys.readouterr().out


def test_torchvisions_mobilenet_dilated_otherwise_is_refused() -> None:
    theirs = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    net = DeepLabV3(5, backbone="tv-mobilenet_v3_large", output_stride=8, pretrained=False)
    with pytest.raises(ValueError, match="trained with dilation 'smp', the network has 'torchvision'"):
        load_weights(net, theirs.state_dict())


def test_smps_deeplabv3_on_its_own_efficientnet_is_refused() -> None:
    theirs = smp.DeepLabV3("efficientnet-b0", encoder_weights=None, classes=5)
    net = DeepLabV3(5, backbone="efficientnet-b0", output_stride=8, dilation="smp", pretrained=False)
    with pytest.raises(ValueError, match="DeepLabV3 on an EfficientNet, where smp dilates other blocks"):
        load_weights(net, theirs.state_dict())
    assert len(load_weights(net, theirs.state_dict(), layout="backbone").loaded) > 200


def test_smps_deeplabv3plus_is_refused() -> None:
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=5)
    with pytest.raises(ValueError, match="smp's DeepLabV3Plus, whose decoder differs"):
        load_weights(DeepLabV3Plus(5, backbone="resnet18", pretrained=False), theirs.state_dict())


@pytest.mark.long
def test_caffes_resnet_v2_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    theirs = randomise(CaffeDeepLabV2(5, (3, 4, 6, 3)))
    old = {".shortcut.": ".proj.", "aspp.": "aspp.stages."}  # names of earlier releases
    state = theirs.state_dict()
    earlier = dict(state)
    for now, then in old.items():
        earlier = {key.replace(now, then): value for key, value in earlier.items()}
    net = DeepLabV2(5, backbone="caffe_resnet50", scales=(1.0, 0.5, 0.75), **RESNET_V2).eval()
    for prefix, names in (("scale.", earlier), ("module.base.", state)):
        report = load_weights(net, {f"{prefix}{key}": value for key, value in names.items()})
        assert (report.layout, report.left, report.missing) == ("caffe_resnet", [], [])
    net.double()  # RGB and BGR sum in another order, which 50 layers of random weights amplify in single precision
    theirs.double()
    with torch.no_grad():
        for size in SIZES:
            images = random_images(size).double()
            expected = multi_scale(theirs, images.flip(1))
            expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=False)
            assert float((net(images) - expected).abs().max()) < 1e-10
            assert float(expected.std()) > 0.1


class FirstVersion(nn.Module):
    """This system's first version: DeepLab v2 on slices of torchvision's VGG-16, with the names that it had."""

    def __init__(self, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.backbone, self.classifier = nn.Module(), nn.Module()
        vgg = torchvision.models.vgg16(weights=None)
        self.backbone.pretrained_model = vgg
        features = list(vgg.features)
        for number, (start, stop) in enumerate(((0, 4), (5, 9), (10, 16), (17, 23)), start=1):
            self.backbone.add_module(f"conv{number}", nn.Sequential(*features[start:stop]))
        for number in (1, 2, 3):
            self.backbone.add_module(f"conv5_{number}", self.conv3x3_relu(512, 512, 2))
        for rate in (6, 12, 18, 24):
            self.classifier.add_module(f"conv3x3_dilate{rate}", self.conv3x3_relu(512, hidden, rate))
        self.classifier.conv1x1, self.classifier.score = nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def conv3x3_relu(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate), nn.ReLU())

    def coarse(self, x: Tensor) -> Tensor:
        for number in (1, 2, 3, 4):
            x = self.backbone.get_submodule(f"conv{number}")(x)
            x = F.max_pool2d(x, 3, 2 if number < 4 else 1, 1)
        for number in (1, 2, 3):
            x = self.backbone.get_submodule(f"conv5_{number}")(x)
        x = F.max_pool2d(x, 3, 1, 1)
        parts = [self.classifier.get_submodule(f"conv3x3_dilate{rate}")(x) for rate in (6, 12, 18, 24)]
        return sum(self.classifier.score(self.classifier.conv1x1(part)) for part in parts)  # type: ignore[operator, return-value]

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.coarse(x), scale_factor=8, mode="bilinear")


@pytest.mark.long
@pytest.mark.parametrize("has_classifier", [True, False])
def test_the_first_versions_checkpoints_give_the_same_logits(has_classifier: bool) -> None:
    """With and without the VGG-16 classifier that the layers were taken from, which the file holds too."""
    torch.manual_seed(0)
    theirs = FirstVersion(5, 64).eval()
    state = {k: v for k, v in theirs.state_dict().items() if has_classifier or ".pretrained_model." not in k}
    assert {"backbone.conv1.0.weight", "backbone.conv1.2.weight", "backbone.conv5_3.0.bias"} <= set(state)
    net = DeepLabV2(5, hidden_channels=64, pretrained=False).eval()
    report = load_weights(net, state)
    assert (report.layout, report.missing) == ("first", [])
    assert all(name.startswith("backbone.pretrained_model.") for name in report.left)
    with torch.no_grad():
        for size in ((64, 64), (72, 104)):
            images = torch.randn(2, 3, *size)
            expected = theirs(images)
            assert float((net(images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "source"),
    [
        ("resnet18", "torchvision"),
        ("tv-mobilenet_v3_large", "torchvision"),
        ("tf_efficientnet_lite0", "timm"),
        ("convnext_atto", "timm"),
        ("mobilenet_v2", "smp"),
        ("resnet18", "smp"),
        ("efficientnet-b0", "smp"),
        ("densenet121", "timm"),
        ("ghostnet_100", "timm"),
    ],
)
def test_classifiers_fill_only_the_backbone(backbone: str, source: str) -> None:
    torch.manual_seed(0)
    if source == "timm":
        theirs = timm.create_model(backbone)
    elif source == "smp":
        theirs = smp.encoders.get_encoder(backbone)
    else:
        theirs = torchvision.models.get_model(backbone.removeprefix("tv-"), weights=None)
    net = DeepLabV3(5, backbone=backbone, aspp_channels=8, output_stride=32, pretrained=False).eval()
    report = load_weights(net, randomise(theirs).state_dict())
    assert report.layout == "backbone"
    assert all(key.startswith("head.") for key in report.missing)
    with torch.no_grad():
        images = random_images((64, 64))
        if source == "timm":
            expected = timm.create_model(backbone, features_only=True).feature_info.channels()[-1]
            assert net.backbone(images)[-1].shape[1] == expected
            deepest = theirs.forward_intermediates(images, intermediates_only=True)[-1]
            assert_equal(net.backbone(images)[-1], deepest)
        elif source == "smp":
            assert_equal(net.backbone(images)[-1], theirs(images)[-1])
        elif backbone == "resnet18":
            x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
            assert_equal(net.backbone(images)[-1], theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x)))))
        else:
            assert_equal(net.backbone(images)[-1], theirs.features(images))


def test_a_deeper_network_of_the_same_names_does_not_fit() -> None:
    net = DeepLabV3(5, backbone="resnet18", aspp_channels=8, pretrained=False)
    with pytest.raises(ValueError, match="layer1.2.conv1.weight.* do not occur in the network"):
        load_weights(net, timm.create_model("resnet34").state_dict())


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_smps_vgg_encoder_fills_the_backbone(prefix: str) -> None:
    theirs = smp.encoders.get_encoder("vgg11_bn", weights=None)
    state = {f"{prefix}{key}": value for key, value in randomise(theirs).state_dict().items()}
    if prefix:
        state["decoder.blocks.0.weight"] = state["segmentation_head.0.bias"] = torch.zeros(1)  # of a whole Unet
    net = DeepLabV3(5, backbone="vgg11_bn", aspp_channels=8, output_stride=32, pretrained=False)
    report = load_weights(net, state)
    assert not any(key.startswith("backbone.") for key in report.missing)
    own = [m for m in net.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    expected = [m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(own, expected, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("style", ["torchvision", "timm", "caffe"])
def test_a_vgg_classifiers_fully_connected_layers_are_subsampled_into_the_head(style: str) -> None:
    rows = torch.arange(64.0)  # a narrow fc6 of 64 rows and fc7 of 64: every 4th makes 16
    fc6 = (rows[:, None, None, None] * 100 + torch.arange(49.0).reshape(1, 1, 7, 7)).expand(-1, 512, -1, -1)
    fc7 = rows[:, None] * 64 + rows
    names = {
        "torchvision": ("classifier.0", "classifier.3"),
        "timm": ("pre_logits.fc1", "pre_logits.fc2"),
        "caffe": ("fc6", "fc7"),
    }
    state = dict(torchvision.models.vgg11(weights=None).features.state_dict(prefix="features."))
    if style == "caffe":
        order = [f"conv{s}_{i}" for s, n in enumerate((1, 1, 2, 2, 2), 1) for i in range(1, n + 1)]
        values = iter(state.values())
        state = {f"{name}.{kind}": next(values) for name in order for kind in ("weight", "bias")}
    first, second = names[style]
    state |= {f"{first}.weight": fc6 if style == "timm" else fc6.flatten(1), f"{first}.bias": rows}
    state |= {f"{second}.weight": fc7[..., None, None] if style == "timm" else fc7, f"{second}.bias": rows}
    net: Any
    for net in (
        DeepLabV1(3, backbone="vgg11", hidden_channels=16, pretrained=False),
        DeepLabV2(3, backbone="vgg11", hidden_channels=16, pretrained=False),
    ):
        report = load_weights(net, state)
        assert report.layout == "vgg"
        assert {key.rsplit(".", 1)[0] for key in report.missing} == {"head.heads.0.3"}
        for branch in net.head.branches:
            weight = branch[0].weight
            assert weight[:, 0, 0, 0].tolist() == [100.0 * row for row in range(0, 64, 4)]
            assert weight[0, 5].tolist() == [[0, 3, 6], [21, 24, 27], [42, 45, 48]]
        assert net.head.heads[0][0].weight[1, :3, 0, 0].tolist() == [256, 260, 264]
        assert net.head.heads[0][0].bias.tolist() == list(range(0, 64, 4))


def test_caffes_vgg_expects_bgr_less_its_mean() -> None:
    conv = nn.Conv2d(3, 64, 3, padding=0)
    state = dict(DeepLabV1(3, backbone="vgg11", hidden_channels=8, pretrained=False).backbone.state_dict())
    order = [f"conv{s}_{i}" for s, n in enumerate((1, 1, 2, 2, 2), 1) for i in range(1, n + 1)]
    values = iter(state.values())
    state = {f"{name}.{kind}": next(values) for name in order for kind in ("weight", "bias")}
    state |= {"conv1_1.weight": conv.weight.detach(), "conv1_1.bias": conv.bias.detach()}  # type: ignore[union-attr]
    net: Any = DeepLabV1(3, backbone="vgg11", hidden_channels=8, pretrained=False)
    load_weights(net, state, layout="vgg")
    rgb = torch.rand(1, 3, 16, 16)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (net.backbone.mean, net.backbone.std))
    with torch.no_grad():
        ours = net.backbone.stages[0][0]((rgb - mean) / std)[..., 1:-1, 1:-1]
        theirs = conv(rgb.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1))
    assert float((ours - theirs).abs().max()) < 1e-3  # of values up to 255


def tiny(num_classes: int = 3, backbone: str = "resnet18", **arguments: Any) -> Any:
    return DeepLabV3(num_classes, backbone=backbone, aspp_channels=8, pretrained=False, **arguments)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_own_files_round_trip(suffix: str, tmp_path: Path) -> None:
    theirs, path = randomise(tiny()), tmp_path / f"w{suffix}"
    state = {key: value.contiguous() for key, value in theirs.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        torch.save(
            {"epoch": 1, "state_dict": {f"net.{k}": v for k, v in state.items()} | {"confusion.x": torch.zeros(1)}},
            path,
        )
    net = tiny().eval()
    report = load_weights(net, path)
    assert (report.layout, report.left, report.missing) == ("own", [], [])
    assert torch.equal(net(random_images((33, 33))), theirs(random_images((33, 33))))


def test_the_weights_argument_starts_from_a_file_with_another_number_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny(21)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = tiny(3, weights=str(tmp_path / "w.pth"))
    assert torch.equal(net.head[1][0].weight, source.head[1][0].weight)
    assert "2 missing (head.2.weight, head.2.bias)" in capsys.readouterr().out


def test_the_weights_argument_needs_the_whole_backbone(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fill the backbone: backbone.net.layer1.2.* are missing"):
        tiny(backbone="resnet34", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: tiny(4).state_dict(), r"head.2.bias has shape \(4,\).*the weights have 4 classes, the network 3"),
        (
            lambda: timm.create_model("resnet34").state_dict(),
            "the source's layer1.2.conv1.weight.*do not occur in the network",
        ),
        (
            lambda: {k: v for k, v in tiny().state_dict().items() if "layer4.1" not in k},
            "the network's backbone.net.layer4.1.conv1.weight.* are missing",
        ),
        (lambda: {"something": torch.zeros(1)}, "no tensor of the source .* fits this network. It holds something"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_named(source: Any, message: str) -> None:
    net = tiny()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(net, source())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_not_strict_keeps_the_networks_own_tensors() -> None:
    report = load_weights(tiny(), tiny(4).state_dict(), strict=False)
    assert report.missing == ["head.2.weight", "head.2.bias"] == report.left


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_files_of_training_programs_are_read(wrapper: str, tmp_path: Path) -> None:
    """Those of torchvision's references ended in a traceback for the options beside the weights."""
    source = tiny()
    content = {wrapper: source.state_dict(), "args": Namespace(lr=0.01, data="coco"), "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    net = tiny(weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items())


def test_the_prefix_of_another_module_is_removed() -> None:
    """A LightningModule often keeps its network as `model`, and counts or weights of its loss beside it."""
    source = tiny()
    state = {f"model.{key}": value for key, value in source.state_dict().items()} | {"loss.weight": torch.ones(3)}
    assert load_weights(tiny(), state).missing == []


def test_files_are_never_unpickled(tmp_path: Path) -> None:
    torch.save({"net": nn.Conv2d(1, 1, 1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth holds more than tensors by name, which could run code"):
        load_weights(tiny(), tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="no such weights: .*absent.pth"):
        load_weights(tiny(), tmp_path / "absent.pth")


def test_urls_come_from_torch_hubs_cache_or_fail_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(tiny().state_dict(), tmp_path / "checkpoints" / "w.pth")
    assert load_weights(tiny(), "https://127.0.0.1:1/a/w.pth").missing == []
    monkeypatch.setattr(connection, "can_connect", lambda *_, **__: False)
    with pytest.raises(RuntimeError, match=r"other.pth is not in .* and 127.0.0.1 cannot be reached"):
        load_weights(tiny(), "https://127.0.0.1:1/a/other.pth")


@pytest.mark.long
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_weights_of_three_channels_start_a_network_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    """It was refused, since the first layer stayed unfilled."""
    source = tiny(3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    net = tiny(3, in_channels=channels, weights=str(tmp_path / "w.pth"))
    assert f"adapted from 3 to {channels} channels" in capsys.readouterr().out
    name, given = next((n, v) for n, v in source.state_dict().items() if v.ndim == 4)
    found = net.state_dict()[name]
    assert found.shape[1] == channels
    expected = given.sum(dim=1, keepdim=True) if channels == 1 else given[:, :3] * 3 / channels
    assert torch.allclose(found[:, : expected.shape[1]], expected, atol=1e-6)
    rest = {n: v for n, v in net.state_dict().items() if n.startswith("backbone.") and n != name}
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in rest.items())
