from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3, DeepLabV3Plus
from deeplab_lightning.models.depthwise import AtrousDepthwiseConv2d, mend_depthwise


def leave_nan_behind() -> None:
    """Free memory full of nan: what a kernel reads that reads what nobody wrote."""
    kept = [torch.full((size,), float("nan")) for power in range(8, 22) for size in (1 << power, 3 << power)]
    del kept


def gradients(layer: nn.Conv2d, x: Tensor, outer: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Of the weights and of the input."""
    x = x.to(torch.bfloat16 if precision == "true" else x.dtype).contiguous(memory_format=torch.channels_last)
    layer = layer.to(x.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        y = layer(x)
    leave_nan_behind()
    y.backward(outer.to(y.dtype).contiguous(memory_format=torch.channels_last))
    assert layer.weight.grad is not None
    assert x.grad is not None
    return layer.weight.grad.double(), x.grad.double()


@pytest.mark.parametrize("precision", ["single", "mixed", "true"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 4)])
def test_the_gradients_are_those_of_double_precision(kernel: int, dilation: int, precision: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": 48}
    layer = AtrousDepthwiseConv2d(48, 48, kernel, **arguments)
    # Values that bfloat16 holds exactly, so that what is compared is the arithmetic.
    layer.weight.data = layer.weight.data.bfloat16().float()
    x, outer = (torch.randn(2, 48, 23, 30).bfloat16().float() for _ in range(2))
    reference = nn.Conv2d(48, 48, kernel, **arguments).double()
    reference.weight.data = layer.weight.data.double()
    x_reference = x.double().requires_grad_()
    reference(x_reference).backward(outer.double())
    for _ in range(3):
        layer.weight.grad = None
        weights, inputs = gradients(layer, x, outer, precision)
        for ours, theirs in ((weights, reference.weight.grad), (inputs, x_reference.grad)):
            assert theirs is not None
            limit = 1e-5 if precision == "single" else 1e-2
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < limit


def test_the_forward_pass_is_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
    net = nn.Sequential(plain)
    mend_depthwise(net)
    assert isinstance(net[0], AtrousDepthwiseConv2d)
    x = torch.randn(1, 8, 11, 13)
    for is_half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            assert torch.allclose(net(x), plain(x), atol=0.02 if is_half else 0)


def test_only_dilated_depthwise_convolutions_of_stride_1_change() -> None:
    same = Conv2dSame(8, 8, 5, stride=1, dilation=2, groups=8, bias=False)
    kept = [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, 2, groups=8),
    ]
    net = nn.Sequential(same, *kept)
    x = torch.randn(1, 8, 17, 19)
    before, names = net(x), list(net.state_dict())
    mend_depthwise(net)
    assert [type(layer) for layer in net] == [AtrousDepthwiseConv2d, nn.Conv2d, nn.Conv2d, nn.Conv2d]
    assert list(net.state_dict()) == names
    assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    "net",
    [
        lambda: DeepLabV3(2, backbone="tf_efficientnet_lite0", aspp_channels=8, pretrained=False),
        lambda: DeepLabV3Plus(2, backbone="mobilenetv3_small_050", aspp_channels=8, separable=True, pretrained=False),
    ],
)
def test_networks_have_no_plain_dilated_depthwise_convolution(net: Any) -> None:
    layers = [m for m in net().modules() if isinstance(m, nn.Conv2d) and m.groups > 1 and m.dilation[0] > 1]
    assert len(layers) > 2
    assert all(isinstance(layer, AtrousDepthwiseConv2d) for layer in layers)
