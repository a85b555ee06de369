from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplab_lightning.models import atrous, packing
from deeplab_lightning.models.aspp import ConvNormReLU
from deeplab_lightning.models.atrous import AtrousConv2d
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.models.depthwise import DepthwiseConv2d
from deeplab_lightning.models.evaluation import EvaluationCopies
from deeplab_lightning.models.folding import norms_to_fold
from deeplab_lightning.models.onednn import has_onednn
from deeplab_lightning.models.packing import PackedConv2d, activations_to_fuse, pack_convolutions
from tests.models.references import randomise
from tests.models.test_folding import NETS

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not has_onednn(CPU, torch.float32), reason="no packed weights on this processor")
needs_half = pytest.mark.skipif(not has_onednn(CPU, torch.bfloat16), reason="no bfloat16 in oneDNN on this processor")


def conv(**arguments: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, 3, **arguments)


@needs_onednn
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
@pytest.mark.parametrize("arguments", [{}, {"stride": 2, "bias": False}, {"groups": 8, "dilation": 2, "padding": 2}])
def test_it_is_the_convolution_and_its_activation(activation: nn.Module, arguments: dict[str, Any]) -> None:
    layer = conv(**arguments)
    packed = PackedConv2d(layer, [activation])
    with torch.no_grad():
        for size in ((9, 11), (16, 7), (9, 11)):  # packed for the first size, right for all
            x = 5 * torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
            assert torch.allclose(packed(x), activation(layer(x)), atol=1e-5)
    assert packed._packed


@needs_half
def test_mixed_precision_gives_the_same_bits() -> None:
    layer = conv(padding=1)
    packed, x = PackedConv2d(layer, [nn.ReLU()]), torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
        assert torch.equal(packed(x), layer(x).relu())


@needs_half
@pytest.mark.parametrize(("member", "arguments"), NETS)
def test_whole_networks_give_the_same_bits_in_mixed_precision(
    member: Callable[..., DeepLab], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net = randomise(member(3, pretrained=False, **arguments)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluated = EvaluationCopies(net).make(net)
    assert evaluated is not None
    images = torch.randn(1, 3, 65, 97).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(evaluated(images), net(images))


def test_gradients_and_other_precisions_take_the_plain_way() -> None:
    layer = conv()
    packed, x = PackedConv2d(layer, [nn.ReLU()]), torch.randn(1, 8, 5, 5)
    assert torch.equal(packed(x), layer(x).relu())
    assert packed(x).requires_grad
    with torch.no_grad():
        assert torch.equal(packed.double()(x.double()), layer(x.double()).relu())
    assert not packed._packed


@needs_half
def test_large_dilations_are_taken_by_taps_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atrous, "_has_matrix_unit", lambda: True)
    torch.manual_seed(0)
    layer = AtrousConv2d(1024, 4, dilation=6, bias=True)
    taken: list[int] = []

    def spy(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        taken.append(dilation)
        return atrous.convolve_by_taps(x, weight, dilation)

    monkeypatch.setattr(packing, "convolve_by_taps", spy)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 1024, 7, 7)
        packed = PackedConv2d(layer, [nn.ReLU()])(x)
        assert torch.equal(packed, layer(x).relu())
    assert taken == [6]


@needs_half
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depthwise_convolutions_of_large_dilation_are_taken_apart(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(8, 8, 3, padding=9, dilation=9, groups=8, bias=False)
    packed, plain = PackedConv2d(layer, [nn.ReLU()]), nn.Conv2d(8, 8, 3, padding=9, dilation=9, groups=8, bias=False)
    plain.weight = layer.weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for size in ((20, 23), (31, 10), (5, 5)):
            x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
            assert torch.equal(packed(x), layer(x).relu())
            assert torch.allclose(packed(x).float(), plain(x).relu().float(), atol=1e-6, rtol=1e-2)


class Residual(nn.Module):
    """The second ReLU works in place, on a sum; a norm stands between the first convolution and the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvNormReLU(3, 4, kernel_size=3), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.after = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        y += x
        return self.act(self.last(self.after(y)))  # type: ignore[no-any-return]


def test_an_activation_of_a_sum_is_not_the_convolutions() -> None:
    torch.manual_seed(0)
    net = Residual().eval()
    assert activations_to_fuse(net) == [("last", "act")]
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(images)
        pack_convolutions(net, norms_to_fold(net), activations_to_fuse(net))
        assert torch.allclose(net(images), expected, atol=1e-6)
    assert isinstance(net.act, nn.Identity)
    assert isinstance(net.after, nn.ReLU)
