"""What the settings of the process bring: huge pages, and how long OpenMP's threads spin. `make bench-kernels`."""

from typing import Any

import pytest

from tests.benchmarks import work
from tests.benchmarks.measure import in_processes, write

PAGES, SPINS = "THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT"
SETTINGS: dict[str, dict[str, str | None]] = {
    "none": {PAGES: None, SPINS: None},
    "spins": {PAGES: None, SPINS: "1000"},
    "pages": {PAGES: "1", SPINS: None},
    "pages and spins": {PAGES: "1", SPINS: "1000"},
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "deeplabv1_vgg16": ("DeepLabV1", {}),
    "deeplabv2_vgg16": ("DeepLabV2", {}),
    "deeplabv3_resnet50": ("DeepLabV3", {}),
    "deeplabv3_efficientnet": ("DeepLabV3", {"backbone": "tf_efficientnet_lite0"}),
    "deeplabv3plus_resnet50": ("DeepLabV3Plus", {}),
    "deeplabv3plus_efficientnet": ("DeepLabV3Plus", {"backbone": "tf_efficientnet_lite0", "separable": True}),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("is_training", [True, False])
def test_settings_of_the_process(network: str, is_training: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Times without a setting over times with it, for each shipped model."""
    member, arguments = NETWORKS[network]
    work_arguments = {"member": member, "arguments": arguments, "count": 2, "side": 256, "is_training": is_training}
    found = {
        name: in_processes(work.doors, processes=3, repeats=3, environment=environment, **work_arguments)
        for name, environment in SETTINGS.items()
    }
    seconds = {name: {call: min(values) for call, values in f.seconds.items()} for name, f in found.items()}
    ratios = {
        f"{name}, {d}": round(seconds["none"][f"open {d}"] / seconds[name][f"open {d}"], 3)
        for name in SETTINGS
        for d in work.DTYPES
    }
    with capsys.disabled():
        title = f"settings_{network}_{'training' if is_training else 'prediction'}"
        print(write(title, {"times_as_fast": ratios, "seconds": seconds}))
    assert ratios
