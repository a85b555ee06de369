import pytest
import torch
from torch import nn

from deeplab_lightning import DeepLabV2, DeepLabV3
from deeplab_lightning.optimizers import PolyLR, parameter_groups


def test_groups_hold_every_parameter_once_with_its_multiplier() -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False)
    groups = parameter_groups(net, head_lr_multiplier=10, head_bias_lr_multiplier=20)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters())
    assert {g["name"]: g["lr_multiplier"] for g in groups} == {
        "backbone": 1, "backbone_no_decay": 1, "head": 10, "head_norm": 10, "head_bias": 20,
    }  # fmt: skip
    by_name = {g["name"]: g for g in groups}
    assert len(by_name["head_bias"]["params"]) == 1  # the classifier's; the others have norms instead
    assert all(p.ndim > 1 for name in ("backbone", "head") for p in by_name[name]["params"])


def test_biases_and_norms_have_no_decay() -> None:
    groups = parameter_groups(
        DeepLabV2(3, hidden_channels=8, pretrained=False), head_lr_multiplier=10, head_bias_lr_multiplier=20
    )
    assert {g["name"] for g in groups if g.get("weight_decay") == 0} == {"backbone_no_decay", "head_bias"}


def schedule(steps: int, **arguments: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = PolyLR(optimizer, steps, **arguments)  # type: ignore[arg-type]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_follows_its_formula() -> None:
    assert schedule(10) == pytest.approx([2 * (1 - step / 10) ** 0.9 for step in range(10)])


def test_warm_up_is_linear() -> None:
    rates = schedule(100, power=0.0, warmup_steps=4)
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match="less than the 5 steps of the training, got 9"):
        schedule(5, warmup_steps=9)
