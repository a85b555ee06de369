"""Prediction by OpenVINO and ONNX Runtime beside PyTorch with our kernels, on one core. `make bench`."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import work
from tests.benchmarks.measure import alternating, write

NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "v3plus_lite0_separable": ("DeepLabV3Plus", {"backbone": "tf_efficientnet_lite0", "separable": True}, 2, 512),
    "v3_resnet50": ("DeepLabV3", {"backbone": "resnet50"}, 2, 384),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_prediction_by_engines(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From pixels to labels. In time of the processor, which does not grow where others use the core too."""
    member, arguments, count, side = NETWORKS[network]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the engines take as many
    try:
        calls = work.predictions_by_engines(member, arguments, count, side)
        seconds = alternating(calls, repeats=5, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    document = {
        "threads_of_the_calls": 1,
        "milliseconds_per_picture": {name: round(1000 * value / count, 1) for name, value in seconds.items()},
        "times_as_fast_as_torch": {
            name: round(seconds[f"torch {name.split()[1]}"] / value, 2) for name, value in seconds.items()
        },
    }
    with capsys.disabled():
        print(write(f"engines_{network}", document))
    assert seconds["openvino fp32"] < seconds["torch fp32"]


@pytest.mark.parametrize("network", NETWORKS)
def test_exported_files_in_8_bits(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From normalised images to logits by ONNX Runtime, in time of the processor."""
    member, arguments, count, side = NETWORKS[network]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = work.exported_files(member, arguments, count, side, tmp_path)
        seconds = alternating(calls, repeats=5, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    document = {
        "threads_of_the_calls": 1,
        "milliseconds_per_picture": {name: round(1000 * value / count, 1) for name, value in seconds.items()},
        "times_as_fast_as_floats": round(seconds["floats"] / seconds["8 bits"], 2),
    }
    with capsys.disabled():
        print(write(f"int8_{network}", document))
    assert seconds["8 bits"] < seconds["floats"]
