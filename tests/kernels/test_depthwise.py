from typing import Any, cast

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3, DeepLabV3Plus
from deeplab_lightning.kernels import depthwise, speed_up
from deeplab_lightning.kernels.depthwise import DepthwiseConv2d, DepthwiseConv2dSame, use_depthwise_kernels


def leave_nan_behind() -> None:
    """Free memory full of nan, which a kernel that reads uninitialised memory then finds."""
    kept = [torch.full((size,), float("nan")) for power in range(8, 22) for size in (1 << power, 3 << power)]
    del kept


def gradients(layer: nn.Conv2d, x: Tensor, grad_output: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Compute the gradients with respect to the weights and to the input, in double precision for comparison."""
    x = x.to(torch.bfloat16 if precision == "true" else x.dtype).contiguous(memory_format=torch.channels_last)
    layer = layer.to(x.dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        y = layer(x)
    leave_nan_behind()
    y.backward(grad_output.to(y.dtype).contiguous(memory_format=torch.channels_last))
    assert layer.weight.grad is not None
    assert x.grad is not None
    return layer.weight.grad.double(), x.grad.double()


def test_gradients_of_maps_of_one_pixel_are_right_in_half_precision() -> None:
    """PyTorch's kernel reads uninitialised memory here, too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False))
    use_depthwise_kernels(net)
    layer = cast(nn.Conv2d, net[0])
    x, grad_output = torch.randn(2, 16, 3, 1).bfloat16().float(), torch.randn(2, 16, 2, 1).bfloat16().float()
    (expected,) = torch.autograd.grad(layer.double()(x.double()), layer.weight, grad_output.double())
    layer.float()
    for _ in range(3):
        layer.weight.grad = None
        weights, _ = gradients(layer, x, grad_output, "mixed")
        assert torch.allclose(weights, expected, atol=0.01 * float(expected.abs().max()))


def test_compiled_layers_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(16, 16, 3, padding=2, dilation=2, groups=16, bias=False)
    x, grad_output = torch.randn(2, 16, 12, 12), torch.randn(2, 16, 12, 12)
    expected, _ = gradients(layer, x, grad_output, "mixed")
    layer.weight.grad = None
    layer.compile(backend="eager")
    compiled, _ = gradients(layer, x, grad_output, "mixed")
    assert torch.allclose(compiled, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # deprecated by PyTorch, but users still export with it
def test_traced_layers_are_the_plain_ones() -> None:
    layer = DepthwiseConv2d(4, 4, 3, padding=9, dilation=9, groups=4)
    x = torch.randn(1, 4, 20, 20)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        assert "PythonOp" not in str(traced.graph)
        assert torch.allclose(traced(x), layer(x), atol=1e-6)
        assert torch.allclose(layer(x[0]), layer(x)[0], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["single", "mixed", "true"])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 2}),
        (nn.Conv2d, {"kernel_size": 5, "dilation": 4, "padding": 8, "bias": False}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 18, "padding": 18, "bias": False}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 40, "padding": 40}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": (7, 2), "padding": (7, 0)}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 3}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 5}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 2, "stride": 2}),
        (nn.Conv2d, {"kernel_size": 7, "padding": 3, "stride": (1, 2)}),
        (nn.Conv2d, {"kernel_size": (1, 5), "padding": (0, 2)}),
        (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}),
        (nn.Conv2d, {"kernel_size": 2, "stride": 2}),
        (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": "valid"}),
        (Conv2dSame, {"kernel_size": 5, "dilation": 2}),
        (Conv2dSame, {"kernel_size": 5, "stride": 2, "bias": False}),
    ],
)
def test_the_gradients_are_those_of_double_precision(kind: Any, arguments: dict[str, Any], precision: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(kind(48, 48, groups=48, **arguments))
    use_depthwise_kernels(net)
    layer = cast(nn.Conv2d, net[0])
    assert isinstance(layer, DepthwiseConv2d | DepthwiseConv2dSame)
    # bfloat16 holds these values exactly, so that only the arithmetic differs.
    layer.weight.data = layer.weight.data.bfloat16().float()
    reference = kind(48, 48, groups=48, **arguments).double()
    reference.weight.data = layer.weight.data.double()
    x = torch.randn(2, 48, 23, 30).bfloat16().float()
    grad_output = torch.randn(reference(x.double()).shape).bfloat16().float()
    x_reference = x.double().requires_grad_()
    reference(x_reference).backward(grad_output.double())
    for _ in range(3):
        layer.weight.grad = None
        weights, inputs = gradients(layer, x, grad_output, precision)
        for ours, theirs in ((weights, reference.weight.grad), (inputs, x_reference.grad)):
            assert theirs is not None
            limit = 1e-5 if precision == "single" else 1e-2
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < limit


@pytest.mark.parametrize("dilation", [2, 7, 12])
def test_the_forward_pass_is_the_plain_one(dilation: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation, groups=8)
    net = nn.Sequential(plain)
    use_depthwise_kernels(net)
    assert isinstance(net[0], DepthwiseConv2d)
    x = torch.randn(1, 8, 11, 13)
    for is_half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            assert torch.allclose(net(x), plain(x), atol=0.02 if is_half else 1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("dilation", [1, 2, 12])
def test_prediction_has_no_cost_of_gradients(
    kind: Any, dilation: int, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer called a function with gradients, which took up to a third of its time."""
    torch.manual_seed(0)
    plain = kind(8, 8, 3, padding=0 if kind is Conv2dSame else dilation, dilation=dilation, groups=8)
    net = nn.Sequential(plain)
    use_depthwise_kernels(net)
    assert type(net[0]) is not kind
    x = torch.randn(1, 8, 11, 13)
    net(x).sum().backward()
    monkeypatch.delattr(depthwise, "_DepthwiseConv")
    with pytest.raises(NameError):
        net(x)
    for is_half in (False, True):
        with mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            torch.testing.assert_close(net(x), plain(x), atol=0.02 if is_half else 1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch, on the layer that is kept
def test_only_depthwise_convolutions_are_replaced_and_outputs_stay() -> None:
    changed = [
        Conv2dSame(8, 8, 5, stride=1, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, 2, groups=8),
        Conv2dSame(8, 8, 3, stride=2, groups=8),
    ]
    kept = [nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 2, padding="same", groups=8)]
    net = nn.Sequential(*changed, *kept)
    x = torch.randn(1, 8, 37, 39)
    before, names, state = net(x), list(net.state_dict()), torch.get_rng_state()
    use_depthwise_kernels(net)
    kinds = [DepthwiseConv2d, DepthwiseConv2d, DepthwiseConv2d, DepthwiseConv2dSame, nn.Conv2d, nn.Conv2d]
    assert [type(layer) for layer in net] == kinds
    assert list(net.state_dict()) == names
    assert torch.allclose(net(x), before, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "net",
    [
        lambda: DeepLabV3(2, backbone="tf_efficientnet_lite0", aspp_channels=8, pretrained=False),
        lambda: DeepLabV3Plus(2, backbone="mobilenetv3_small_050", aspp_channels=8, separable=True, pretrained=False),
    ],
)
def test_a_network_has_plain_layers_until_speed_up_is_called(net: Any) -> None:
    built = net()
    assert not any(isinstance(m, DepthwiseConv2d | DepthwiseConv2dSame) for m in built.modules())
    speed_up(built)
    layers = [m for m in built.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert len(layers) > 10
    assert all(isinstance(layer, DepthwiseConv2d | DepthwiseConv2dSame) for layer in layers)
