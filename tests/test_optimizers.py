from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from deeplab_lightning import DeepLabV2, DeepLabV3, SegmentationModule
from deeplab_lightning.optimizers import PolyLR, parameter_groups
from tests.conftest import noise_config
from tests.processes import run_program
from tests.test_module import tiny_data, trainer

MULTIPLIERS: dict[str, Any] = {"head_lr_multiplier": 10.0, "head_bias_lr_multiplier": 20.0}


def test_groups_hold_every_parameter_once_with_its_multiplier() -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
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


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_of_the_network_change_no_group(wrap: Callable[[nn.Module], Any]) -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    expected, groups = (
        {g["name"]: ([id(p) for p in g["params"]], g["lr_multiplier"]) for g in parameter_groups(n, **MULTIPLIERS)}
        for n in (net, wrap(net))
    )
    assert groups == expected


def test_a_module_of_a_compiled_network_trains_the_backbone_at_its_own_rate() -> None:
    net: Any = torch.compile(DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False))
    optimizer: Any = SegmentationModule(net, lr_scheduler=None).configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in net.backbone.parameters()} == {0.01}
    assert {rates[id(p)] for p in net.head.parameters()} == {0.1, 0.2}


class Unfreeze(BaseFinetuning):
    """Freezes the backbone for one epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.backbone, optimizer)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The provided params to be frozen already exist"
)  # Lightning's: they are wanted there
def test_a_backbone_that_is_unfrozen_later_trains_at_its_own_rate(mask_folder: Path) -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    module, before = SegmentationModule(net), deepcopy(net.backbone.state_dict())
    changed, names = [], []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            # Without the norms, which BaseFinetuning lets train by default.
            weights = {name: weight for name, weight in net.backbone.named_parameters() if weight.ndim > 1}
            changed.append(any(not torch.equal(weight, before[name]) for name, weight in weights.items()))
            names.append([(group.get("name"), len(group["params"])) for group in trainer.optimizers[0].param_groups])

    callbacks = [Unfreeze(), Watch()]
    trainer(mask_folder, max_epochs=2, callbacks=callbacks).fit(module, datamodule=tiny_data(mask_folder))
    assert changed == [False, True]
    assert names[0] == names[1]
    assert sum(number for _, number in names[0]) == len(list(net.parameters()))


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


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "vgg11"])
def test_stages_of_the_backbone_have_falling_rates(backbone: str) -> None:
    net = DeepLabV3(3, backbone=backbone, aspp_channels=8, pretrained=False)
    groups = parameter_groups(net, **MULTIPLIERS, backbone_lr_decay=0.5)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters())
    rates = {id(p): g["lr_multiplier"] for g in groups for p in g["params"]}
    names = {name: rates[id(p)] for name, p in net.backbone.named_parameters()}
    ordered = list(names.values())  # modules are in the order of the computation
    assert ordered == sorted(ordered)
    assert (min(ordered), max(ordered)) == (0.5 ** (len(net.backbone.channels) - 1), 1)
    assert {rates[id(p)] for p in net.head.parameters()} == {10, 20}
    plain = {id(p): g.get("weight_decay") for g in parameter_groups(net, **MULTIPLIERS) for p in g["params"]}
    assert {id(p): g.get("weight_decay") for g in groups for p in g["params"]} == plain


def test_the_decay_is_that_of_the_module_and_its_schedule() -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    module = SegmentationModule(net, lr_scheduler=None, backbone_lr_decay=0.8)
    rates = {group["name"]: group["lr"] for group in module.build_optimizer().param_groups}
    last = len(net.backbone.channels)
    assert rates[f"backbone_stage_{last}"] == pytest.approx(0.01)
    assert rates[f"backbone_stage_{last - 1}"] == pytest.approx(0.008)
    assert rates["head"] == pytest.approx(0.1)


@pytest.mark.long
def test_rates_grow_with_the_images_per_step_of_all_processes(mask_folder: Path) -> None:
    """By the real command: batches of 2, in two processes, accumulated twice, for rates that are meant for 4 images."""
    trainer = {"max_epochs": 1, "num_sanity_val_steps": 0, "accumulate_grad_batches": 2}
    config = noise_config(mask_folder, trainer={**trainer, "devices": 2, "strategy": "ddp"})
    optimizer = {"class_path": "SGD", "init_args": {"lr": 0.01}}
    config["model"] |= {"lr_scheduler": None, "optimizer": optimizer, "base_batch_size": 4}
    (mask_folder / "c.yaml").write_text(yaml.safe_dump(config))
    run_program("fit", "-c", str(mask_folder / "c.yaml"), "--name", "run", check=True)
    last = torch.load(mask_folder / "runs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    rates = {group["name"]: group["lr"] for group in last["optimizer_states"][0]["param_groups"]}
    assert rates["backbone"] == pytest.approx(0.02)
    assert rates["head"] == pytest.approx(0.2)
