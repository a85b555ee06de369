"""Write configurations for folders by the real command, and train on them without an edit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from tests.conftest import write_image, write_mask
from tests.processes import run_program

Mask = npt.NDArray[np.uint8]
SIZE = (48, 64)
TINY = (
    *("--model.net.init_args.backbone", "test_resnet", "--model.net.init_args.pretrained", "false"),
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0", "--data.num_workers", "0"),
    *("--wandb", "disabled", "--data.batch_size", "2"),
)


def blocks(values: list[int], seed: int) -> Mask:
    """A mask of blocks, which holds every value."""
    rng = np.random.default_rng(seed)
    cells = np.append(rng.choice(values, 12 - len(values)), values).reshape(3, 4)
    return np.repeat(np.repeat(cells, 16, axis=0), 16, axis=1).astype(np.uint8)


def pairs(folder: Path, images: str, masks: str, values: list[int], count: int = 8, *, prefix: str = "") -> None:
    """Write images and masks of the same names."""
    for index in range(count):
        write_image(folder / images / f"{prefix}{index:02d}.jpg", SIZE, seed=index)
        write_mask(folder / masks / f"{prefix}{index:02d}.png", blocks(values, index))


def binary(folder: Path) -> None:
    pairs(folder, "images", "masks", [0, 255])


def camvid(folder: Path) -> None:
    for part in ("train", "val", "test"):
        pairs(folder, part, f"{part}annot", [0, 1, 2], prefix=f"{part[0]}seq_")


def voc(folder: Path) -> None:
    pairs(folder, "JPEGImages", "SegmentationClass", [0, 1, 2, 255], prefix="2007_")
    pairs(folder, "JPEGImages", "SegmentationObject", [0, 1, 2, 255], prefix="2007_")
    for part, chosen in (("train", range(5)), ("val", range(5, 8))):
        path = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"2007_{index:02d}\n" for index in chosen))


def colored(folder: Path) -> None:
    """Colour masks with a CSV file of names and colours, as CamVid's original has."""
    colors = {"sky": (128, 128, 128), "road": (128, 64, 128), "car": (64, 0, 128)}
    palette = np.array(list(colors.values()), dtype=np.uint8)
    for index in range(8):
        write_image(folder / "images" / f"{index:02d}.png", SIZE, seed=index)
        mask = palette[blocks([0, 1, 2], index)]
        (folder / "labels").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "labels" / f"{index:02d}.png")
    rows = "".join(f"{name},{','.join(map(str, color))}\n" for name, color in colors.items())
    (folder / "class_dict.csv").write_text(f"name,r,g,b\n{rows}")


def coco_file(path: Path, images: Path, names: list[str]) -> None:
    """Write a COCO file with a square of each of two categories in each image."""
    entries: dict[str, list[Any]] = {"images": [], "annotations": []}
    for index, name in enumerate(names):
        write_image(images / name, SIZE, seed=index)
        entries["images"].append({"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for category in (1, 2):
            left = 4 + 25 * (category - 1)
            box = [left, 8, left + 20, 8, left + 20, 30, left, 30]
            own = {"id": len(entries["annotations"]) + 1, "image_id": index, "category_id": category, "iscrowd": 0}
            entries["annotations"].append({**own, "segmentation": [box], "area": 440, "bbox": [left, 8, 20, 22]})
    categories = [{"id": 1, "name": "bottle"}, {"id": 2, "name": "can"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**entries, "categories": categories}))


def coco_one(folder: Path) -> None:
    coco_file(folder / "annotations.json", folder / "images", [f"{index}.png" for index in range(8)])


def coco_parts(folder: Path) -> None:
    for part in ("train", "val"):
        names = [f"{part}{index}.png" for index in range(6)]
        coco_file(folder / "annotations" / f"instances_{part}.json", folder / f"{part}2017", names)


CASES: dict[str, tuple[Callable[[Path], None], list[str], str, list[str]]] = {
    # what is written, class names, split, keys of the data sets
    "binary": (binary, ["background", "foreground"], "folds", ["dataset"]),
    "camvid": (camvid, ["class_0", "class_1", "class_2"], "official", ["dataset", "val_dataset", "test_dataset"]),
    "voc": (voc, ["class_0", "class_1", "class_2"], "official", ["dataset", "val_dataset"]),
    "colored": (colored, ["sky", "road", "car"], "folds", ["dataset"]),
    "coco_one": (coco_one, ["bottle", "can"], "folds", ["dataset"]),
    "coco_parts": (coco_parts, ["bottle", "can"], "official", ["dataset", "val_dataset"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_understood_and_trains_without_an_edit(tmp_path: Path, case: str) -> None:
    write, names, split, keys = CASES[case]
    write(tmp_path / "data")
    done = run_program("data", "init", "data", "--output", "config.yaml", cwd=tmp_path, check=True)
    assert "Written to config.yaml" in done.stdout
    text = (tmp_path / "config.yaml").read_text()
    assert str(tmp_path) not in text  # the folder as it was typed
    config = yaml.safe_load(text)
    assert config["data"]["split"] == split
    assert [key for key in config["data"] if key.endswith("dataset")] == keys
    classes = config["data"]["dataset"]["init_args"]["classes"]
    assert (classes if isinstance(classes, list) else classes["names"]) == names
    run_program("data", "check", "-c", "config.yaml", cwd=tmp_path, check=True)
    trained = run_program("fit", "-c", "config.yaml", *TINY, "--name", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-2000:]
    result = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    assert [name for name in result["last"]["iou"] if name != "background" or "background" in names] == names


@pytest.mark.slow
def test_the_labels_are_those_of_the_files(tmp_path: Path) -> None:
    """The written class tables read 0/255, colours and void as they are meant."""
    from deeplab_lightning.data.config import datamodule_from_config

    for case, expected in (("binary", {0: 0, 255: 1}), ("voc", {0: 0, 1: 1, 2: 2, 255: 255})):
        folder = tmp_path / case
        CASES[case][0](folder)
        run_program("data", "init", str(folder), "--output", str(folder / "c.yaml"), check=True)
        data = datamodule_from_config(yaml.safe_load((folder / "c.yaml").read_text())["data"])
        dataset: Any = data.dataset
        for index, path in enumerate(dataset.mask_paths):
            raw, labels = np.asarray(Image.open(path)), dataset.read_mask(index).numpy()
            assert {(int(a), int(b)) for a, b in zip(raw.flat, labels.flat, strict=True)} <= set(expected.items())


def only_images(folder: Path) -> None:
    write_image(folder / "images" / "a.png", SIZE)


def nothing(folder: Path) -> None:
    folder.mkdir()


def a_text(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("none")


def two_sets(folder: Path) -> None:
    pairs(folder, "a/images", "a/masks", [0, 1], 3)
    coco_file(folder / "b" / "annotations.json", folder / "b" / "images", ["x.png", "y.png"])


def one_class(folder: Path) -> None:
    pairs(folder, "images", "masks", [3])


def two_kinds(folder: Path) -> None:
    colored(folder)
    write_mask(folder / "labels" / "00.png", blocks([0, 1], 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "text"),
    [
        (only_images, "neither masks of the same names nor COCO JSON"),
        (nothing, "no file"),
        (a_text, "no image"),
        (two_sets, "holds 2 data sets"),
        (one_class, "only class class_3 has pixels"),
        (two_kinds, "is a colour mask"),
        (None, "no such folder"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(
    tmp_path: Path, write: Callable[[Path], None] | None, text: str
) -> None:
    if write is not None:
        write(tmp_path / "data")
    done = run_program("data", "init", "data", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    message = " ".join(done.stderr.split())
    assert text in message
    assert "Traceback" not in message
    assert not (tmp_path / "data.yaml").exists()


@pytest.mark.slow
def test_no_file_is_overwritten(tmp_path: Path) -> None:
    binary(tmp_path / "data")
    (tmp_path / "data.yaml").write_text("mine")
    done = run_program("data", "init", "data", cwd=tmp_path)
    assert done.returncode == 1
    assert "no file is overwritten" in done.stderr
    assert (tmp_path / "data.yaml").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "groups"), [("camvid", "PatternGroups"), ("facade", "PatternGroups")])
def test_real_folders_train_without_an_edit(real_data: Path, tmp_path: Path, name: str, groups: str) -> None:
    run_program("data", "init", str(real_data / name), cwd=tmp_path, check=True)
    config = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    assert config["data"]["groups"]["class_path"] == groups
    trained = run_program("fit", "-c", f"{name}.yaml", *TINY, "--name", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-2000:]
