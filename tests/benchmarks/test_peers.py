"""Networks, training steps and validation against the same work of torchvision and smp. `make bench`.

Every network has random weights. Each of theirs is measured in fp32 and bf16, contiguous and channels-last, and
compared by its fastest. Where a ratio is near 1, the share of the machine's own matmul rate says why.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import work
from tests.benchmarks.measure import Figures, in_processes, machine, merged, write

MIN_RATIO = 0.9  # slower than a peer by more than this is a fault
PLAIN = {"GOMP_SPINCOUNT": None, "THP_MEM_ALLOC_ENABLE": None}  # what a script without this package sets: nothing
Print = pytest.CaptureFixture[str]


def report(title: str, figures: Figures, capsys: Print, *, gflops: float | None = None) -> None:
    """Print and write our fastest against their fastest."""
    ours = [name for name in figures.seconds if name.startswith("ours")]
    ratio = figures.ratio([name for name in figures.seconds if name not in ours], ours)
    document: dict[str, Any] = {"times_the_fastest_peer": ratio, "milliseconds": figures.milliseconds()}
    document["busy_share"] = figures.values["busy_share"]
    if gflops is not None:
        best = min(document["milliseconds"][name]["median"] for name in ours) / 1000
        document["share_of_peak"] = round(gflops / 1000 / best / max(machine()["peak_tflops"].values()), 3)
    with capsys.disabled():
        print(write(title, document))
    assert ratio["median"] >= MIN_RATIO


@pytest.mark.parametrize("output_stride", [8, 16])
def test_inference_of_resnet50(output_stride: int, capsys: Print) -> None:
    figures = in_processes(work.resnet50_inference, processes=3, repeats=3, output_stride=output_stride)
    gflops = 2 * work.forward_gflops("DeepLabV3", 384, backbone="resnet50", output_stride=output_stride)
    report(f"inference_resnet50_stride_{output_stride}", figures, capsys, gflops=gflops)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_training_of_resnet50(output_stride: int, capsys: Print) -> None:
    figures = in_processes(work.resnet50_training, processes=3, repeats=2, output_stride=output_stride)
    gflops = 6 * work.forward_gflops("DeepLabV3", 384, backbone="resnet50", output_stride=output_stride)
    report(f"training_step_resnet50_stride_{output_stride}", figures, capsys, gflops=gflops)


def test_training_of_v3plus_lite0(capsys: Print) -> None:
    """Against smp as it is shipped, in processes of its own."""
    ours = in_processes(work.lite0_training, processes=5, repeats=5)
    theirs = in_processes(work.lite0_training_of_smp, processes=5, repeats=5, environment=PLAIN)
    report("training_step_v3plus_lite0", merged(theirs, ours), capsys)


@pytest.mark.parametrize("is_training", [False, True])
def test_v2_on_vgg16(is_training: bool, capsys: Print) -> None:
    figures = in_processes(work.vgg16, processes=3, repeats=2, is_training=is_training)
    gflops = (3 if is_training else 1) * work.forward_gflops("DeepLabV2", 321)
    report(f"{'training_step' if is_training else 'inference'}_deeplabv2_vgg16", figures, capsys, gflops=gflops)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_of_camvid(precision: str, real_data: Path, capsys: Print) -> None:
    data, is_half = str(real_data), precision != "32-true"
    ours = in_processes(work.camvid_validation, processes=3, repeats=3, data=data, precision=precision)
    theirs = in_processes(
        work.camvid_validation_of_smp, processes=3, repeats=3, environment=PLAIN, data=data, is_half=is_half
    )
    report(f"validation_camvid_{precision}", merged(theirs, ours), capsys)
