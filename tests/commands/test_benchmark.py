import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.tables import read_csv
from tests.conftest import CLASSES
from tests.processes import run_program


@pytest.fixture
def config(mask_folder: Path) -> Path:
    """A tiny data set and network."""
    content: dict[str, Any] = {
        "trainer": {"precision": "bf16-mixed"},
        "model": {
            "net": {"class_path": "DeepLabV3", "init_args": {"backbone": "resnet18", "aspp_channels": 8}},
        },
        "data": {
            "dataset": {
                "class_path": "MaskFolderDataset",
                "init_args": {
                    "root": str(mask_folder),
                    "images": "images",
                    "masks": "masks",
                    "classes": {"names": list(CLASSES), "ignore_ids": [11]},
                },
            },
            "n_folds": 3,
            "batch_size": 2,
            "num_workers": 0,
            "train_transforms": {
                "class_path": "deeplab_lightning.data.transforms.TrainTransforms",
                "init_args": {"crop_size": 32},
            },
        },
    }
    path = mask_folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.long
def test_every_backbone_and_run_is_a_row(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.read_text())
    (run / "result.json").write_text(json.dumps({"fold": None, "n_folds": None, "val": {"miou": 0.5, "iou": {}}}))
    output = tmp_path / "bench"
    words = ["-c", str(config), "--backbones", "resnet18,resnet34", "--repeats", "1", "--output", str(output)]
    main(["benchmark", *words, "--runs", str(run)])
    rows = read_csv(output / "benchmark.csv")
    assert [row["model"] for row in rows] == ["resnet18", "resnet34", "mine"]
    assert [row["miou"] for row in rows] == ["", "", "0.5"]
    assert float(rows[0]["parameters"]) < float(rows[1]["parameters"])
    assert float(rows[0]["gflops"]) == float(rows[2]["gflops"]) > 0
    assert all(0 <= float(row["waiting"]) <= 1 and float(row["peak_mb"]) > 10 for row in rows)
    batches = [float(row["epoch_s"]) * float(row["loop_per_s"]) / 2 for row in rows]
    assert batches == pytest.approx([3] * 3, rel=1e-3)
    assert (output / "benchmark.png").stat().st_size > 1000
    assert "resnet34" in capsys.readouterr().out


@pytest.mark.long
def test_options_of_the_model_count(config: Path, tmp_path: Path) -> None:
    words = ["-c", str(config), "--repeats", "1"]
    main(["benchmark", *words, "--output", str(tmp_path / "as_it_is")])
    wider = ["--model.net.init_args.aspp_channels", "64", "--data.batch_size", "1"]
    main(["benchmark", *words, *wider, "--output", str(tmp_path / "wider")])
    first, second = (json.loads((tmp_path / n / "benchmark.json").read_text())[0] for n in ("as_it_is", "wider"))
    assert second["parameters"] > first["parameters"] + 0.5  # millions
    assert second["gflops"] > first["gflops"]
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", *words, "--model.net.init_args.aspp_chanels", "64"])


@pytest.mark.slow
def test_precision_and_loss_are_those_of_the_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, int | None]] = []

    def look(module: SegmentationModule, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = shared_step(module, batch)
        assert isinstance(module.loss, CrossEntropyLoss)
        seen.append((next(module.parameters()).dtype, module.loss.band_rows))
        return loss, logits

    shared_step = SegmentationModule.compute_loss
    monkeypatch.setattr(SegmentationModule, "compute_loss", look)
    loss = {"class_path": "deeplab_lightning.losses.CrossEntropyLoss", "init_args": {"band_rows": 8}}
    words = ["--trainer.precision", "bf16-true", "--model.loss", json.dumps(loss)]
    main(["benchmark", "-c", str(config), "--repeats", "1", *words, "--output", str(tmp_path)])
    assert set(seen) == {(torch.bfloat16, 8)}


def test_what_is_missing_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such config: .*absent.yaml"):
        main(["benchmark", "-c", str(tmp_path / "absent.yaml")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is not the folder of a finished run"):
        main(["benchmark", "-c", str(config), "--runs", str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="--repeats must be at least 1, got 0"):
        main(["benchmark", "-c", str(config), "--repeats", "0"])


@pytest.mark.long
@pytest.mark.parametrize("overlay", ["ce_dice", "class_weights"])
def test_losses_of_losses_and_rules_are_measured(config: Path, tmp_path: Path, overlay: str) -> None:
    """The losses inside a sum were left as mappings, and a rule had no training images to look at."""
    losses = Path(__file__).parents[2] / "configs" / "loss" / f"{overlay}.yaml"
    words = ["-c", str(config), "-c", str(losses), "--repeats", "1", "--output", str(tmp_path / "bench")]
    done = run_program("benchmark", *words)
    assert done.returncode == 0, done.stderr
    [row] = read_csv(tmp_path / "bench" / "benchmark.csv")
    assert float(row["step_ms"]) > 0


@pytest.mark.slow
def test_bands_are_measured(tmp_path: Path, config: Path) -> None:
    for image in (config.parent / "images").iterdir():
        np.save(image.with_suffix(".npy"), np.random.default_rng(0).integers(0, 255, (48, 64, 5), dtype=np.uint8))
        image.unlink()
    words = ["-c", str(config), "--data.image_format.channels", "5", "--repeats", "1", "--output", str(tmp_path / "b")]
    done = run_program("benchmark", *words)
    assert done.returncode == 0, done.stderr
