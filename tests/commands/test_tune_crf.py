"""`deeplab tune-crf` on tiny data, through the real command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.commands import tune_crf
from deeplab_lightning.commands.tune_crf import COARSE, FINE_STEPS
from deeplab_lightning.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    dataset = {"root": str(root / "data"), "num_images": 9, "size": 32}
    net = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False}
    config = {
        "wandb": "disabled",
        "output_dir": str(root / "runs"),
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False},
        "model": {"net": {"class_path": "DeepLabV3", "init_args": net}},
        "data": {
            "dataset": {"class_path": "SyntheticLitterDataset", "init_args": dataset},
            "n_folds": 3,
            "batch_size": 2,
            "num_workers": 0,
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(root / "config.yaml"), "--name", "first"])
    return root / "runs" / "first"


@pytest.mark.long
def test_it_writes_a_grid_and_an_overlay_that_test_takes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    main(["tune-crf", "--ckpt_path", checkpoint, "--num_images", "2"])
    printed = capsys.readouterr().out
    assert "2 tuned on" in printed
    assert "1 others" in printed
    with (run / "crf.csv").open() as file:
        rows = list(csv.DictReader(file))
    num_coarse = len(COARSE["w1"]) * len(COARSE["sigma_alpha"]) * len(COARSE["sigma_beta"])
    stages = [row["stage"] for row in rows]
    assert stages == ["none"] + ["coarse"] * num_coarse + ["fine"] * 2 * len(FINE_STEPS)
    best = max(rows[1:], key=lambda row: float(row["miou"]))
    postprocess = yaml.safe_load((run / "crf.yaml").read_text())["model"]["postprocess"]
    assert postprocess["class_path"] == "deeplab_lightning.crf.DenseCRF"
    assert postprocess["init_args"] == {name: float(best[name]) for name in COARSE}
    # A config that names no network goes over that of the checkpoint.
    main(["test", "--ckpt_path", checkpoint, "-c", str(run / "crf.yaml")])
    assert json.loads((run / "result_test.json").read_text())["test"]["miou"] is not None


@pytest.mark.long
def test_the_figures_are_those_of_test(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_crf, "COARSE", {"w1": (3.0,), "sigma_alpha": (30.0,), "sigma_beta": (3.0,)})
    monkeypatch.setattr(tune_crf, "FINE_STEPS", {"w1": 1.5})
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    main(["tune-crf", "--ckpt_path", checkpoint, "--num_images", "3"])  # the whole fold
    main(["test", "--ckpt_path", checkpoint, "--name", "plain"])
    main(["test", "--ckpt_path", checkpoint, "-c", str(run / "crf.yaml")])
    with (run / "crf.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [float(rows[0]["miou"]), max(float(row["miou"]) for row in rows[1:])]
    results = sorted(run.glob("result_test*.json"), key=lambda path: path.stat().st_mtime_ns)[-2:]
    assert found == pytest.approx([json.loads(path.read_text())["test"]["miou"] for path in results], abs=1e-5)


@pytest.mark.slow
def test_a_bare_name_on_the_command_line_is_enough(run: Path, tmp_path: Path) -> None:
    image = next((run.parents[1] / "data").rglob("*.jpg"), None) or next((run.parents[1] / "data").rglob("*.png"))
    arguments = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--images", str(image)]
    main(["predict", *arguments, "--output", str(tmp_path / "out"), "--model.postprocess", "DenseCRF"])
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 1


@pytest.mark.slow
def test_checkpoints_from_before_the_option_work(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["config"]["model"]["postprocess"], checkpoint["hyper_parameters"]["postprocess"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    output = str(tmp_path / "runs")
    overlay = tmp_path / "crf.yaml"
    overlay.write_text("model: {postprocess: {class_path: DenseCRF, init_args: {iterations: 2}}}")
    main(["test", "--ckpt_path", str(tmp_path / "old.ckpt"), "-c", str(overlay), "--output_dir", output])
    assert len(list((tmp_path / "runs").rglob("result_test.json"))) == 1


@pytest.mark.slow
def test_wrong_wishes_are_refused(run: Path) -> None:
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    with pytest.raises(ValueError, match="--num_images must be at least 1, got 0"):
        main(["tune-crf", "--ckpt_path", checkpoint, "--num_images", "0"])
    with pytest.raises(UserError, match="tune-crf needs validation images, but data.fold is null"):
        main(["tune-crf", "--ckpt_path", checkpoint, "--data.fold", "null"])
