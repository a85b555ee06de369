"""What the settings of the process bring: huge pages, and how long OpenMP's threads spin. `make bench-kernels`."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import work
from tests.benchmarks.measure import Figures, in_turn, write

PAGES, SPINS = "THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT"
SETTINGS: dict[str, dict[str, str | None]] = {
    "none": {PAGES: None, SPINS: None},
    "spins": {PAGES: None, SPINS: "1000"},
    "pages": {PAGES: "1", SPINS: None},
    "pages and spins": {PAGES: "1", SPINS: "1000"},
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "deeplabv2_vgg16": ("DeepLabV2", {}),
    "deeplabv3_resnet50": ("DeepLabV3", {}),
    "deeplabv3plus_efficientnet": ("DeepLabV3Plus", {"backbone": "tf_efficientnet_lite0", "separable": True}),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_settings_of_the_process(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Times without a setting over times with it, for one network of each kind of backbone."""
    member, arguments = NETWORKS[network]
    found = in_turn(work.module_calls, SETTINGS, repeats=3, member=member, arguments=arguments, count=2, side=256)
    ratios = {setting: _ratios(found["none"], found[setting]) for setting in SETTINGS if setting != "none"}
    seconds = {setting: figures.milliseconds() for setting, figures in found.items()}
    with capsys.disabled():
        print(write(f"settings_{network}", {"times_as_fast": ratios, "milliseconds": seconds}))
    assert ratios


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_huge_pages_in_a_validation(precision: str, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times without huge pages over times with them, from the files of CamVid to the mIoU."""
    settings = {name: SETTINGS[name] for name in ("spins", "pages and spins")}
    found = in_turn(work.camvid_validation, settings, repeats=2, data=str(real_data), precision=precision)
    ratios = _ratios(found["spins"], found["pages and spins"])
    seconds = {setting: figures.milliseconds() for setting, figures in found.items()}
    with capsys.disabled():
        print(write(f"pages_in_validation_{precision}", {"times_as_fast": ratios, "milliseconds": seconds}))
    assert ratios


def _ratios(without: Figures, with_setting: Figures) -> dict[str, dict[str, float]]:
    """Return call -> median, low and high of the ratios of processes that ran one right after the other."""
    pairs = {
        name: Figures({"without": values, "with": with_setting.seconds[name]}, {})
        for name, values in without.seconds.items()
    }
    return {name: figures.ratio(["without"], ["with"]) for name, figures in pairs.items()}
