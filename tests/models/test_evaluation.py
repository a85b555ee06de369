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


def has_no_norm_of_its_own(net: nn.Module) -> bool:
    """Whether every norm is a part of a convolution."""
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return all(isinstance(net.get_submodule(n.rpartition(".after.")[0]), PackedConv2d) for n in norms)


@pytest.mark.parametrize(("member", "arguments"), NETS)
def test_copies_give_the_same_logits(member: Callable[..., DeepLab], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = randomise(member(3, pretrained=False, **arguments))
    exact, evaluated = copy.deepcopy(net).double(), EvaluationCopies(net).make(net)
    assert evaluated is not None
    assert sum(isinstance(module, PackedConv2d) for module in evaluated.modules()) > 10
    assert has_no_norm_of_its_own(evaluated)
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
    assert first is not None
    assert has_no_norm_of_its_own(first)
    with torch.no_grad():
        before = net(images)
        for parameter in net.parameters():
            parameter.mul_(1.1)
        assert torch.allclose(first(images), before, atol=1e-4)
        second = copies.make(net)
        assert second is not None
        assert torch.allclose(second(images), net(images), atol=1e-4)
        assert not torch.allclose(net(images), before, atol=1e-2)


class Sneaky(nn.Module):
    """Uses what the convolution gives outside of layers too, where nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.sigmoid() + self.norm(x)  # type: ignore[no-any-return]


class Keeping(nn.Sequential):
    """Keeps a tensor of its training, which cannot be copied."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x)
        return self.kept  # type: ignore[no-any-return]


class Picky(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 33, "only pictures of 33 pixels"
        return super().forward(x)  # type: ignore[no-any-return]


def test_a_wrong_copy_is_found_out_while_the_norms_have_learnt_nothing_yet() -> None:
    net = Sneaky().eval()
    assert EvaluationCopies(net).make(net) is None


def test_networks_that_cannot_be_copied_or_probed_evaluate_as_they_are() -> None:
    keeping = Keeping(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    copies = EvaluationCopies(keeping)
    assert copies.make(keeping) is not None
    keeping(torch.randn(2, 3, 9, 9))
    assert copies.make(keeping) is None
    assert EvaluationCopies(keeping).make(keeping) is None
    picky = Picky(nn.Conv2d(3, 4, 3))
    assert EvaluationCopies(picky).make(picky) is None


def test_the_network_itself_is_left_as_it_is() -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False)
    net.backbone.eval()
    before = [(name, type(module), module.training) for name, module in net.named_modules()]
    EvaluationCopies(net).make(net)
    assert [(name, type(module), module.training) for name, module in net.named_modules()] == before
