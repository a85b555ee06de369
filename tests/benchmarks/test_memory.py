"""Peak memory of a training step by the loss, each in a process of its own. `make bench`."""

import subprocess
import sys
from typing import Any

import pytest

from tests.benchmarks.measure import write

STEP = """
import resource, sys, torch
from deeplab_lightning import DeepLabV3
from deeplab_lightning.losses import CrossEntropyLoss

net = DeepLabV3(150, backbone="tf_efficientnet_lite0", pretrained=False).to(memory_format=torch.channels_last)
images = torch.randn(4, 3, 512, 512).contiguous(memory_format=torch.channels_last)
mask = torch.randint(0, 150, (4, 512, 512))
loss = CrossEntropyLoss()
with torch.autocast("cpu", torch.bfloat16):
    value = loss(net.coarse_logits(images) if sys.argv[1] == "tiles" else net(images), mask)
value.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_loss_in_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    megabytes = {how: _peak(how) for how in ("plain", "tiles")}
    baseline = float(subprocess.check_output([sys.executable, "-c", IMPORTS], text=True))
    figures: dict[str, Any] = {
        "work": "training step, DeepLabV3 tf_efficientnet_lite0, 150 classes, 512x512, batch 4, bf16-mixed",
        "plain_megabytes": megabytes["plain"],
        "tiles_megabytes": megabytes["tiles"],
        "imports_alone_megabytes": baseline,
        "ratio": (megabytes["tiles"] - baseline) / (megabytes["plain"] - baseline),
        "ratio_with_imports": megabytes["tiles"] / megabytes["plain"],
    }
    with capsys.disabled():
        print(write("memory", figures))
    assert figures["ratio"] <= 0.5


IMPORTS = """
import resource
import deeplab_lightning.models.deeplab, deeplab_lightning.losses
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def _peak(how: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", STEP, how], text=True))
