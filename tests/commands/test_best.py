"""Find the best way to predict by the real command, against figures that are computed here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import SegmentationModule
from deeplab_lightning.data.images import read_image
from deeplab_lightning.metrics.iou import class_iou
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import read_csv
from tests.conftest import draw_noise_data, noise_config, train_noise_experiment
from tests.processes import run_program

pytestmark = pytest.mark.slow


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


def test_the_printed_command_predicts_as_it_was_chosen(root: Path, tmp_path: Path) -> None:
    done = run_program("best", str(root / "runs" / "good"), "--output", str(tmp_path / "best.yaml"), check=True)
    command = done.stdout.strip().splitlines()[-1].split()
    assert command[:2] == ["deeplab", "predict"]
    words = [*command[1:-1], str(root / "images"), "--output", str(tmp_path / "out")]
    predicted = run_program(*words, check=True)
    assert "Averaging the probabilities of 2 checkpoints" in predicted.stdout + predicted.stderr
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 10


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


def test_what_cannot_be_searched_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    good = root / "runs" / "good"
    other = noise_config(root, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}, data={"split_seed": 5})
    other["output_dir"] = str(tmp_path)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    run_program("kfold", "-c", str(tmp_path / "other.yaml"), "--name", "other", check=True)
    (tmp_path / "crf.yaml").write_text("data: {}\n")
    cases = [
        ([str(good), str(tmp_path / "other")], "holds out other images than"),
        ([str(good / "fold_0")], "has one finished fold"),
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
