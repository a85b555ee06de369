import inspect
from collections.abc import Callable
from typing import Any, cast

import docstring_parser
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deeplab_lightning import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus, SegmentationModule
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.models.deeplab import DeepLab, TrainingLogits
from deeplab_lightning.resizing import resize
from tests.models.references import randomise, written_out_v3plus

MEMBERS: list[tuple[Callable[..., DeepLab], dict[str, Any]]] = [
    (DeepLabV1, {"backbone": "vgg11", "hidden_channels": 16}),
    (DeepLabV2, {"backbone": "vgg16", "hidden_channels": 16}),
    (DeepLabV2, {"backbone": "vgg16", "hidden_channels": 16, "share_head": False}),
    (DeepLabV2, {"backbone": "resnet18", "hidden_channels": 16}),
    (DeepLabV2, {"backbone": "caffe_resnet50", "hidden_channels": None, "dilation": "smp"}),
    (DeepLabV3, {"backbone": "resnet18", "aspp_channels": 16}),
    (DeepLabV3Plus, {"backbone": "resnet18", "aspp_channels": 16}),
    (DeepLabV3Plus, {"backbone": "convnext_atto", "aspp_channels": 16, "separable": True}),
    (DeepLabV3, {"backbone": "vgg16_bn", "aspp_channels": 16, "output_stride": 8}),
    (DeepLabV3, {"backbone": "tf_efficientnet_lite0", "aspp_channels": 16, "output_stride": 32}),
]


@pytest.mark.long
@pytest.mark.parametrize(("member", "arguments"), MEMBERS)
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_logits_have_the_size_of_the_input(
    member: Callable[..., DeepLab], arguments: dict[str, Any], size: tuple[int, int]
) -> None:
    net = member(3, pretrained=False, **arguments)
    assert net(torch.randn(1, 3, *size)).shape == (1, 3, *size)  # a batch of one, in training


@pytest.mark.long
@pytest.mark.parametrize(("member", "arguments"), MEMBERS)
def test_gradient_reaches_every_parameter(member: Callable[..., DeepLab], arguments: dict[str, Any]) -> None:
    net = member(3, pretrained=False, dropout=0.0, **arguments)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    net(torch.randn(2, 3, 65, 65)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.long
def test_v2_returns_321_for_321() -> None:
    net = DeepLabV2(2, hidden_channels=8, pretrained=False).eval()
    with torch.no_grad():
        assert net.backbone(torch.zeros(1, 3, 321, 321))[-1].shape == (1, 512, 41, 41)
        assert net(torch.zeros(1, 3, 321, 321)).shape == (1, 2, 321, 321)


def test_v2_has_the_papers_parameters() -> None:
    # VGG-16's 13 convolutions; per branch fc6 3x3x512x1024 + 1024; fc7 1024x1024 + 1024; classifier 1024x21 + 21.
    vgg, fc6, fc7, classifier = 14_714_688, 3 * 3 * 512 * 1024 + 1024, 1024 * 1024 + 1024, 1024 * 21 + 21
    for share_head, heads in ((True, 1), (False, 4)):
        net = DeepLabV2(21, share_head=share_head, pretrained=False)
        assert sum(p.numel() for p in net.parameters()) == vgg + 4 * fc6 + heads * (fc7 + classifier)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_v3_rates_follow_the_output_stride(output_stride: int, rates: list[int]) -> None:
    net = DeepLabV3(3, backbone="resnet18", output_stride=output_stride, pretrained=False)
    dilated = [m for m in net.head.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert [m.dilation[0] for m in dilated] == rates
    assert all(m.padding == m.dilation for m in dilated)


@pytest.mark.long
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


def test_v1_has_the_papers_parameters() -> None:
    # VGG-16's 13 convolutions; fc6 3x3x512x1024, fc7 1024x1024, classifier 1024x21, with biases: LargeFOV's 20.5 M.
    net = DeepLabV1(21, pretrained=False)
    assert sum(p.numel() for p in net.parameters()) == 14_714_688 + 4_719_616 + 1_049_600 + 21_525
    fc6 = cast(nn.Conv2d, net.head.get_submodule("branches.0.0"))
    assert (fc6.kernel_size, fc6.dilation, fc6.padding) == ((3, 3), (12, 12), (12, 12))


@pytest.mark.long
@pytest.mark.parametrize(("output_stride", "dilations"), [(8, [4, 8, 16]), (16, [2, 4, 8]), (32, [1, 2, 4])])
def test_multi_grid_gives_the_rates_of_the_paper(output_stride: int, dilations: list[int]) -> None:
    """DeepLab v3, section 3.2.1: at stride 16 the rates of block 4 are 2 * (1, 2, 4)."""
    net = DeepLabV3(
        2, backbone="resnet50", output_stride=output_stride, multi_grid=(1, 2, 4), aspp_channels=8, pretrained=False
    ).eval()
    stage = net.backbone.get_submodule("net.layer4")
    layers = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3]
    assert [(m.dilation[0], m.padding[0]) for m in layers] == [(rate, rate) for rate in dilations]
    with torch.no_grad():
        logits = net.coarse_logits(torch.zeros(1, 3, 65, 97))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape[-2:] == (-(-65 // output_stride), -(-97 // output_stride))  # rounded up


def test_multi_grid_needs_a_stage_of_as_many_blocks() -> None:
    for backbone, factors in (("vgg11", (1, 2, 4)), ("resnet50", (1, 2)), ("resnet50", (0, 1, 2))):
        with pytest.raises(ValueError, match="multi_grid .* needs a ResNet"):
            DeepLabV3(2, backbone=backbone, multi_grid=factors, pretrained=False)


def test_v3plus_decodes_at_stride_4() -> None:
    net = DeepLabV3Plus(3, backbone="resnet50", aspp_channels=16, pretrained=False).eval()
    seen = {}
    for name in ("aspp", "reduce", "refine"):
        net.head.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
    with torch.no_grad():
        net(torch.zeros(1, 3, 65, 97))
    assert seen == {"aspp": (1, 16, 5, 7), "reduce": (1, 48, 17, 25), "refine": (1, 16, 17, 25)}
    assert [m.in_channels for m in net.head.get_submodule("reduce").modules() if isinstance(m, nn.Conv2d)] == [256]


def test_v3plus_equals_the_paper_written_out() -> None:
    torch.manual_seed(0)
    net = randomise(DeepLabV3Plus(3, backbone="resnet18", aspp_channels=16, pretrained=False))
    images = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        assert torch.allclose(net(images), written_out_v3plus(net, images), atol=1e-5)


def test_separable_convolutions_save_most_parameters_of_the_head() -> None:
    full, light = (
        sum(p.numel() for p in DeepLabV3Plus(3, backbone="resnet18", separable=s, pretrained=False).head.parameters())
        for s in (False, True)
    )
    assert light < full / 4


def test_the_auxiliary_head_has_a_loss_in_training_and_is_unused_in_inference() -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, auxiliary_weight=0.4, pretrained=False)
    output = net(torch.randn(2, 3, 65, 47))
    assert isinstance(output, TrainingLogits)
    assert [(weight, logits.shape) for weight, logits in output.auxiliary] == [(0.4, (2, 3, 65, 47))]
    module, mask = SegmentationModule(net), torch.randint(0, 3, (2, 65, 47))
    batch = Batch(torch.zeros(2, 3, 65, 47, dtype=torch.uint8), mask, ["a", "b"], [(65, 47)] * 2)
    for dropout in (m for m in net.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    loss, coarse_logits = module.compute_loss(batch)
    output = module(batch.image)
    [(_, auxiliary)] = output.auxiliary
    expected = F.cross_entropy(output.logits, mask) + 0.4 * F.cross_entropy(auxiliary, mask)
    assert torch.allclose(loss, expected, atol=1e-5)
    assert torch.equal(resize(coarse_logits, (65, 47)), output.logits)
    loss.backward()
    assert net.auxiliary is not None
    assert all(p.grad is not None and p.grad.any() for p in net.auxiliary.parameters())
    assert isinstance(net.eval()(torch.zeros(1, 3, 33, 33)), torch.Tensor)


def test_v1_is_fc6_and_fc7_with_a_relu_after_each_and_a_classifier() -> None:
    net = DeepLabV1(3, backbone="vgg11", hidden_channels=16, pretrained=False).eval()
    head = cast(Any, net.head)
    fc6, (fc7, _, _, classifier) = head.branches[0][0], head.heads[0]
    with torch.no_grad():
        fc7.bias.fill_(-0.1)
        features = cast(nn.Module, net.backbone)(torch.randn(1, 3, 40, 40))[-1]
        expected = classifier(F.relu(fc7(F.relu(fc6(features)))))
        assert torch.allclose(head(features), expected, atol=1e-6)
        assert not torch.allclose(classifier(fc7(F.relu(fc6(features)))), expected, atol=1e-4)


def test_every_scale_has_a_loss_in_training() -> None:
    net = DeepLabV2(3, backbone="resnet18", hidden_channels=None, scales=(1.0, 0.5), pretrained=False)
    output = net(torch.randn(2, 3, 65, 47))
    assert isinstance(output, TrainingLogits)
    assert [weight for weight, _ in output.auxiliary] == [1.0, 1.0]
    with torch.no_grad():
        net.eval()
        images = torch.randn(1, 3, 65, 47)
        small = F.interpolate(images, size=(32, 23), mode="bilinear", align_corners=False)
        logits = [net.decode(net.backbone(x)) for x in (images, small)]
        logits[1] = F.interpolate(logits[1], size=logits[0].shape[-2:], mode="bilinear", align_corners=False)
        fused = torch.maximum(*logits)
        expected = F.interpolate(fused, size=(65, 47), mode="bilinear", align_corners=False)
        assert torch.allclose(net(images), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"scales": ()}, "scales must be one or more positive factors"), ({"scales": (0.0, 1.0)}, r"got \[0.0, 1.0\]")],
)
def test_bad_scales_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLabV2(2, backbone="resnet18", hidden_channels=8, pretrained=False, **arguments)


def test_arguments_of_several_members_have_the_same_description() -> None:
    """Except where the members differ: v2 has other rates, and only v2 can do without fc6 and fc7."""
    texts: dict[str, set[str | None]] = {}
    for member in (DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus):
        for argument in docstring_parser.parse(inspect.getdoc(member) or "").params:
            texts.setdefault(argument.arg_name, set()).add(argument.description)
    differing = {name for name, descriptions in texts.items() if len(descriptions) > 1}
    assert differing == {"atrous_rates", "hidden_channels", "dropout"}
    assert all(len(texts[name]) == 2 for name in differing)  # dropout: v1 and v2, v3 and v3+


@pytest.mark.parametrize("max_size", [None, 64])
def test_predict_finds_the_highest_logits_without_all_of_them_at_once(
    monkeypatch: pytest.MonkeyPatch, max_size: int | None
) -> None:
    torch.manual_seed(0)
    net = DeepLabV3(21, backbone="test_resnet", aspp_channels=8, pretrained=False)
    randomise(net)
    net.preprocess.max_size = max_size
    images = torch.randint(0, 256, (2, 3, 70, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = net.eval()(images).argmax(dim=1)
    largest = 0

    def interpolate(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        result: torch.Tensor = original(*args, **kwargs)
        if result.shape[-2:] == images.shape[-2:]:
            largest = max(largest, result.shape[1])
        return result

    original = F.interpolate
    monkeypatch.setattr(F, "interpolate", interpolate)
    monkeypatch.setattr("deeplab_lightning.resizing._MAX_BYTES", 2 * 70 * 96 * 4 * 5)  # of five classes
    assert torch.equal(net.predict(images), expected)
    assert largest == 5
    assert expected.unique().numel() > 2
