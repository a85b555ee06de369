"""Boundary IoU and recall by size of experiments whose counts are known, and of a real training."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from deeplab_lightning.cli import main
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.metrics.per_image import PerImageDetails
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from tests.callbacks.test_run_record import Scripted
from tests.conftest import draw_noise_data, noise_config
from tests.experiments.test_report import cells, page_of, section
from tests.experiments.test_verdict import Write, images, write  # noqa: F401, the fixture
from tests.processes import run_program
from tests.test_module import tiny_data, trainer


def add_details(folder: Path, recall: float, *, spread: float = 0.02, seed: int = 0) -> None:
    """Give each held-out image contours, and small and large objects of the first two of three classes."""
    rng = np.random.default_rng(seed)
    for run in ExperimentFolder(folder).runs():
        run.last_images.write_bytes(run.images.read_bytes())
        found = run.read_images()
        assert found is not None
        details = []
        for name in found.names:
            counts = np.zeros((4, 3, 3), dtype=np.int64)
            share = recall + rng.normal(0, spread)
            counts[0, :, :2] = [[round(100 * share)], [100], [100]]
            counts[1, :, :2] = [[round(50 * share)], [50], [2]]
            counts[3, :, 0] = 900, 1000, 1
            details.append((name, counts))
        PerImageDetails.of(details).write(run.last_details)


def test_figures_are_pooled_ratios_with_intervals(write: Write, tmp_path: Path) -> None:  # noqa: F811
    folders = [write(name, images(right, seed=i)) for i, (name, right) in enumerate((("a", 0.9), ("b", 0.8)))]
    add_details(folders[0], 0.5)
    add_details(folders[1], 0.6, seed=1)
    verdicts = [compare_experiments(folders, num_resamples=200).sentences]
    comparison = compare_experiments(folders, num_resamples=400)
    assert comparison.details is not None
    base, own = comparison.details
    total = sum(
        PerImageDetails.read(run.last_details).counts.sum(axis=0).A1.reshape(4, 3, 3)
        for run in ExperimentFolder(folders[1]).runs()
    )
    shared, truth, predicted = total[0]
    assert own.of_classes[0, 0] == pytest.approx(shared[0] / (truth[0] + predicted[0] - shared[0]))
    assert own.of_classes[1, 1] == pytest.approx(total[1, 0, 1] / total[1, 1, 1])
    assert own.means[1] == pytest.approx(own.of_classes[1, :2].mean())  # boats are nowhere
    assert own.objects.tolist() == [[80, 80, 0], [0, 0, 0], [40, 0, 0]]
    low, high = own.intervals[1]
    assert low < own.means[1] < high < low + 0.03
    found = own.differences[1]
    assert found.mean == pytest.approx(own.means[1] - base.means[1])
    assert found.low > 0.05
    assert np.isnan(own.differences[2].mean)  # no medium object
    assert own.differences[3].mean == 0
    for folder in folders:  # they decide nothing
        add_details(folder, 0.5)
    verdicts.append(compare_experiments(folders, num_resamples=200).sentences)
    assert verdicts[0] == verdicts[1]


def test_the_page_and_the_table_show_them(write: Write, tmp_path: Path) -> None:  # noqa: F811
    folders = [write(name, images(0.8, seed=i)) for i, name in enumerate("ab")]
    for seed, (folder, recall) in enumerate(zip(folders, (0.5, 0.6), strict=True)):
        add_details(folder, recall, seed=seed)
    part = section(page_of(tmp_path, *folders), "Contours, and objects by size")
    _, objects, base, own = cells(part, "recall of small objects")
    assert objects == "160"
    assert re.fullmatch(r"0\.(49|50)\d \(0\.\d{3} to 0\.\d{3}\)", base)
    assert re.fullmatch(r"0\.(59|60)\d \(0\.\d{3} to 0\.\d{3}\)\+0\.\d{3} \(\+0\.\d{3} to \+0\.\d{3}\)", own)
    assert cells(part, "road")[1] == "boundary IoU"  # large objects of roads there are none, and of boats nothing
    assert [row.count("recall of") for row in re.findall(r"<tr><td data-value=.(?:sky|road).*", part)] == [
        0,
        2,
        2,
        0,
        2,
    ]
    assert 'data-value="boat"' not in part
    assert "over folds, not adjusted" in " ".join(part.split())
    table = tmp_path / "table.json"
    main(["compare", *map(str, folders), "--json", str(table)])
    rows = json.loads(table.read_text())["experiments"]
    assert rows[1]["recall_small"] - rows[0]["recall_small"] == pytest.approx(0.1, abs=0.02)
    assert rows[1]["recall_medium"] is None
    RunFolder(folders[1] / "fold_0").last_details.unlink()
    page = page_of(tmp_path, *folders)
    assert "Contours, and objects by size" not in page
    assert "objects by size: b did not count them in its last validation" in page


@pytest.mark.slow
def test_a_training_counts_its_last_validation(tmp_path: Path) -> None:
    draw_noise_data(tmp_path)
    config = noise_config(tmp_path, trainer={"num_sanity_val_steps": 0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    fit = ("fit", "-c", str(tmp_path / "config.yaml"), "--name", "run", "--trainer.max_epochs")
    run_program(*fit, "2", check=True)
    run = RunFolder(tmp_path / "runs" / "run")
    details, matrices = run.read_last_details(), run.read_last_images()
    assert details is not None
    assert matrices is not None
    assert details.names == matrices.names
    total = details.of_units(np.zeros(len(details.names), dtype=np.int64))[0]
    truth, right = matrices.total().sum(axis=1), matrices.total().diagonal()
    assert np.array_equal(total[1:, 1].sum(axis=0), truth)  # pixels of all objects
    assert np.array_equal(total[1:, 0].sum(axis=0), right)  # those that are found
    assert "Contours, and objects by size" in (run.path / "report.html").read_text()
    run.write_last(matrices, None)  # of a later epoch that ended unforeseen
    assert run.read_last_details() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "wrong", "expected"),
    [
        ({"max_epochs": 3}, [5, 5, 5], [False, False, True]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [5], [True]),
        ({"max_epochs": -1, "max_steps": 4}, [5, 5], [False, True]),
        ({"max_epochs": 9, "callbacks": "stop"}, [5, 10, 20], [False, False, True]),
    ],
)
def test_the_last_validation_is_foreseen(
    mask_folder: Path, tmp_path: Path, options: dict[str, Any], wrong: list[int], expected: list[bool]
) -> None:
    class Noting(Scripted):
        def on_validation_epoch_start(self) -> None:
            super().on_validation_epoch_start()
            flags.append(self.details is not None)

    flags: list[bool] = []
    if "callbacks" in options:
        options = {**options, "callbacks": [EarlyStopping("val/miou", mode="max", patience=2)]}
    fit = trainer(tmp_path, num_sanity_val_steps=0, limit_train_batches=2, **options)
    fit.fit(Noting(wrong), datamodule=tiny_data(mask_folder))
    assert flags == expected
