from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplab_lightning import DeepLabV2, DeepLabV3, DeepLabV3Plus
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.models.folding import fold_batch_norms, norms_to_fold
from tests.models.references import randomise

NETS: list[tuple[Callable[..., DeepLab], dict[str, Any]]] = [
    (DeepLabV3, {"backbone": "resnet18"}),
    (DeepLabV3Plus, {"backbone": "tf_efficientnet_lite0", "separable": True}),
    (DeepLabV3, {"backbone": "mobilenetv3_small_050", "output_stride": 8}),
    (DeepLabV2, {"backbone": "vgg11_bn", "hidden_channels": 16, "scales": (0.5, 1.0)}),
    (DeepLabV3, {"backbone": "convnext_atto"}),
]


def num_norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(("member", "arguments"), NETS)
def test_folded_networks_give_the_same_logits(member: Callable[..., DeepLab], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = randomise(member(3, pretrained=False, **arguments)).double()
    folded = fold_batch_norms(net)
    assert num_norms(net) > 5
    assert num_norms(folded) == 0
    with torch.no_grad():
        images = torch.randn(1, 3, 65, 97, dtype=torch.float64)
        assert torch.allclose(folded(images), net(images), rtol=1e-9, atol=1e-12)


class _Others(nn.Module):
    """Norms that must not be folded: of a convolution that is also used elsewhere, and of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.seen, self.beside = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.left, self.right, self.shared = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.alone(x))
        x = self.seen(x) + self.beside(x)
        return self.shared(self.left(x)) + self.shared(self.right(x))  # type: ignore[no-any-return]


def test_norms_that_are_not_one_convolutions_alone_stay() -> None:
    torch.manual_seed(0)
    net = randomise(_Others())
    folded = fold_batch_norms(net)
    assert num_norms(folded) == num_norms(net) == 3
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(folded(images), net(images))


class Standardised(nn.Conv2d):
    """Does something of its own with its weights."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def test_convolutions_of_other_classes_keep_their_norms() -> None:
    net = nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    assert norms_to_fold(net) == [("2", "3")]
