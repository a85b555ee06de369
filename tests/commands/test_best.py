"""Find the best way to predict by the real command, against figures that are computed here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import SegmentationModule
from deeplab_lightning.data.images import read_image
from deeplab_lightning.experiments.best import recipe_settings
from deeplab_lightning.experiments.recipes import Recipe, measure
from deeplab_lightning.experiments.selection import pooled_miou
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.tiles import Tiles
from deeplab_lightning.metrics.iou import class_iou
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import read_csv
from tests.commands.pictures import draw_picture, train_on_pictures
from tests.conftest import draw_noise_data, noise_config, train_noise_experiment, write_mask
from tests.processes import run_program

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments of two folds: `good`, and `poor`, which hardly learned."""
    root = tmp_path_factory.mktemp("best")
    draw_noise_data(root)
    for name, epochs, rate in (("good", 15, 0.005), ("poor", 1, 1e-6)):
        train_noise_experiment(root, name, epochs=epochs, rate=rate)
    return root


def held_out_miou(root: Path, name: str) -> float:
    """Compute the pooled mIoU of the best checkpoints of an experiment, without the package's own evaluation."""
    experiment = ExperimentFolder(root / "runs" / name)
    matrix = np.zeros((3, 3), dtype=np.int64)
    for row in read_csv(experiment.folds):
        net = SegmentationModule.load_from_checkpoint(experiment.fold(int(row["fold"])).best).net.eval()
        image = read_image(root / "images" / row["image"])
        with torch.no_grad():
            labels = net(net.preprocess(image[None])).argmax(1)[0].numpy()
        truth = np.asarray(Image.open(root / "masks" / row["image"]))
        counted = truth != 11
        np.add.at(matrix, (truth[counted], labels[counted]), 1)
    return float(class_iou(matrix).mean())


@pytest.mark.long
def test_the_better_experiment_is_taken_and_its_miou_promised(root: Path, tmp_path: Path) -> None:
    folders = [str(root / "runs" / name) for name in ("poor", "good")]
    done = run_program("best", *folders, "--tta", "flip", "--output", str(tmp_path / "best.yaml"), check=True)
    record = json.loads((tmp_path / "best.json").read_text())
    first = record["steps"][0]
    assert (first["choice"], first["gain"]) == ("good", None)
    assert first["miou"] == pytest.approx(held_out_miou(root, "good"), abs=0.002)  # kernels of CPUs round differently
    assert [step["step"] for step in record["steps"]] == ["best experiment", "average", "views", "smallest region"]
    mious = [step["miou"] for step in record["steps"]]
    best = mious[0]
    for step, miou in zip(record["steps"][1:], mious[1:], strict=True):
        assert step["is_taken"] == (miou > best)
        assert step["gain"]["mean"] == pytest.approx(miou - best, abs=0.02)  # of the classes' contributions
        best = max(best, miou)
    assert f"mIoU {best:.3f} is to be expected on new images" in done.stdout
    settings = yaml.safe_load((tmp_path / "best.yaml").read_text())
    used = [settings["ckpt_path"], *settings.get("ensemble", ())]
    assert sum("/good/" in path for path in used) == 2


@pytest.mark.long
def test_the_printed_command_predicts_as_it_was_chosen(root: Path, tmp_path: Path) -> None:
    done = run_program("best", str(root / "runs" / "good"), "--output", str(tmp_path / "best.yaml"), check=True)
    command = done.stdout.strip().splitlines()[-1].split()
    assert command[:2] == ["deeplab", "predict"]
    words = [*command[1:-1], str(root / "images"), "--output", str(tmp_path / "out")]
    predicted = run_program(*words, check=True)
    assert "Averaging the probabilities of 2 checkpoints" in predicted.stdout + predicted.stderr
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 10


@pytest.mark.long
def test_weights_of_an_ensemble_are_those_of_the_mean(root: Path, tmp_path: Path) -> None:
    good, poor = (ExperimentFolder(root / "runs" / name).fold(0).best for name in ("good", "poor"))
    found = {}
    for weights in ("[1, 1]", "[1000000, 1]", "[1, 1000000]"):
        output = tmp_path / weights.replace(", ", "-").strip("[]")
        words = ("--ckpt_path", str(good), "--ensemble", f"[{poor}]", "--ensemble_weights", weights)
        run_program("predict", *words, "--images", str(root / "images"), "--output", str(output), check=True)
        found[weights] = np.stack([np.asarray(Image.open(path)) for path in sorted((output / "masks").glob("*.png"))])
    alone = {}
    for name, path in (("good", good), ("poor", poor)):
        output = tmp_path / name
        words = ("--ckpt_path", str(path), "--images", str(root / "images"), "--output", str(output))
        run_program("predict", *words, check=True)
        alone[name] = np.stack([np.asarray(Image.open(path)) for path in sorted((output / "masks").glob("*.png"))])
    assert (found["[1000000, 1]"] == alone["good"]).mean() > 0.999
    assert (found["[1, 1000000]"] == alone["poor"]).mean() > 0.999
    assert (found["[1000000, 1]"] == found["[1, 1000000]"]).mean() < 0.9


@pytest.mark.long
def test_what_cannot_be_searched_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    good = root / "runs" / "good"
    other = noise_config(root, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}, data={"split_seed": 5})
    other["output_dir"] = str(tmp_path)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    run_program("kfold", "-c", str(tmp_path / "other.yaml"), "--name", "other", check=True)
    (tmp_path / "crf.yaml").write_text("data: {}\n")
    shutil.rmtree(ExperimentFolder(shutil.copytree(good, tmp_path / "half")).fold(1).path)
    crf = tmp_path / "real.yaml"
    entry = {"class_path": "deeplab_lightning.DenseCRF", "init_args": {}}
    crf.write_text(yaml.safe_dump({"model": {"postprocess": entry}}))
    cases = [
        ([str(good), str(tmp_path / "other")], "holds out other images than"),
        ([str(good), str(tmp_path / "half")], "half has not trained fold 1, which"),
        ([str(tmp_path / "half"), str(good)], "half has not trained fold 1, which"),
        ([str(good), "--tile", "64", "--crf", str(crf)], "--tile and --crf cannot be tried together"),
        ([str(good), "--overlap", "8"], "--overlap needs the size of the tiles"),
        ([str(tmp_path / "nothing")], "no finished run with a best.ckpt"),
        ([str(good), "--tta", "turn"], "--tta must be flip"),
        ([str(good), "--min_areas", "a"], "--min_areas must be numbers of pixels"),
        ([str(good), "--crf", str(tmp_path / "crf.yaml")], "sets no DenseCRF"),
    ]
    for words, message in cases:
        refused = run_program("best", *words, "--output", str(tmp_path / "x.yaml"))
        assert refused.returncode == 1, words
        assert message in " ".join(refused.stderr.split()), refused.stderr
        assert "Traceback" not in refused.stderr
    best = ExperimentFolder(good).fold(0).best
    wrong = run_program(
        "predict", "--ckpt_path", str(best), "--ensemble_weights", "[1, 2]", "--images", str(root / "images")
    )
    assert wrong.returncode == 1
    assert (
        "--ensemble_weights needs a positive number for --ckpt_path and for each checkpoint of --ensemble, 1 in all"
        in " ".join(wrong.stderr.split())
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A single training, whose five validation images are larger than a tile of 64 pixels."""
    root = tmp_path_factory.mktemp("large")
    for index in range(10):
        draw_picture(root / "images" / f"{index:02d}.png", (80, 112), seed=index)
        mask = np.zeros((80, 112), dtype=np.uint8)
        mask[40 + index :] = 1
        write_mask(root / "masks" / f"{index:02d}.png", mask)
    return train_on_pictures(root, "single")


@pytest.mark.long
def test_a_single_training_is_judged_by_parts_of_its_images(large: RunFolder, tmp_path: Path) -> None:
    """The promise names its limits, and the printed command predicts in the tiles that were chosen."""
    words = ("--tta", "flip", "--tile", "64", "--output", str(tmp_path / "best.yaml"))
    done = run_program("best", str(large.path), *words, check=True)
    text = " ".join(done.stdout.split())
    assert "Steps, each chosen on the other parts' images" in text
    assert "measured on 5 held-out images, each by what the other parts chose" in text
    assert "It is that of one training, whose best epoch was chosen on these images" in text
    record = json.loads((tmp_path / "best.json").read_text())
    assert [step["step"] for step in record["steps"]] == ["best experiment", "views", "tiles", "smallest region"]
    trained = json.loads(large.result.read_text())
    assert record["steps"][0]["miou"] == pytest.approx(trained["val"]["miou"], abs=0.002)  # there is no choice yet
    settings = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert settings["ckpt_path"] == str(large.best)
    assert ("tile" in settings) == ("tiles of 64" in record["steps"][2]["choice"])
    out = tmp_path / "out"
    images = str(large.path.parents[1] / "images")
    run_program("predict", "-c", str(tmp_path / "best.yaml"), "--images", images, "--output", str(out), check=True)
    assert len(list((out / "masks").iterdir())) == 10


@pytest.mark.long
def test_tiles_are_measured_as_validate_processes_them(large: RunFolder) -> None:
    tiled, plain = Recipe((1,), tiles=Tiles(64, 32)), Recipe((1,))
    found = OutOfFold(large.path)
    table = measure([found], [tiled, plain], crf=None, progress=lambda samples, count: samples)
    mious = [float(pooled_miou(margins.sum(axis=0))) for margins in table.margins]
    words = ("--ckpt_path", str(large.best), "--tile", "64", "--overlap", "32")
    run_program("validate", *words, check=True)
    result = json.loads((large.path / "result_validate.json").read_text())
    assert mious[0] == pytest.approx(result["val"]["miou"], abs=0.002)
    assert abs(mious[0] - mious[1]) > 0.004  # so that this test can fail
    settings = recipe_settings(tiled, [found])
    assert (settings["tile"], settings["overlap"]) == (64, 32)
