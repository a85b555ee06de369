"""Write the configuration of a folder with `deeplab data init`, check the data with it, and train on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import write_image, write_mask
from tests.processes import run_program

SMALL = (
    *("--model.net.init_args.backbone=test_resnet", "--model.net.init_args.pretrained=false", "--wandb=disabled"),
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.accelerator=cpu", "--data.num_workers=0"),
)
SIZE = (48, 64)
Table = dict[str, Any]


def index_mask(index: int, *values: int) -> "np.ndarray[Any, Any]":
    """Draw the first value with a square of each other one, of (48, 64)."""
    mask = np.full(SIZE, values[0], dtype=np.uint8)
    for position, value in enumerate(values[1:]):
        left = 4 + 14 * position
        mask[8 + index % 8 : 20 + index % 8, left : left + 12] = value
    return mask


def write_pairs(folder: Path, images: str, masks: str, *values: int, names: int = 6, seed: int = 0) -> None:
    """Write images `p0.jpg`, ... with index masks of the same names."""
    for index in range(names):
        write_image(folder / images / f"p{index}.jpg", seed=seed + index)
        write_mask(folder / masks / f"p{index}.png", index_mask(index, *values))


def write_coco(path: Path, images: Path, categories: list[str], names: int = 6, seed: int = 0) -> None:
    """Write images and a COCO file with a square of each category on each image."""
    entries: list[Table] = []
    objects: list[Table] = []
    for index in range(names):
        name = f"p{seed + index}.jpg"
        write_image(images / name, seed=seed + index)
        entries.append({"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for id_ in range(1, len(categories) + 1):
            left, right = 14 * id_, 14 * id_ + 12
            polygon = [left, 8, right, 8, right, 20, left, 20]
            objects.append(
                {"id": len(objects), "image_id": index, "category_id": id_, "segmentation": [polygon], "iscrowd": 0}
            )
    table = [{"id": id_, "name": name} for id_, name in enumerate(categories, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "annotations": objects, "categories": table}))


def written(folder: Path, *words: str) -> tuple[str, Table]:
    """Run the command where `folder` is `set`, and return the configuration as text and as a table."""
    run_program("data", "init", "set", *words, cwd=folder.parent, check=True)
    text = (folder.parent / "set.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 160
    return text, yaml.safe_load(text)


def passes(folder: Path) -> None:
    """Check and train with the configuration, without an edit."""
    checked = run_program("data", "check", "-c", "set.yaml", cwd=folder.parent)
    assert (checked.returncode, "No problems." in checked.stdout or "warning" in checked.stdout) == (0, True)
    run_program("fit", "-c", "set.yaml", "--name=x", *SMALL, cwd=folder.parent, check=True)
    assert (folder.parent / "runs" / "x" / "result.json").is_file()


def refused(folder: Path, *words: str) -> str:
    """Run the command on a folder that it cannot understand, and return the line that it printed."""
    result = run_program("data", "init", str(folder), *words, cwd=folder.parent)
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert not list(folder.parent.glob("*.yaml"))
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def classes(config: Table) -> Table:
    table: Table = config["data"]["dataset"]["init_args"]["classes"]
    return table


@pytest.mark.long
def test_binary_masks_become_background_and_foreground(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 255, names=7)
    text, config = written(folder)
    expected = {"names": ["background", "foreground"], "raw_ids": {0: 0, 255: 1}, "ignore_ids": []}
    assert classes(config) == expected
    share = 144 / (48 * 64)
    assert f"- foreground # value 255: 7 of 7 images, {share:.2%} of the pixels" in text
    data = config["data"]
    assert data["dataset"]["init_args"]["root"] == "set"  # as typed, relative to where the command runs
    assert (data["split"], data["n_folds"], data["batch_size"]) == ("folds", 5, 2)
    assert data["train_transforms"]["init_args"]["crop_size"] == [48, 64]
    passes(folder)


def test_folders_are_named_by_their_paths(folder: Path) -> None:
    """It printed `images with masks (images with masks)`."""
    write_pairs(folder, "images", "masks", 0, 1)
    done = run_program("data", "init", "set", cwd=folder.parent, check=True)
    assert done.stdout.startswith("images in set/images/ with masks in set/masks/: train 6 images, 2 classes\n")


@pytest.mark.long
def test_parts_in_folders_of_their_own_are_the_official_split(folder: Path) -> None:
    for part, seed in (("train", 0), ("val", 100), ("test", 200)):
        for index in range(6):
            name = f"{'ab'[index % 2]}_{index:03d}.png"
            write_image(folder / part / name, seed=seed + index)
            write_mask(folder / f"{part}annot" / name, index_mask(index, 0, 1, 255))
    text, config = written(folder)
    data = config["data"]
    assert data["split"] == "official"
    arguments = [data[key]["init_args"] for key in ("dataset", "val_dataset", "test_dataset")]
    assert [(own["images"], own["masks"]) for own in arguments] == [
        (part, f"{part}annot") for part in ("train", "val", "test")
    ]
    assert data["groups"]["class_path"] == "PatternGroups"
    assert data["n_folds"] == 2
    assert "train and val share a (3 and 3 images), b (3 and 3 images)" in text.replace("\n  # ", " ")
    assert classes(config)["ignore_ids"] == [255]
    assert f"255: {144 / (48 * 64):.2%}" in text
    passes(folder)
    folds = ["--data.split=folds", "--data.fold=1", "--name=folds"]
    run_program("fit", "-c", "set.yaml", *folds, *SMALL, cwd=folder.parent, check=True)
    groups = (folder.parent / "runs" / "folds" / "folds.csv").read_text()
    assert {line.split(",")[1] for line in groups.splitlines()[1:]} == {"a", "b"}


@pytest.mark.long
def test_lists_divide_one_folder_as_in_voc(folder: Path) -> None:
    write_pairs(folder, "VOC/JPEGImages", "VOC/SegmentationClass", 0, 1, 2, names=9)
    write_pairs(folder, "VOC/JPEGImages", "VOC/SegmentationObject", 0, 1, 2, names=9)
    write_image(folder / "VOC/JPEGImages/unlabelled.jpg", seed=50)
    lists = folder / "VOC/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, members in {"train": range(6), "val": range(6, 9), "trainval": range(9)}.items():
        (lists / f"{name}.txt").write_text("".join(f"p{index}\n" for index in members))
    (folder / "labels.txt").write_text("_background_\ncat\ndog\n")
    text, config = written(folder)
    data = config["data"]
    first, second = (data[key]["init_args"] for key in ("dataset", "val_dataset"))
    assert (first["images"], first["masks"]) == ("VOC/JPEGImages", "VOC/SegmentationClass")
    assert (first["list_file"], second["list_file"]) == tuple(
        f"VOC/ImageSets/Segmentation/{part}.txt" for part in ("train", "val")
    )
    assert classes(config)["names"] == ["background", "cat", "dog"]
    passes(folder)
    assert "masks without an image" not in text  # those of the other list have theirs


@pytest.mark.long
def test_drawings_beside_the_masks_are_no_data_set(folder: Path) -> None:
    """labelme's exporter writes each mask as PNG, as array and as a drawing on the photo."""
    write_pairs(folder, "JPEGImages", "SegmentationClass", 0, 1, 2)
    for index in range(6):
        write_image(folder / "SegmentationClassVisualization" / f"p{index}.jpg", seed=90 + index)
        array = folder / "SegmentationClassNpy" / f"p{index}.npy"
        array.parent.mkdir(exist_ok=True)
        np.save(array, index_mask(index, 0, 1, 2))
    text, config = written(folder)
    arguments = config["data"]["dataset"]["init_args"]
    assert (arguments["images"], arguments["masks"]) == ("JPEGImages", "SegmentationClass")
    said = " ".join(text.replace("#", "").split())
    for suffix, name in ((".jpg", "SegmentationClassVisualization"), (".npy", "SegmentationClassNpy")):
        assert f"{name} has *{suffix} files of masks that are there as PNG; left out." in said
    passes(folder)


@pytest.mark.long
def test_masks_of_objects_replace_no_arrays_of_classes(folder: Path) -> None:
    write_pairs(folder, "JPEGImages", "SegmentationObject", 0, 1, 2, 3)
    for index in range(6):
        array = folder / "SegmentationClass" / f"p{index}.npy"
        array.parent.mkdir(exist_ok=True)
        np.save(array, index_mask(index, 0, 1, 2))
    _, config = written(folder)
    assert config["data"]["dataset"]["init_args"]["masks"] == "SegmentationClass"


@pytest.mark.long
def test_one_coco_file_is_divided_into_folds(folder: Path) -> None:
    write_coco(folder / "annotations.json", folder / "pictures", ["can", "glass: green"])
    text, config = written(folder)
    arguments = config["data"]["dataset"]["init_args"]
    assert arguments == {
        "annotations": "set/annotations.json",
        "images": "set/pictures",
        "classes": ["can", "glass: green"],
        "background": "class",
    }
    assert "- can # 6 objects in 6 of 6 images, " in text
    passes(folder)


@pytest.mark.long
def test_coco_files_of_parts_get_the_classes_of_all(folder: Path) -> None:
    for part, seed, names in (("train", 0, ["can", "bag"]), ("val", 20, ["can"])):
        write_coco(folder / f"annotations/instances_{part}2017.json", folder / f"{part}2017", names, seed=seed)
    (folder / "annotations/captions_train2017.json").write_text('{"images": [], "annotations": []}')
    _, config = written(folder)
    data = config["data"]
    assert data["split"] == "official"
    assert data["val_dataset"]["init_args"] == {
        "annotations": "set/annotations/instances_val2017.json",
        "images": "set/val2017",
        "classes": ["can", "bag"],
        "background": "class",
    }
    passes(folder)


COLORS = {"road": (128, 64, 128), "car": (0, 0, 142), "sky": (0, 0, 0)}


def write_color_masks(folder: Path) -> None:
    table = np.array(list(COLORS.values()), dtype=np.uint8)
    for index in range(6):
        write_image(folder / "train/images" / f"p{index}.jpg", seed=index)
        mask = table[index_mask(index, 2, 0, 1) if index else np.full(SIZE, 2)]  # p0 is black only
        (folder / "train/labels").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "train/labels" / f"p{index}_mask.png")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("class_dict.csv", "{name},{0},{1},{2}"),
        ("label_colors.txt", "{0} {1} {2}\t\t{name}"),
        ("labelmap.txt", "{name}:{0},{1},{2}::"),
    ],
)
def test_colours_are_named_by_the_file_beside_them(folder: Path, name: str, line: str) -> None:
    write_color_masks(folder)
    head = {"class_dict.csv": ["name,r,g,b"], "labelmap.txt": ["# label:color_rgb:parts:actions"]}.get(name, [])
    lines = [*head, *(line.format(*color, name=key) for key, color in COLORS.items())]
    (folder / name).write_text("\n".join(lines) + "\n")
    text, config = written(folder)
    assert classes(config)["names"] == list(COLORS)
    assert classes(config)["colors"] == [list(color) for color in COLORS.values()]
    assert f"named by {name}" in text
    shares = {key: float(share) for key, share in _shares(text).items()}
    assert shares["sky"] == pytest.approx(100 * (1 - 5 * 288 / (6 * 48 * 64)), abs=0.01)
    if name == "class_dict.csv":
        passes(folder)


def _shares(text: str) -> dict[str, str]:
    """Return the shares of the pixels in the comments of the names."""
    lines = [line for line in text.splitlines() if line.endswith("% of the pixels") and " - " in line]
    return {line.split(" - ")[1].split(" #")[0]: line.split(", ")[-1].split("%")[0] for line in lines}


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-8", "UTF-8"), ("utf-16", "UTF-16"), ("cp1252", "Windows-1252"), ("utf-16-le", None)]
)
def test_class_files_are_read_in_the_encodings_that_people_save(folder: Path, encoding: str, name: str | None) -> None:
    """Only UTF-8 was read; of others, the config said that no file names the classes."""
    write_pairs(folder, "images", "masks", 0, 1, 2)
    (folder / "classes.txt").write_bytes("Straße\nFußgänger\nGebäude\n".encode(encoding))
    text, config = written(folder)
    if name is None:  # without a byte order mark
        assert classes(config)["names"] == ["class_0", "class_1", "class_2"]
        assert "classes.txt is not text in UTF-8" in text
        return
    assert classes(config)["names"] == ["Straße", "Fußgänger", "Gebäude"]
    assert f"named by classes.txt{'' if name == 'UTF-8' else f' (read as {name})'}" in text


def test_colours_without_a_file_are_numbered(folder: Path) -> None:
    write_color_masks(folder)
    _, config = written(folder)
    assert classes(config)["names"] == ["background", "class_1", "class_2"]
    assert classes(config)["colors"] == [[0, 0, 0], [0, 0, 142], [128, 64, 128]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2, 255), {"names": ["class_0", "class_1", "class_2"], "ignore_ids": [255]}),
        ((0, 1, 255), {"names": ["background", "foreground"], "ignore_ids": [255]}),
        ((0, 127, 255), {"names": ["class_0", "class_127", "class_255"], "raw_ids": {0: 0, 127: 1, 255: 2}}),
        ((1, 7), {"names": ["class_1", "class_7"], "raw_ids": {1: 0, 7: 1}, "ignore_ids": [255]}),
    ],
)
def test_values_without_names_are_numbered(folder: Path, values: tuple[int, ...], expected: Table) -> None:
    write_pairs(folder, "images", "masks", *values)
    _, config = written(folder)
    assert classes(config) == {"ignore_ids": [], **expected}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sky\nroad\nvoid\n", {"names": ["sky", "road"], "ignore_ids": [2, 255]}),
        ("background\nroad\n", {"names": ["background", "road"], "ignore_ids": [2, 255]}),
        (
            "2 sky\n1 road\n0 traffic light\n",
            {"names": ["sky", "road", "traffic light"], "raw_ids": {2: 0, 1: 1, 0: 2}},
        ),
        ("Pixel Value, Class\n0, sky\n1, road\n2, road\n", {"names": ["sky", "road"], "raw_ids": {0: 0, 1: 1, 2: 1}}),
    ],
)
def test_values_are_named_by_the_file_beside_them(folder: Path, content: str, expected: Table) -> None:
    write_pairs(folder, "images", "masks", 0, 1, 2)
    (folder / "classes.txt").write_text(content)
    _, config = written(folder)
    assert classes(config) == {"ignore_ids": [255], **expected}


def test_a_palette_gives_the_colours(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1, 2)
    for path in (folder / "masks").iterdir():
        with Image.open(path) as file:
            mask = file.copy()
        mask.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
        mask.save(path)
    _, config = written(folder)
    assert classes(config)["colors"] == [[0, 0, 0], [10, 20, 30], [40, 50, 60]]


def test_copies_stay_in_one_fold(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1, 2)
    for name in ("images/p0.jpg", "masks/p0.png"):
        shutil.copy(folder / name, folder / name.replace("p0", "copy"))
    text, config = written(folder)
    assert config["data"]["groups"] == {"class_path": "DuplicateGroups", "init_args": {"max_distance": 0}}
    assert "1 images are copies of others" in text
    assert config["data"]["n_folds"] == 5


def test_copies_of_one_image_alone_are_no_groups(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1, 2)
    for path in (folder / "images").iterdir():
        write_image(path)
    text, config = written(folder)
    assert config["data"]["groups"] is None
    assert "warning: data.dataset" in text or "5 images are copies of others" in text


def test_sequences_in_subfolders_are_one_data_set(folder: Path) -> None:
    for sequence in ("one", "two"):
        write_pairs(folder, f"frames/{sequence}", f"gt/{sequence}", 0, 1, 2, seed=ord(sequence[0]))
    _, config = written(folder)
    arguments = config["data"]["dataset"]["init_args"]
    assert (arguments["images"], arguments["masks"]) == ("frames", "gt")


def test_images_and_masks_may_share_a_folder(folder: Path) -> None:
    write_pairs(folder, "all", "all", 0, 1, 2)
    _, config = written(folder)
    arguments = config["data"]["dataset"]["init_args"]
    assert (arguments["image_suffix"], arguments["mask_suffix"]) == (".jpg", ".png")


def resize_masks(folder: Path, size: tuple[int, int]) -> None:
    """Resize masks with interpolation, and the images beside them."""
    for path in [*folder.rglob("*.png"), *folder.rglob("*.jpg")]:
        with Image.open(path) as file:
            resized = file.resize(size, Image.Resampling.BILINEAR)
        resized.save(path)


@pytest.mark.parametrize("size", [(41, 31), (90, 70)])
def test_colours_blended_by_a_resize_are_no_classes(folder: Path, size: tuple[int, int]) -> None:
    """They became classes without a word."""
    write_color_masks(folder)
    resize_masks(folder, size)
    line = refused(folder)
    assert "train/labels/p1_mask.png" in line
    assert " colours in lines too thin for a class, such as (" in line
    assert "resize the original masks with nearest neighbour" in line


def test_values_blended_by_a_resize_are_no_classes(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 255)
    resize_masks(folder, (41, 31))
    line = refused(folder)
    assert "masks/p0.png" in line
    assert " values in lines too thin for a class, such as " in line
    assert "between 0 and 255" in line


def test_thin_classes_are_no_blends(folder: Path) -> None:
    """Lanes 1 to 4 lie in class 0, and their values between 0 and 5; they touch 5 only at one end."""
    for index in range(6):
        write_image(folder / "images" / f"p{index}.jpg", (60, 80), seed=index)
        mask = np.zeros((60, 80), dtype=np.uint8)
        mask[:20] = 5
        for lane in range(1, 5):
            mask[20:, 15 * lane + index : 15 * lane + index + 2] = lane
        write_mask(folder / "masks" / f"p{index}.png", mask)
    _, config = written(folder)
    assert len(classes(config)["names"]) == 6
    table = np.array([(0, 0, 0), (32, 0, 0), (64, 0, 0), (96, 0, 0), (112, 0, 0), (128, 0, 0)], dtype=np.uint8)
    for path in sorted((folder / "masks").glob("*.png")):
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path)
    (folder.parent / "set.yaml").unlink()
    _, config = written(folder)
    assert len(classes(config)["names"]) == 6


def test_colours_between_others_are_classes_if_they_are_solid_or_named(folder: Path) -> None:
    """As VOC's cat (64, 0, 0), halfway from background to aeroplane."""
    table = np.array([(0, 0, 0), (128, 0, 0), (64, 0, 0)], dtype=np.uint8)
    for index in range(6):
        write_image(folder / "images" / f"p{index}.jpg", seed=index)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(table[index_mask(index, 0, 1, 2)]).save(folder / "masks" / f"p{index}.png")
    _, config = written(folder)
    assert classes(config)["names"] == ["background", "class_1", "class_2"]
    (folder.parent / "set.yaml").unlink()
    resize_masks(folder / "masks", (32, 24))  # half the size blends pixels in pairs and fours
    resize_masks(folder / "images", (32, 24))
    colors = {tuple(color) for path in folder.glob("masks/*") for color in np.asarray(Image.open(path)).reshape(-1, 3)}
    lines = [f"class {index},{red},{green},{blue}" for index, (red, green, blue) in enumerate(sorted(colors))]
    (folder / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]) + "\n")
    _, config = written(folder)
    assert len(classes(config)["names"]) == len(colors) > 3


def _nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("none")


def _images_alone(folder: Path) -> None:
    write_pairs(folder, "photos", "photos", 0, 1)
    for path in (folder / "photos").glob("*.png"):
        path.unlink()


def _absent_images(folder: Path) -> None:
    write_coco(folder / "a.json", folder / "images", ["can"])
    shutil.rmtree(folder / "images")


def _two_coco_files(folder: Path) -> None:
    write_coco(folder / "a.json", folder / "images", ["can"])
    shutil.copy(folder / "a.json", folder / "b.json")


def _two_kinds_of_masks(folder: Path) -> None:
    write_pairs(folder, "images", "masks_fine", 0, 1)
    write_pairs(folder, "images", "masks_coarse", 0, 1)


def _lossy_masks(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1)
    for path in (folder / "masks").glob("*.png"):
        with Image.open(path) as file:
            file.save(path.with_suffix(".jpg"))
        path.unlink()


def _one_name_too_few(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1, 2)
    (folder / "classes.txt").write_text("road\ncar\n")


def _list_in_utf_16(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1)
    for part, names in (("train", "p0\np1\np2\np3\n"), ("val", "p4\np5\n")):
        (folder / f"{part}.txt").write_text(names, encoding="utf-16")


def _two_class_files(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0, 1)
    (folder / "classes.txt").write_text("road\ncar\n")
    (folder / "labels.txt").write_text("car\nroad\n")


def _one_class(folder: Path) -> None:
    write_pairs(folder, "images", "masks", 0)


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (lambda folder: None, ["holds no file", "start from configs/data/coco.yaml"]),
        (_nothing, ["holds 1 file, no image among them", "start from configs/data/coco.yaml"]),
        (_images_alone, ["holds images (6 in photos)", "neither masks of the same names nor COCO JSON"]),
        (_absent_images, ["a.json: names 6 images such as p0.jpg, and none of them is there"]),
        (_two_coco_files, ["holds 2 data sets: COCO JSON (a.json); COCO JSON (b.json)"]),
        (
            _two_kinds_of_masks,
            ["holds 2 data sets", "set/images/ with masks in", "set/masks_coarse/; images in", "set/masks_fine/. Give"],
        ),
        (_lossy_masks, ["is a mask in JPEG with lossy compression"]),
        (_one_name_too_few, ["classes.txt names 2 classes, and the masks hold the values 0, 1, 2", "Add a line"]),
        (_list_in_utf_16, ["set/train.txt: lists images, and is UTF-16. Save it as UTF-8."]),
        (_two_class_files, ["classes.txt and labels.txt both name the classes"]),
        (_one_class, ["only class class_0 has pixels, so there is nothing to learn"]),
    ],
)
def test_what_cannot_be_understood_is_refused_in_one_line(
    folder: Path, write: Callable[[Path], None], texts: list[str]
) -> None:
    write(folder)
    line = refused(folder)
    assert [text for text in texts if text not in line] == [], line


def test_a_folder_must_exist_and_no_file_is_overwritten(folder: Path) -> None:
    assert "no such folder: " in refused(folder / "absent")
    write_pairs(folder, "images", "masks", 0, 1)
    (folder.parent / "own").write_text("mine")
    assert "own exists, and no file is overwritten" in refused(folder, "--output", "own")
    assert (folder.parent / "own").read_text() == "mine"


@pytest.mark.long
@pytest.mark.parametrize("name", ["camvid", "facade"])
def test_real_data_train_with_what_was_written(real_data: Path, tmp_path: Path, name: str) -> None:
    run_program("data", "init", str(real_data / name), "--output", "set.yaml", cwd=tmp_path, check=True)
    text = (tmp_path / "set.yaml").read_text().replace("\n  # ", " ")
    facts = {
        "camvid": ["train and val share 0016E5 (204 and 101 images)", "# value 11: 367 of 367 images, 3.95%"],
        "facade": ["# of 145 groups; the rarest class, shop, is in 33 images", "- window # 3,374 objects"],
    }
    assert [fact for fact in facts[name] if fact not in text] == [], text
    passes(tmp_path / "set")


@pytest.mark.long
def test_folders_of_patients_stay_whole(tmp_path: Path) -> None:
    """The slices of a patient were in several folds, and nothing said so."""
    for patient in range(8):
        for index, view in enumerate(("axial", "coronal", "sagittal")):
            name = f"P{patient:02d}/{view}"
            write_image(tmp_path / "set" / "images" / f"{name}.png", seed=3 * patient + index)
            write_mask(tmp_path / "set" / "masks" / f"{name}.png", index_mask(index, 0, 1))
    _, config = written(tmp_path / "set")
    assert config["data"]["groups"]["init_args"]["pattern"] == "^(.+)/"
    run_program("split", "-c", "set.yaml", "--output", "folds", cwd=tmp_path, check=True)
    rows = (tmp_path / "folds" / "folds.csv").read_text().splitlines()[1:]
    folds = {(row.split("/")[0], row.rsplit(",", 1)[1]) for row in rows}
    assert len(folds) == 8
