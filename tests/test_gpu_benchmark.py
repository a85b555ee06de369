"""The benchmark of GPUs runs with small sizes where there is none, so that it works where there is one."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.work import NUM_CLASSES, model


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it itself
def test_all_figures_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu.torch.backends.cudnn, "benchmark", False)  # `main` sets it
    gpu.main(["--small"])
    document = json.loads(Path("runs/bench/gpu.json").read_text())
    for name in gpu.OF_SMALL:
        for kind in ("training step", "inference"):
            figures = document[f"{kind}, {name}"]
            assert len(figures["milliseconds"]) == 3 * (1 + len(gpu.WORKS[name].peers()))
            assert all(math.isfinite(figures[key]) and figures[key] > 0 for key in figures if key != "milliseconds")
    assert document["loop to bare step, by workers"]["0"]["images_per_second"] > 0
    assert document["validation"]["share_of_bare_inference"] > 0
    assert set(document["megabytes of a step, 150 classes"]) == {"all rows", "band_rows 32"}


@pytest.mark.long
@pytest.mark.parametrize("name", gpu.WORKS)
def test_each_network_and_its_peers_compute_the_same_shape(name: str) -> None:
    """On no device, so that the large ones cost nothing."""
    work = gpu.WORKS[name]
    with torch.device("meta"):
        images = torch.empty(2, 3, 64, 64)
        for net in (model(work.member, **work.arguments), *work.peers().values()):
            output = net.eval()(images)
            logits = output["out"] if isinstance(output, dict) else output
            assert logits.shape == (2, NUM_CLASSES, 64, 64)


def test_without_a_gpu_it_says_that_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: there is nothing to measure"):
        gpu.main([])
