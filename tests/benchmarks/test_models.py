"""Inference against torchvision's and smp's same networks, and validation of CamVid. `make bench`.

Every network is ours or theirs with random weights; each of theirs is measured in fp32 and bf16, contiguous
and channels-last, and compared by its fastest.
"""

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from deeplab_lightning import DeepLabV2, DeepLabV3
from deeplab_lightning.bands import resize, resized_labels
from tests.benchmarks.measure import alternating, write

NUM_CLASSES, REPEATS = 21, 3
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": False, "bf16": True}


def variants(name: str, net: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """A call per precision and layout."""
    net.eval()
    calls: dict[str, Callable[[], object]] = {}
    for layout, memory_format in LAYOUTS.items():
        for dtype, is_half in DTYPES.items():

            def call(memory_format: torch.memory_format = memory_format, is_half: bool = is_half) -> object:
                net.to(memory_format=memory_format)  # type: ignore[call-overload]
                given = images.contiguous(memory_format=memory_format)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                    return net(given)

            calls[f"{name} {dtype} {layout}"] = call
    return calls


@pytest.mark.parametrize("output_stride", [8, 16])
def test_inference_resnet50(output_stride: int, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(2, 3, 384, 384)
    ours = DeepLabV3(NUM_CLASSES, backbone="resnet50", output_stride=output_stride, pretrained=False)
    theirs: dict[str, nn.Module] = {
        "smp": smp.DeepLabV3(
            "resnet50",
            encoder_weights=None,
            classes=NUM_CLASSES,
            encoder_output_stride=output_stride,  # type: ignore[arg-type]
        ),
    }
    if output_stride == 8:
        theirs["torchvision"] = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES
        )
    calls = variants("ours", ours, images)
    for name, net in theirs.items():
        calls |= variants(name, net, images)
    seconds = alternating(calls, repeats=REPEATS)
    report(f"inference_resnet50_stride_{output_stride}", seconds, capsys)


def report(title: str, seconds: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """Print and write the ratio of their fastest to our fastest, which must not be slower."""
    best = {is_own: min(v for k, v in seconds.items() if k.startswith("ours") == is_own) for is_own in (True, False)}
    ratio = best[False] / best[True]
    with capsys.disabled():
        print(write(title, {"seconds": seconds, "times_faster_than_the_fastest_peer": ratio}))
    assert ratio >= 0.85, "slower than the stock path"


def test_v2_head_folded(capsys: pytest.CaptureFixture[str]) -> None:
    net = DeepLabV2(NUM_CLASSES, pretrained=False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(1, 3, 321, 321).contiguous(memory_format=torch.channels_last)
    head: Any = net.head

    def plain() -> object:
        with torch.no_grad():
            features = net.backbone(images)[-1]
            scores = [head.heads[0](branch(features)) for branch in head.branches]
            return resize(torch.stack(scores).sum(dim=0), (321, 321))

    def folded(is_half: bool) -> object:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return net(images)

    calls = {"plain fp32": plain, "ours fp32": lambda: folded(False), "ours bf16": lambda: folded(True)}
    report("inference_deeplabv2_vgg16", alternating(calls, repeats=REPEATS), capsys)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_labels_in_bands(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = torch.randn(4, NUM_CLASSES, 32, 32).contiguous(memory_format=LAYOUTS[layout])
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: resize(scores, (512, 512)).argmax(dim=1),
        "ours": lambda: resized_labels(scores, (512, 512)),
    }
    report(f"labels_{layout}", alternating(calls, repeats=7), capsys)
