from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from deeplab_lightning import DeepLabV2, DeepLabV3, SegmentationModule
from deeplab_lightning.callbacks.progress import NetworkLine
from tests.test_module import tiny_data, trainer


def test_the_line_counts_what_the_network_multiplies(capsys: pytest.CaptureFixture[str]) -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    macs = 0

    def count(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(layer, torch.nn.Conv2d)
        macs += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 512, 512))
    for hook in hooks:
        hook.remove()
    for parameter in net.backbone.parameters():
        parameter.requires_grad_(False)
    module = SegmentationModule(net)
    NetworkLine().on_fit_start(cast(Any, SimpleNamespace(is_global_zero=False)), module)
    assert capsys.readouterr().out == ""
    NetworkLine().on_fit_start(cast(Any, SimpleNamespace(is_global_zero=True, optimizers=[])), module)
    total, frozen = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (net, net.backbone))
    line = (
        f"DeepLabV3: {total:.1f} M parameters, {frozen:.1f} M of them frozen; {macs / 1e9:.1f} G multiply-adds for an "
        "image of 512x512."
    )
    assert capsys.readouterr().out == f"{line}\n"
    net.backbone.imagenet_weights = "resnet18.a1_in1k"
    NetworkLine().on_fit_start(cast(Any, SimpleNamespace(is_global_zero=True, optimizers=[])), module)
    assert capsys.readouterr().out == f"{line} ImageNet weights: resnet18.a1_in1k.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"optimizer": partial(torch.optim.SGD, lr=0.005)},
            "SGD with learning rates backbone 0.005, head 0.05, head biases 0.1; PolyLR per step.",
        ),
        (
            {
                "optimizer": partial(torch.optim.AdamW, lr=0.0015),
                "lr_scheduler": CosineLRScheduler,
                "head_lr_multiplier": 2.0,
                "head_bias_lr_multiplier": 2.0,
            },
            "AdamW with learning rates backbone 0.0015, head 0.003; CosineLRScheduler per epoch.",
        ),
        (
            {"lr_scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1), "head_lr_multiplier": 3.0},
            "SGD with learning rates backbone 0.1, head 0.3, head biases 2; OneCycleLR per step.",
        ),
        (
            {"lr_scheduler": None},
            "SGD with learning rates backbone 0.01, head 0.1, head biases 0.2; constant.",
        ),
    ],
)
def test_a_training_says_the_rates_of_its_parts(
    arguments: dict[str, Any], line: str, mask_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = DeepLabV2(3, backbone="test_resnet", hidden_channels=None, scales=[1.0], pretrained=False)
    fit = trainer(mask_folder, max_epochs=1, limit_train_batches=1, limit_val_batches=0, callbacks=[NetworkLine()])
    fit.fit(SegmentationModule(net, **arguments), datamodule=tiny_data(mask_folder))
    assert line in capsys.readouterr().out.splitlines()
