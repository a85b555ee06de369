"""Peak memory of a training step with the loss in bands, each in a process of its own. `make bench`."""

import subprocess
import sys
from typing import Any

import pytest

from tests.benchmarks.measure import write

STEP = """
import resource, sys, torch
from deeplab_lightning import DeepLabV3
from deeplab_lightning.losses import CrossEntropyLoss

band_rows = int(sys.argv[1]) or None
net = DeepLabV3(150, backbone="tf_efficientnet_lite0", pretrained=False).to(memory_format=torch.channels_last)
images = torch.randn(4, 3, 512, 512).contiguous(memory_format=torch.channels_last)
mask = torch.randint(0, 150, (4, 512, 512))
loss = CrossEntropyLoss(band_rows=band_rows)
with torch.autocast("cpu", torch.bfloat16):
    value = loss(net(images) if band_rows is None else net.scores(images), mask)
value.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_loss_in_bands(capsys: pytest.CaptureFixture[str]) -> None:
    megabytes = {rows: _peak(rows) for rows in (0, 32)}
    baseline = float(subprocess.check_output([sys.executable, "-c", IMPORTS], text=True))
    figures: dict[str, Any] = {
        "work": "training step, DeepLabV3 tf_efficientnet_lite0, 150 classes, 512x512, batch 4, bf16-mixed",
        "plain_megabytes": megabytes[0],
        "bands_megabytes": megabytes[32],
        "imports_alone_megabytes": baseline,
        "ratio": (megabytes[32] - baseline) / (megabytes[0] - baseline),
        "ratio_with_imports": megabytes[32] / megabytes[0],
    }
    with capsys.disabled():
        print(write("memory", figures))
    assert figures["ratio"] <= 0.5


IMPORTS = """
import resource
import deeplab_lightning.models.deeplab, deeplab_lightning.losses
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def _peak(band_rows: int) -> float:
    return float(subprocess.check_output([sys.executable, "-c", STEP, str(band_rows)], text=True))
