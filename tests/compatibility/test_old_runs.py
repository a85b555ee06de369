"""Runs and checkpoints of version 0.1.0 keep working: `v0_1_0/` holds an experiment that it trained.

Its data are the noise of `write_image` and `write_mask`, drawn again here; `predictions.npz` and
`fold_0/result_validate.json` hold what version 0.1.0 computed with its `last.ckpt`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import DeepLabV3, SegmentationModule, load_weights
from deeplab_lightning.cli import main
from deeplab_lightning.experiments.aggregate import aggregate
from tests.conftest import draw_noise_data

OLD = Path(__file__).parent / "v0_1_0"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the experiment in a working folder with its data."""
    draw_noise_data(tmp_path / "mini")
    shutil.copytree(OLD, tmp_path / "runs" / "old")
    monkeypatch.chdir(tmp_path)
    return Path("runs") / "old"


@pytest.mark.slow
def test_a_checkpoint_gives_the_same_figures_and_labels(experiment: Path) -> None:
    last = experiment / "fold_0" / "checkpoints" / "last.ckpt"
    main(["validate", "--ckpt_path", str(last)])
    expected = json.loads((OLD / "fold_0" / "result_validate.json").read_text())["val"]
    found = json.loads((experiment / "fold_0" / "result_validate-2.json").read_text())["val"]
    assert found["loss"] == pytest.approx(expected.pop("loss"), abs=1e-4)
    assert found["iou"] == pytest.approx(expected["iou"], abs=2e-3)  # a tie may round the other way
    main(["predict", "--ckpt_path", str(last), "--images", "mini/images", "--output", "predicted"])
    for name, labels in np.load(OLD / "predictions.npz").items():
        assert (np.asarray(Image.open(f"predicted/masks/{name}.png")) == labels).mean() > 0.999


@pytest.mark.long
def test_a_training_goes_on_from_its_last_epoch(experiment: Path) -> None:
    fold = experiment / "fold_0"
    before = (fold / "metrics.csv").read_text().splitlines()
    main(["fit", "--ckpt_path", str(fold / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "21"])
    rows = (fold / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[-2:]] == ["19", "20"]
    assert [row.split(",")[3] for row in rows[:-1]] == [row.split(",")[3] for row in before]  # train/loss


@pytest.mark.long
def test_a_configuration_trains_again(experiment: Path) -> None:
    """With nearly the same loss: dropout draws other numbers since steps, not epochs, are seeded."""
    main(["fit", "-c", str(experiment / "fold_1" / "config.yaml"), "--output_dir", "again"])
    old, new = (
        [float(row.split(",")[3]) for row in (folder / "fold_1" / "metrics.csv").read_text().splitlines()[1:3]]
        for folder in (experiment, Path("again"))
    )
    assert new == pytest.approx(old, rel=0.1)


def test_an_experiment_is_pooled_and_compared(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((OLD / "cv.json").read_text())
    for name in ("cv.json", "cv.csv", "oof.npz"):
        (experiment / name).unlink()
    assert aggregate(experiment).to_dict() == expected
    assert (experiment / "cv.csv").read_text() == (OLD / "cv.csv").read_text()
    main(["compare", str(experiment), str(experiment / "fold_0"), "--html", "page.html"])
    assert "mIoU over 5 held-out" in capsys.readouterr().out
    assert "old" in Path("page.html").read_text()


def test_evaluation_keeps_the_folds_of_an_old_run(experiment: Path) -> None:
    """Class paths are spelled another way by now; that is no other data set."""
    fold = experiment / "fold_1"
    (experiment / "fold_0" / "checkpoints").rename(fold / "checkpoints")
    main(["validate", "--ckpt_path", str(fold / "checkpoints" / "last.ckpt")])
    config = yaml.safe_load((fold / "config_validate.yaml").read_text())
    assert config["data"]["fold_file"] == str((fold / "folds.csv").absolute())


@pytest.mark.long
def test_an_old_experiment_resumes_with_its_own_settings(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (experiment / "fold_1" / "result.json").unlink()
    (experiment / "fold_1" / "metrics.csv").unlink()
    main(["kfold", "--resume", "--name", "old"])
    assert "1 of 2 folds are finished already" in capsys.readouterr().out
    assert json.loads((experiment / "fold_1" / "result.json").read_text())["epochs"] == 20


def test_class_paths_and_keys_of_the_configuration_are_understood(experiment: Path) -> None:
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    assert config["model"]["loss"]["init_args"] == {"class_weights": None, "label_smoothing": 0.0, "band_rows": None}
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", str(experiment / "config.yaml"), "--print_config"])


def test_a_checkpoint_loads_in_python(experiment: Path) -> None:
    path = experiment / "fold_0" / "checkpoints" / "last.ckpt"
    module = SegmentationModule.load_from_checkpoint(path)
    assert module.classes.names == ("sky", "road", "car")
    net = DeepLabV3(3, backbone="test_efficientnet", aspp_channels=4, pretrained=False)
    assert load_weights(net, path).missing == []
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), module.net.parameters(), strict=True))
