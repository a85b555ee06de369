"""Dilation over families of backbones; the table over all of them is in tests/benchmarks/test_backbones.py."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.models.backbone import Backbone, build_backbone
from deeplab_lightning.models.dilation import AtrousAvgPool2d
from tests.models.references import randomise, spread

QUICK = ["resnet18", "resnet26t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "regnety_002"]
# Gates average over the whole map, whose samples differ with the stride: they are removed to compare features.
GATES = {"SqueezeExcite", "SEModule", "EffectiveSEModule", "EcaModule", "GlobalResponseNorm", "SqueezeExcitation"}


def plain(name: str, output_stride: int, state: dict[str, Tensor], **arguments: Any) -> Backbone:
    """Builds a backbone of the given weights, without gates."""
    net = build_backbone(name, output_stride=output_stride, pretrained=False, **arguments).eval()
    net.load_state_dict(state)
    gates = [path for path, module in net.named_modules() if type(module).__name__ in GATES]
    for path in gates:
        parent, _, child = path.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Identity())
    return net


def receptive_field_difference(name: str, output_stride: int, size: int = 97) -> float:
    """Compares dilated features with those of stride 32 where their grids coincide, relative to the largest feature.

    Kernels of even size, and TensorFlow's padding, shift the grid: the smallest difference over all shifts counts.
    """
    torch.manual_seed(0)
    state = randomise(build_backbone(name, output_stride=32, pretrained=False)).state_dict()
    images, factor = torch.randn(1, 3, size, size), 32 // output_stride
    with torch.no_grad():
        coarse = plain(name, 32, state)(images)[-1]
        fine = plain(name, output_stride, state)(images)[-1]
    assert spread(coarse) > 0.01  # constant features would prove nothing
    assert abs(fine.shape[-1] - size / output_stride) <= 1.5
    differences = []
    for shift in range(factor):
        common = fine[..., shift::factor, shift::factor]
        side = min(common.shape[-1], coarse.shape[-1])
        difference = (common[..., :side, :side] - coarse[..., :side, :side]).abs().max()
        differences.append(float(difference / coarse.abs().max()))
    return min(differences)


@pytest.mark.long
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", QUICK)
def test_the_pretrained_receptive_field_is_kept(name: str, output_stride: int) -> None:
    assert receptive_field_difference(name, output_stride) < 1e-4  # rounding; a wrong dilation makes 1e-2 and more


def test_smps_rule_does_not_keep_it() -> None:
    torch.manual_seed(0)
    state = randomise(build_backbone("resnet18", output_stride=32, pretrained=False)).state_dict()
    images = torch.randn(1, 3, 97, 97)
    with torch.no_grad():
        coarse, fine = plain("resnet18", 32, state)(images)[-1], plain("resnet18", 8, state, dilation="smp")(images)[-1]
    assert float((fine[..., ::4, ::4] - coarse).abs().max() / coarse.abs().max()) > 0.01


@pytest.mark.long
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet26t", "mobilenetv3_small_050", "regnetx_002"])
def test_every_convolution_follows_the_rule(name: str, output_stride: int) -> None:
    coarse = build_backbone(name, output_stride=32, pretrained=False)
    fine = build_backbone(name, output_stride=output_stride, pretrained=False)
    strides = {}
    for path, module in coarse.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, output, path=path: strides.update({path: (inputs[0].shape[-1], output.shape[-1])})
            )
    with torch.no_grad():
        coarse.eval()(torch.zeros(1, 3, 128, 128))
    checked = 0
    for path, (before, after) in strides.items():
        was, now = coarse.get_submodule(path), fine.get_submodule(path)
        assert isinstance(was, nn.Conv2d)
        assert isinstance(now, nn.Conv2d)
        if was.kernel_size == (1, 1) and was.stride == (1, 1):  # gates also see maps of one sample
            assert (now.stride, now.dilation, now.padding) == ((1, 1), (1, 1), (0, 0))
            continue
        rate = max(1, 128 // before // output_stride) if was.kernel_size[0] > 1 else 1
        stride = min(128 // after, output_stride) // min(128 // before, output_stride)
        assert (now.dilation, now.stride) == ((rate, rate), (stride, stride)), path
        assert now.padding == (rate * (was.kernel_size[0] // 2),) * 2, path
        checked += 1
    assert checked > 10


def vgg_receptive_field_difference(name: str) -> float:
    """Computes `receptive_field_difference` for a VGG's conv5 at stride 8.

    The last pool comes after it, and is not dilated in the authors' network.
    """
    torch.manual_seed(0)
    state = randomise(build_backbone(name, output_stride=32, pretrained=False)).state_dict()
    images, maps = torch.randn(1, 3, 97, 97), {}
    for output_stride in (32, 8):
        net = plain(name, output_stride, state)
        last = list(net.get_submodule("stages.4").children())[-2]
        last.register_forward_hook(lambda _, __, out, key=output_stride: maps.update({key: out.clone()}))
        with torch.no_grad():
            net(images)
    assert spread(maps[32]) > 0.01
    assert [m.shape[-1] for m in maps.values()] == [7, 13]
    return float((maps[8][..., ::2, ::2] - maps[32]).abs().max() / maps[32].abs().max())


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_vggs_convolutions_keep_the_pretrained_receptive_field(name: str) -> None:
    assert vgg_receptive_field_difference(name) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_smps_rule_gives_smps_features(encoder: str, output_stride: int) -> None:
    torch.manual_seed(0)
    theirs = randomise(smp.encoders.get_encoder(encoder, output_stride=output_stride))
    ours = build_backbone(encoder, output_stride=output_stride, pretrained=False, dilation="smp").eval()
    ours.get_submodule("net").load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images)[-1], theirs(images)[-1], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [*QUICK, "vgg11", "mobilenet_v2", "tv-mobilenet_v3_large", "tv-densenet121"])
def test_low_level_features_have_stride_4(name: str) -> None:
    net = build_backbone(name, output_stride=16, pretrained=False).eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 64, 96))
    assert maps[net.low_level_index].shape[-2:] == (16, 24)
    assert [m.shape[1] for m in maps] == net.channels
    assert [64 // m.shape[-2] for m in maps] == net.strides


@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (2, 2), (3, 2)])
def test_atrous_means_meet_the_strided_ones(kernel: int, dilation: int, counts_padding: bool) -> None:
    x = torch.randn(1, 2, 12, 12)
    pool = AtrousAvgPool2d(kernel, dilation=dilation, counts_padding=counts_padding)
    coarse = x[..., ::dilation, ::dilation]
    expected = F.avg_pool2d(coarse, kernel, 1, kernel // 2, count_include_pad=counts_padding)
    if kernel == 2:  # only whole windows, the first of which begins at the border
        expected = expected[..., 1:-1, 1:-1]
    ours = pool(x)[..., ::dilation, ::dilation][..., : expected.shape[-2], : expected.shape[-1]]
    assert torch.allclose(ours, expected, atol=1e-6)


def test_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="dilation must be one of torchvision, smp, got 'keep'"):
        build_backbone("resnet18", output_stride=8, pretrained=False, dilation="keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dilation must be torchvision for vgg11, got smp"):
        build_backbone("vgg11", output_stride=8, pretrained=False, dilation="smp")
