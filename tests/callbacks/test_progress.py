from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.callbacks.progress import NetworkLine


def test_the_line_counts_what_the_network_multiplies(capsys: pytest.CaptureFixture[str]) -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False)
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
    NetworkLine().on_fit_start(cast(Any, SimpleNamespace(is_global_zero=True)), module)
    total, frozen = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (net, net.backbone))
    line = (
        f"DeepLabV3: {total:.1f} M parameters, {frozen:.1f} M of them frozen; {macs / 1e9:.1f} G multiply-adds for an "
        "image of 512x512."
    )
    assert capsys.readouterr().out == f"{line}\n"
    net.backbone.imagenet_weights = "resnet18.a1_in1k"
    NetworkLine().on_fit_start(cast(Any, SimpleNamespace(is_global_zero=True)), module)
    assert capsys.readouterr().out == f"{line} ImageNet weights: resnet18.a1_in1k.\n"
