"""Calibrate by the real commands, against temperatures and errors computed here."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from deeplab_lightning import SegmentationModule
from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.tables import read_csv
from tests.planted import Planted
from tests.processes import run_program

Experiment = tuple[Path, list[Planted]]


@pytest.fixture(scope="module")
def experiment(planted_experiment: Experiment) -> Path:
    run_program("calibrate", str(planted_experiment[0]), check=True)
    return planted_experiment[0]


@pytest.fixture(scope="module")
def average(experiment: Path) -> Path:
    """The temperature of the average of both folds and both views, on the clean labels as a test data set."""
    file, annotations = experiment / "average.json", experiment.parents[1] / "data" / "annotations.json"
    dataset = json.dumps({"class_path": "CocoDataset", "init_args": {"annotations": str(annotations)}})
    words = ("--experiment", str(experiment), "--tta", "flip", "--data.test_dataset", dataset)
    done = run_program("test", *words, "--calibration", str(file), check=True)
    assert "of 2 networks over the views flip; calibration error" in done.stdout
    return file


def held_out(experiment: Path, fold: int) -> tuple[Tensor, Tensor]:
    """Compute logits (N, K) of all pixels that a fold held out, and their labels, without the package's own pass."""
    data = CocoDataset(str(experiment.parents[1] / "data" / "planted.json"))
    rows = read_csv(experiment / "folds.csv")
    names = {row["image"] for row in rows if row["fold"] == str(fold)}
    net = SegmentationModule.load_from_checkpoint(experiment / f"fold_{fold}" / "checkpoints" / "best.ckpt").net.eval()
    logits, labels = [], []
    for index, name in enumerate(data.names):
        if name in names:
            with torch.no_grad():
                logits.append(net(data.read_image(index)[None])[0].flatten(1).T)
            labels.append(data.read_mask(index).flatten())
    return torch.cat(logits), torch.cat(labels).long()


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Minimise the negative log-likelihood by steps of Newton's kind, with gradients of PyTorch."""
    inverse = torch.ones((), requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], lr=0.5, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits * inverse, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return 1 / inverse.item()


@pytest.mark.long
def test_the_temperature_is_that_of_all_held_out_pixels(experiment: Path) -> None:
    found = json.loads((experiment / "calibration.json").read_text())
    parts = [held_out(experiment, fold) for fold in (0, 1)]
    logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert found["temperature"] == pytest.approx(best_temperature(logits, labels), rel=0.01)
    assert found["num_pixels"] == len(labels) == 32 * 64 * 64  # so few that all are used
    own = [best_temperature(*part) for part in parts]
    crossed = found["cross_fitted"]
    assert crossed["temperatures"] == pytest.approx(own[::-1], rel=0.01)  # each fold has that of the other
    for key, temperatures in (("before", (1.0, 1.0)), ("after", own[::-1])):
        scaled = torch.cat([part[0] / t for part, t in zip(parts, temperatures, strict=True)]).softmax(1)
        expected = multiclass_calibration_error(scaled, labels, 4, n_bins=15, norm="l1")
        assert crossed[key]["ece"] == pytest.approx(float(expected), abs=2e-3)
    assert list(crossed["after"]["class_ece"]) == ["background", "red", "green", "blue"]
    with Image.open(experiment / "calibration.png") as figure:
        assert figure.width > 500
    run_program("report", str(experiment), check=True)
    sentence = (
        f"Expected calibration error of cv: {crossed['before']['ece']:.3f}, and {crossed['after']['ece']:.3f} with"
    )
    assert sentence in (experiment / "report.html").read_text()


@pytest.mark.long
def test_the_temperature_of_an_average_is_its_own(experiment: Path, average: Path) -> None:
    """An average is less sure than its networks, so theirs would leave it under-confident."""
    data = CocoDataset(str(experiment.parents[1] / "data" / "annotations.json"))
    paths = [experiment / f"fold_{fold}" / "checkpoints" / "best.ckpt" for fold in (0, 1)]
    nets = [SegmentationModule.load_from_checkpoint(path).net.eval() for path in paths]
    images = torch.stack([data.read_image(index) for index in range(len(data))])
    with torch.no_grad():
        parts = [part for net in nets for part in (net(images), net(images.flip(-1)).flip(-1))]
    logits = torch.stack([part.softmax(1) for part in parts]).mean(0).log()[..., ::4, ::4]
    labels = torch.stack([data.read_mask(index) for index in range(len(data))])[:, ::4, ::4].long()
    expected = best_temperature(logits.movedim(1, -1).flatten(0, 2), labels.flatten())
    found = json.loads(average.read_text())
    assert found["temperature"] == pytest.approx(expected, rel=0.01)
    assert found["temperature"] < json.loads((experiment / "calibration.json").read_text())["temperature"]


@pytest.mark.long
def test_predictions_are_written_at_the_temperature(experiment: Path, average: Path, tmp_path: Path) -> None:
    """No label changes."""
    images, file = experiment.parents[1] / "data" / "00.png", average
    source = ["--experiment", str(experiment), "--tta", "flip", "--images", str(images)]
    source += ["--probabilities", "npz", "--confidence"]
    run_program("predict", *source, "--output", str(tmp_path / "plain"), check=True)
    run_program("predict", *source, "--output", str(tmp_path / "file"), "--temperature", str(file), check=True)
    run_program("predict", *source, "--output", str(tmp_path / "number"), "--temperature", "2", check=True)

    def values(name: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        with np.load(tmp_path / name / "probabilities" / "00.npz") as content:
            return np.asarray(content["probabilities"], dtype=np.float32)

    plain = values("plain")
    for name, temperature in (("file", json.loads(file.read_text())["temperature"]), ("number", 2.0)):
        expected = np.maximum(plain, 1e-8) ** (1 / temperature)
        expected /= expected.sum(axis=0)
        assert np.abs(values(name) - expected).max() < 5e-3  # float16
        confidence = np.asarray(Image.open(tmp_path / name / "confidence" / "00.png"))
        assert np.abs(confidence / 255 - expected.max(axis=0)).max() < 6e-3
        before, after = (np.asarray(Image.open(tmp_path / own / "masks" / "00.png")) for own in ("plain", name))
        assert np.array_equal(before, after)
    assert np.abs(values("number") - plain).max() > 0.05  # so that this test can fail


@pytest.mark.long
def test_evaluations_report_the_calibration_error(experiment: Path) -> None:
    best = experiment / "fold_0" / "checkpoints" / "best.ckpt"
    done = run_program("validate", "--ckpt_path", str(best), check=True)
    assert "calibration error" in done.stdout
    found = json.loads((experiment / "fold_0" / "result_validate.json").read_text())["val"]["ece"]
    logits, labels = held_out(experiment, 0)
    every_fourth = [own.unflatten(0, (-1, 64, 64))[:, ::4, ::4].flatten(0, 2) for own in (logits.softmax(1), labels)]
    expected = multiclass_calibration_error(every_fourth[0], every_fourth[1], 4, n_bins=15, norm="l1")
    assert found == pytest.approx(float(expected), abs=2e-3)
    result = json.loads((experiment / "fold_0" / "result.json").read_text())
    assert "ece" not in result["val"]  # of the trainings, whose validations it would slow down


@pytest.mark.long
def test_a_run_is_calibrated_on_halves_of_its_validation_images(experiment: Path) -> None:
    run = experiment / "fold_1"
    done = run_program("calibrate", str(run), check=True)
    found = json.loads((run / "calibration.json").read_text())
    assert found["num_images"] == 16
    assert len(found["cross_fitted"]["temperatures"]) == 2
    assert math.isclose(found["temperature"], best_temperature(*held_out(experiment, 1)), rel_tol=0.01)
    assert f"--ckpt_path {run / 'checkpoints' / 'best.ckpt'}" in " ".join(done.stdout.split())
    assert "deeplab test" not in done.stdout  # which is for averages


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--temperature", "2"], "give one of them"),
        (["--temperature", "0", "--confidence"], "--temperature must be a positive number"),
        (["--temperature", "none.json", "--confidence"], "no such file"),
        (["--temperature", "2", "--confidence", "--model.postprocess", "DenseCRF"], "there is a model.postprocess"),
        (
            ["--temperature", "{}/calibration.json", "--confidence", "--tta", "flip"],
            "was fitted on 1 network, and not on 1 network over the views flip as here",
        ),
    ],
)
def test_temperatures_that_cannot_be_used_are_one_line(experiment: Path, words: list[str], text: str) -> None:
    best = experiment / "fold_0" / "checkpoints" / "best.ckpt"
    images = experiment.parents[1] / "data" / "00.png"
    words = [word.format(experiment) for word in words]
    done = run_program("predict", "--ckpt_path", str(best), "--images", str(images), *words)
    assert done.returncode == 1
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_folder_without_runs_is_one_line() -> None:
    done = run_program("calibrate", "nothing")
    assert done.returncode == 1
    assert "no finished run with a best.ckpt in" in done.stderr
