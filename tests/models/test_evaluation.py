import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.models.evaluation import EvaluationCopies
from deeplab_lightning.models.packing import PackedConv2d
from tests.models.references import randomise, spread
from tests.models.test_folding import NETS


@pytest.mark.parametrize(("member", "arguments"), NETS)
def test_copies_give_the_same_logits(member: Callable[..., DeepLab], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = randomise(member(3, pretrained=False, **arguments))
    exact, evaluated = copy.deepcopy(net).double(), EvaluationCopies(net).make(net)
    assert sum(isinstance(module, PackedConv2d) for module in evaluated.modules()) > 10
    assert not any(isinstance(module, nn.BatchNorm2d) for module in evaluated.modules())
    with torch.no_grad():
        for size in ((65, 97), (64, 64)):
            images = torch.randn(1, 3, *size)
            truth, stock, ours = exact(images.double()), net(images), evaluated(images)
            assert spread(truth) > 0.01
            rounding = float((stock - truth).abs().max())  # random norms amplify it
            assert float((ours - truth).abs().max()) <= 3 * rounding + 1e-6


def test_a_copy_has_the_weights_of_its_time() -> None:
    net = randomise(DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False))
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():  # as Lightning evaluates
        copies = EvaluationCopies(net)
        first = copies.make(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in first.modules())
    with torch.no_grad():
        before = net(images)
        for parameter in net.parameters():
            parameter.mul_(1.1)
        assert torch.allclose(first(images), before, atol=1e-4)
        assert torch.allclose(copies.make(net)(images), net(images), atol=1e-4)
        assert not torch.allclose(net(images), before, atol=1e-2)


class Sneaky(nn.Module):
    """Uses what the convolution gives outside of layers too, where nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.sigmoid() + self.norm(x)  # type: ignore[no-any-return]


def test_networks_that_cannot_be_seen_through_stay_right() -> None:
    torch.manual_seed(0)
    net = randomise(Sneaky())
    images = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        assert torch.allclose(EvaluationCopies(net).make(net)(images), net(images), atol=1e-5)


def test_the_network_itself_is_left_as_it_is() -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False)
    net.backbone.eval()
    before = [(name, type(module), module.training) for name, module in net.named_modules()]
    EvaluationCopies(net).make(net)
    assert [(name, type(module), module.training) for name, module in net.named_modules()] == before
