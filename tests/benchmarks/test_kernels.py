"""What each CPU kernel brings, layer by layer and in whole networks. `make bench-kernels`.

A kernel that brings less than 15 % on every machine that it was measured on is to go; figures of machines are kept in
`README.md` beside this file.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.benchmarks import work
from tests.benchmarks.measure import Figures, in_processes, write

GAIN = 1.15
Print = pytest.CaptureFixture[str]
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "v3_lite0_stride_16": ("DeepLabV3", {"backbone": "tf_efficientnet_lite0"}, 4, 256),
    "v3plus_lite0_separable": ("DeepLabV3Plus", {"backbone": "tf_efficientnet_lite0", "separable": True}, 4, 256),
    "v3_resnet50_stride_8": ("DeepLabV3", {"backbone": "resnet50", "output_stride": 8}, 2, 256),
}


def report(title: str, figures: Figures, ratios: dict[str, dict[str, float]], capsys: Print) -> None:
    notes = {name: "brings 15 % or more" if r["median"] >= GAIN else "below 15 %" for name, r in ratios.items()}
    document = {"times_as_fast": ratios, "notes": notes, "milliseconds": figures.milliseconds()}
    with capsys.disabled():
        print(write(title, {**document, "busy_share": figures.values["busy_share"]}))
    assert all(ratio["median"] > 0.6 for ratio in ratios.values())  # where it is chosen, it is no brake


def layer_report(title: str, figures: Figures, ours: str, others: Sequence[str], capsys: Print) -> None:
    report(title, figures, {ours: figures.ratio(others, [ours])}, capsys)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("is_training", [True, False])
def test_the_door_in_whole_networks(network: str, is_training: bool, capsys: Print) -> None:
    member, arguments, count, side = NETWORKS[network]
    figures = in_processes(
        work.doors,
        processes=3,
        repeats=3,
        member=member,
        arguments=arguments,
        count=count,
        side=side,
        is_training=is_training,
    )
    ratios = {d: figures.ratio([f"closed {d}"], [f"open {d}"]) for d in work.DTYPES}
    report(f"door_{network}_{'training' if is_training else 'prediction'}", figures, ratios, capsys)


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride", "dilation"),
    [(96, 160, 3, 2, 1), (672, 20, 5, 1, 1), (1152, 20, 3, 1, 2), (672, 20, 5, 1, 4), (256, 48, 3, 1, 12)],
)
def test_depthwise_layers(
    channels: int, side: int, kernel: int, stride: int, dilation: int, is_half: bool, capsys: Print
) -> None:
    """Layers of EfficientNets and of a separable ASPP, values and gradients."""
    geometry = {"channels": channels, "side": side, "kernel": kernel, "stride": stride, "dilation": dilation}
    figures = in_processes(work.depthwise_layer, processes=3, repeats=7, is_half=is_half, **geometry)  # type: ignore[arg-type]
    title = f"depthwise_{'bf16' if is_half else 'fp32'}_{'_'.join(map(str, geometry.values()))}"
    layer_report(title, figures, "ours", list(work.LAYOUTS), capsys)


@pytest.mark.parametrize("dilation", [1, 6, 12, 24, 36])
def test_taps_are_chosen_where_they_are_faster(dilation: int, capsys: Print) -> None:
    import torch

    from deeplab_lightning.kernels.taps import is_faster_by_taps

    figures = in_processes(work.tap_layer, processes=3, repeats=5, dilation=dilation)
    is_chosen = is_faster_by_taps(torch.device("cpu"), torch.bfloat16, channels=2048, dilation=dilation)
    ratio = figures.ratio(["stock"], ["taps"])
    with capsys.disabled():
        document = {"taps_times_as_fast": ratio, "taps_are_chosen": is_chosen, "milliseconds": figures.milliseconds()}
        print(write(f"taps_rate_{dilation}", document))
    assert ratio["median"] > 0.9 if is_chosen else ratio["median"] < 1.1


@pytest.mark.parametrize(("num_classes", "side"), [(11, 32), (21, 32), (150, 64)])
def test_loss_in_tiles(num_classes: int, side: int, capsys: Print) -> None:
    figures = in_processes(work.losses, processes=5, repeats=7, num_classes=num_classes, side=side)
    layer_report(f"loss_{num_classes}_classes", figures, "tiles", list(work.LAYOUTS), capsys)


@pytest.mark.parametrize(("num_classes", "side"), [(11, 32), (21, 32), (150, 64)])
def test_labels(num_classes: int, side: int, capsys: Print) -> None:
    """Some classes at a time, for memory, where the logits are large."""
    figures = in_processes(work.labels, processes=5, repeats=7, num_classes=num_classes, side=side)
    layer_report(f"labels_{num_classes}_classes", figures, "ours", list(work.LAYOUTS), capsys)
