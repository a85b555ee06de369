"""Label images by the real command, train on them in every fold, and validate on none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import read_csv
from tests.conftest import draw_noise_data, train_noise_experiment, write_image, write_mask
from tests.processes import run_program

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two folds, seven other images of which one is broken, and their labels in `labels`."""
    root = tmp_path_factory.mktemp("pseudo")
    draw_noise_data(root)
    train_noise_experiment(root)
    for index in range(6):
        write_image(root / "other" / "deep" / f"{index}.png", seed=100 + index)
    (root / "other" / "broken.jpg").write_bytes(b"no image")
    done = run_program("pseudo", *words(root, "labels"), "--precision", "0.9", check=True)
    assert "left out:" in done.stderr
    assert "broken.jpg" in done.stderr
    return root


def words(root: Path, output: str) -> list[str]:
    experiment, images = str(root / "runs" / "cv"), str(root / "other")
    return ["--experiment", experiment, "--images", images, "--output", str(root / output)]


@pytest.mark.long
def test_labels_are_right_where_there_are_any(root: Path) -> None:
    found = {path.name: np.asarray(Image.open(path)) for path in (root / "labels" / "masks" / "deep").iterdir()}
    assert sorted(found) == [f"{index}.png" for index in range(6)]
    truth = np.zeros((48, 64), dtype=np.uint8)
    truth[24:] = 1
    masks = np.stack([found[name] for name in sorted(found)])
    assert set(np.unique(masks)) <= {0, 1, 2, 255}
    labelled = masks != 255
    assert labelled.mean() > 0.2
    assert (masks == truth)[labelled].mean() > 0.85
    rows = {row["class"]: row for row in read_csv(root / "labels" / "pseudo.csv")}
    assert list(rows) == ["sky", "road", "car"]
    assert float(rows["sky"]["held-out precision"]) >= 0.9
    assert int(rows["sky"]["labelled pixels"]) == (masks == 0).sum()
    run_program("pseudo", *words(root, "strict"), "--precision", "0.999", check=True)
    strict = np.stack([np.asarray(Image.open(path)) for path in sorted((root / "strict/masks/deep").iterdir())])
    assert (strict != 255).sum() < labelled.sum()


@pytest.mark.long
def test_every_fold_trains_on_them_and_none_validates(root: Path) -> None:
    overlay = root / "labels" / "pseudo.yaml"
    configs = ("-c", str(root / "cv.yaml"), "-c", str(overlay), "--trainer.max_epochs", "1")
    run_program("kfold", *configs, "--name", "more", check=True)
    experiment = ExperimentFolder(root / "runs" / "more")
    assert len(PerImageConfusion.read(experiment.images).names) == 10
    for run in experiment.runs():
        assert "and 6 extra images train" in run.log.read_text()
        data = datamodule_from_config(run.read_config()["data"])
        data.prepare_data()
        data.setup("fit")
        names = [data.training_set.names[index] for index in data._train_indices()]
        assert sum(name.startswith("extra_0/deep/") for name in names) == 6
        assert len(names) == 11
        held_out = data.val_dataloader()
        assert not isinstance(held_out, list)
        validated = {name for batches in held_out for batch in batches for name in batch.names}
        assert len(validated) == 5
        assert not validated & set(names)
        drawn = {name for batch in data.train_dataloader() for name in batch.names}
        assert any(name.startswith("extra_0/") for name in drawn)
        assert data.class_pixels()[0].sum() > 6 * 48 * 64 * 0.2
    run_program("predict", "--experiment", str(experiment.path), "--images", str(root / "other" / "deep"), check=True)
    run_program("validate", "--ckpt_path", str(experiment.fold(0).best), check=True)


@pytest.mark.long
def test_a_second_set_of_labels_is_added_to_the_first(root: Path) -> None:
    configs = ("-c", str(root / "cv.yaml"), *2 * ("-c", str(root / "labels" / "pseudo.yaml")))
    printed = yaml.safe_load(run_program("fit", *configs, "--print_config", check=True).stdout)
    sets = printed["data"]["extra_datasets"]
    assert [entry["init_args"]["root"] for entry in sets] == [str(root / "labels")] * 2


@pytest.mark.long
def test_images_that_a_fold_validates_are_not_labelled(root: Path) -> None:
    """All were labelled, and `fit` then refused each."""
    options = (*words(root, "own")[:3], str(root / "images"), "--output", str(root / "own"))
    refused = run_program("pseudo", *options)
    assert refused.returncode == 1
    message = " ".join(refused.stderr.split())
    found = "--images: 10 images are also in data.dataset, which is validated or tested: 00.png = 00.png, 01.png"
    assert found in message
    assert "take them out of --images." in message
    assert "fold 0" not in refused.stdout
    assert not (root / "own").exists()


@pytest.mark.long
def test_images_that_a_fold_validates_are_no_extra_images(root: Path) -> None:
    write_mask(root / "leak" / "masks" / "renamed.png", np.zeros((48, 64), dtype=np.uint8))
    (root / "copies").mkdir()
    shutil.copy(root / "images" / "03.png", root / "copies" / "renamed.png")
    overlay = yaml.safe_load((root / "labels" / "pseudo.yaml").read_text())
    overlay["data"]["extra_datasets+"][0]["init_args"] |= {"root": str(root / "leak"), "images": str(root / "copies")}
    (root / "leak" / "pseudo.yaml").write_text(yaml.safe_dump(overlay))
    configs = ("-c", str(root / "cv.yaml"), "-c", str(root / "leak" / "pseudo.yaml"))
    refused = run_program("fit", *configs, "--name", "leak")
    assert refused.returncode == 1
    message = " ".join(refused.stderr.split())
    assert "1 images are also in data.dataset, which is validated or tested: renamed.png = 03.png" in message


@pytest.mark.long
def test_bad_options_are_refused_in_one_line(root: Path) -> None:
    twins = root / "twins"
    for suffix in ("png", "bmp"):
        write_image(twins / f"a.{suffix}", seed=1)
    cases = [
        (["--output", str(root / "labels")], "is not empty"),
        (["--images", str(root / "nothing")], "no such folder"),
        (["--output", str(root / "other" / "in")], "lies in --images"),
        (["--precision", "95"], "--precision must be in (0, 1)"),
        (["--tta", "turn"], "--tta must be flip"),
        (["--experiment", str(root / "images")], "no finished run"),
        (["--images", str(twins)], "would have one mask"),
    ]
    for changes, message in cases:
        refused = run_program("pseudo", *words(root, "x"), *changes)
        assert refused.returncode == 1, changes
        assert message in " ".join(refused.stderr.split()), refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (root / "x").exists()
