from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deeplab_lightning.data.check import Part, find_warnings, single_class_problem
from deeplab_lightning.data.classes import ClassTable, voc_palette
from deeplab_lightning.data.datasets import CocoDataset, MaskFolderDataset
from deeplab_lightning.data.groups import PatternGroups
from deeplab_lightning.data.scan import scan_dataset
from tests.conftest import write_image, write_mask

Mask = "np.ndarray[Any, Any]"
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write four images with masks of the values 0, 1 and 2."""
    for index in range(4):
        write_image(tmp_path / "images" / f"{index}.png", (16, 20), seed=index)
        write_mask(tmp_path / "masks" / f"{index}.png", stripes(0, 1, 2))
    return tmp_path


def stripes(*values: int) -> Any:
    """Return a mask of 16 x 20 pixels with a stripe of each value."""
    return np.repeat(np.array(values, dtype=np.uint8), -(-20 // len(values)))[None, :20].repeat(16, axis=0)


def part(folder: Path, **table: Any) -> Part:
    classes = ClassTable(**{"names": ["background", "a", "b"], **table})
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=classes, on_error="skip")
    return Part(dataset, scan_dataset(dataset))


def warnings(folder: Path, **table: Any) -> list[str]:
    return find_warnings({"data.dataset": part(folder, **table)})


def test_good_data_are_not_suspicious(folder: Path) -> None:
    assert warnings(folder) == []
    assert single_class_problem(part(folder)) is None


def test_a_class_behind_an_ignored_value_is_seen(folder: Path) -> None:
    """Masks of 0 and 255, where 255 is the building: the check said nothing, and the training ended with mIoU 1.000."""
    for index in range(4):
        write_mask(folder / "masks" / f"{index}.png", stripes(0, 0, 0, 255))
    found = part(folder, names=["background", "building"])
    [warning] = find_warnings({"data.dataset": found})
    assert "1 class has no pixel in any mask: building; 25.0% (value 255: 25.0%) of the pixels are ignored" in warning
    assert "if value 255 means a class, name it in classes.raw_ids" in warning
    problem = single_class_problem(found)
    assert problem is not None
    assert "only class background has pixels, so there is nothing to learn" in str(problem)


def test_train_ids_where_raw_ids_are_expected_are_seen(folder: Path) -> None:
    raw_ids = {7: 0, 8: 1, 2: 2}
    table = {"names": ["road", "walk", "sky"], "raw_ids": raw_ids, "ignore_ids": [0, 1, 255]}
    assert (
        "the masks hold the values 0-2, which look like train ids, but the class table expects raw ids (2, 7-8)"
        in (warnings(folder, **table)[0])
    )


def test_ignored_images_and_pixels_are_counted(folder: Path) -> None:
    write_mask(folder / "masks" / "2.png", stripes(255))
    assert warnings(folder) == ["data.dataset: 1 image (2.png) is ignored throughout."]
    for index in range(4):
        write_mask(folder / "masks" / f"{index}.png", stripes(255, 255, 255, 254, 0, 1, 2))
    [warning] = warnings(folder, ignore_ids=[254, 255])
    assert warning == "data.dataset: 60.0% (value 255: 45.0%, value 254: 15.0%) of the pixels are ignored."


def test_copies_are_found_within_and_across_data_sets(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name, source in (("x", 1), ("y", 9)):
        write_image(other / "images" / f"{name}.bmp", (16, 20), seed=source)
        write_mask(other / "masks" / f"{name}.png", stripes(0, 1, 2))
    write_image(folder / "images" / "3.png", (16, 20), seed=0)
    found = find_warnings(
        {"data.dataset": part(folder), "data.val_dataset": part(other)},
        folds=dict.fromkeys(["0.png"], 0) | {"3.png": 1},
    )
    assert found[0] == "data.dataset: 1 images are copies of others: 0.png = 3.png."
    assert found[1] == "data.val_dataset: 1 images are also in data.dataset: x.bmp = 1.png."
    assert "1 images have copies in another fold" in found[2]
    assert len(found) == 3


def test_exif_turns_images_and_masks_alike(folder: Path) -> None:
    """Image and mask of one camera are both stored sideways."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(stripes(0, 1, 2))
    Image.fromarray(np.rot90(np.asarray(Image.open(folder / "images" / "0.png")))).save(
        folder / "images" / "0.png", exif=exif
    )
    Image.fromarray(stored).save(folder / "masks" / "0.png", exif=exif)
    found = part(folder)
    assert np.array_equal(found.dataset.read_mask(0).numpy(), stripes(0, 1, 2))
    assert found.statistics.is_turned.tolist() == [True, False, False, False]
    assert "1 image (0.png) is turned upright by an EXIF tag" in find_warnings({"data.dataset": found})[0]


def test_palettes_that_differ_are_named_with_the_colours(folder: Path) -> None:
    for index in range(4):
        mask = Image.fromarray(stripes(0, 1, 2))
        colors = [0, 0, 0, 255, 0, 0, 0, 255, 0] if index < 3 else [0, 0, 0, 0, 255, 0, 255, 0, 0]
        mask.putpalette(colors + [index] * 759)  # unused entries may differ
        mask.save(folder / "masks" / f"{index}.png")
    [warning] = warnings(folder)
    assert "value 1 is (255, 0, 0) in 0.png and (0, 255, 0) in 3.png" in warning


def test_palettes_whose_colours_belong_to_other_classes_are_named(folder: Path) -> None:
    """All labels were permuted, and the check said nothing."""
    for index in range(4):
        mask = Image.fromarray(stripes(0, 1, 2) if index else stripes(2))  # the first one does not hold all classes
        mask.putpalette([0, 128, 0, 0, 0, 0, 128, 0, 0] + [7] * 759)
        mask.save(folder / "masks" / f"{index}.png")
    [warning] = warnings(folder, colors=[[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    assert "value 0 means background, but the palette of the masks gives it (0, 128, 0), the colour of b" in warning
    for colors, raw_ids in (
        ([[0, 128, 0], [0, 0, 0], [128, 0, 0]], None),  # the same order
        ([[0, 0, 0], [128, 0, 0], [0, 128, 0]], {1: 0, 2: 1, 0: 2}),  # the values are mapped
        ([[9, 9, 9], [128, 0, 9], [9, 128, 0]], None),  # other colours
    ):
        assert warnings(folder, colors=colors, raw_ids=raw_ids) == []
    for index in range(4):  # VOC's palette, which says nothing of classes without colours of their own
        mask = Image.fromarray(stripes(0, 1, 2))
        mask.putpalette([channel for color in voc_palette(256) for channel in color])
        mask.save(folder / "masks" / f"{index}.png")
    assert warnings(folder, raw_ids={1: 0, 2: 1}, names=["a", "b"], ignore_ids=[0]) == []


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        (".jpg", {}, "JPEG with lossy compression"),
        (".webp", {}, "WEBP with lossy compression"),
        (".tif", {"compression": "jpeg"}, "lossy compression"),
    ],
)
def test_lossy_masks_are_a_problem(folder: Path, suffix: str, options: dict[str, Any], message: str) -> None:
    for path in list((folder / "masks").iterdir()):
        Image.open(path).convert("RGB" if suffix == ".webp" else "L").save(path.with_suffix(suffix), **options)
        path.unlink()
    classes = ClassTable(["background", "a", "b"])
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=classes, mask_suffix=suffix)
    problems = scan_dataset(dataset).problems
    assert len(problems) == 4
    assert message in str(problems[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0, 1, 65537], dtype=np.int32), "mask values [65537] are not in the class table"),
        (np.array([0, 1, -1], dtype=np.int32), "mask values [-1] are not in the class table"),
        (np.array([0, 1, 2.5], dtype=np.float32), "holds the value 2.5, but labels must be whole numbers"),
        (np.array([0, 1, np.nan], dtype=np.float32), "holds the value nan"),
        (np.array([0, 1, 2], dtype=np.float32), None),
        (np.array([0, 1, 2], dtype=np.int32), None),
        (np.array([0, 1, 2], dtype=np.uint16), None),
    ],
)
def test_values_of_wide_masks_are_named_as_they_are(folder: Path, values: Any, message: str | None) -> None:
    for path in list((folder / "masks").iterdir()):
        Image.fromarray(values[stripes(0, 1, 2)]).save(path.with_suffix(".tif"))
        path.unlink()
    classes = ClassTable(["background", "a", "b"])
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=classes, mask_suffix=".tif")
    statistics = scan_dataset(dataset)
    if message is None:
        assert statistics.problems == []
        assert dataset.read_mask(0).tolist() == stripes(0, 1, 2).tolist()
    else:
        assert message in str(statistics.problems[0])


def test_train_ids_of_a_custom_data_set_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label in [K, 254] would be counted in the next image's confusion matrix."""
    found = part(folder).dataset
    original = type(found).read_mask

    class Custom(MaskFolderDataset):
        def read_mask(self, index: int) -> Any:
            return original(self, index) + 3 * (index == 1)

        def inspect_mask(self, index: int) -> Any:
            return super(MaskFolderDataset, self).inspect_mask(index)

        def fingerprint(self, index: int) -> str:
            return f"custom {super().fingerprint(index)}"

    dataset = Custom(str(folder), "images", masks="masks", classes=found.classes)
    [problem] = scan_dataset(dataset).problems
    assert problem.images == ("1.png",)
    assert "holds the train ids [3, 4, 5], but there are 3 classes (0 to 2)" in str(problem)


def test_objects_without_a_pixel_are_counted(coco: Callable[..., Path]) -> None:
    square = [[0, 0, 6, 0, 6, 6, 0, 6]]
    objects = [{"category_id": i, "segmentation": square} for i in (1, 2)] * 60
    outside = {"category_id": 1, "segmentation": [[-9, -9, -5, -9, -5, -5]]}
    dataset = CocoDataset(str(coco([*objects, outside])))
    found = find_warnings({"data.dataset": Part(dataset, scan_dataset(dataset))})
    assert "data.dataset: 1 of 121 objects cover no pixel." in found


def test_images_of_one_mask_are_a_problem(folder: Path) -> None:
    write_image(folder / "images" / "1.bmp", (16, 20), seed=5)
    problems = part(folder).dataset.problems
    assert [problem.images for problem in problems] == [("1.bmp", "1.png")]
    assert "is the mask of 2 images (1.bmp, 1.png)" in str(problems[0])


def test_masks_in_the_folder_of_the_images_are_no_images(folder: Path) -> None:
    for path in list((folder / "images").iterdir()):
        Image.open(path).save(folder / "masks" / f"{path.stem}.jpg")
    classes = ClassTable(["background", "a", "b"])
    both = MaskFolderDataset(str(folder), "masks", masks="masks", classes=classes, on_error="skip")
    assert both.names == [f"{index}.jpg" for index in range(4)]
    assert "0.png: it is the mask of 0.jpg and an image itself" in str(both.problems[0])
    (folder / "masks").rename(folder / "images" / "masks")
    nested = MaskFolderDataset(str(folder), "images", masks="images/masks", classes=classes)
    assert nested.names == [f"{index}.png" for index in range(4)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "grey ids", "unknown colour"])
def test_colour_masks_are_read_by_the_colours_of_the_table(folder: Path, mode: str) -> None:
    table = [(0, 0, 0), (128, 0, 0), (7, 200, 9)]
    ids = stripes(0, 1, 2, 2)
    colors = np.array([*table, (1, 2, 3), (224, 224, 192)], dtype=np.uint8)
    shown = ids.copy()
    if mode == "unknown colour":
        shown[0, 0] = 3
    shown[-1, -1] = 4 if mode != "grey ids" else 0
    for path in (folder / "masks").iterdir():
        pixels = np.repeat(shown[..., None], 3, axis=2) if mode == "grey ids" else colors[shown]
        image = Image.fromarray(pixels.astype(np.uint8))
        (image.convert("RGBA") if mode == "RGBA" else image).save(path)
    found = part(folder, colors=table)
    if mode == "unknown colour":
        assert "holds 1 colours (R, G, B) that are not in classes.colors: (1, 2, 3)" in str(
            found.statistics.problems[0]
        )
        return
    expected = ids.copy()
    expected[-1, -1] = 255 if mode != "grey ids" else 0
    assert found.statistics.problems == []
    assert found.dataset.read_mask(0).tolist() == expected.tolist()


CROPS = {
    "places in pixels": ["street_0_0.png", "street_0_16.png", "street_16_0.png", "park_0_0.png"],
    "tiles": ["street_tile_1.png", "street_tile_2.png", "park_tile_1.png"],
    "rows and columns": ["a/street_r0_c1.png", "a/street_r1_c1.png", "b/street_r0_c1.png"],
    "copies": [f"street_jpg.rf.{digit * 32}.jpg.png" for digit in "0a"],
}
PHOTOS = {
    "photos by time": ["IMG_20200101_120000.png", "IMG_20200101_130512.png"],
    "frames": ["aachen_000000_000019.png", "aachen_000001_000019.png", "aachen_000032_000019.png"],
    "years": ["2009_000123.png", "2009_000124.png"],
    "one each": ["street_tile_1.png", "park_tile_1.png"],
}


@pytest.mark.parametrize("kind", [*CROPS, *PHOTOS])
def test_crops_of_one_photo_in_two_folds_are_named(tmp_path: Path, kind: str) -> None:
    """They validate what they trained on, and nothing said so; other names that end in numbers are no crops."""
    for index, name in enumerate((CROPS | PHOTOS)[kind]):
        write_image(tmp_path / "images" / name, (16, 20), seed=index)
        write_mask(tmp_path / "masks" / name, stripes(0, 1, 2))
    found = part(tmp_path)
    folds = {name: index % 2 for index, name in enumerate(found.dataset.names)}
    sentences = find_warnings({"data.dataset": found}, folds)
    if kind in PHOTOS:
        assert sentences == []
        return
    [sentence] = sentences
    assert "crops or copies of 1 photos are in several folds" in sentence
    pattern = sentence.rpartition("the pattern '")[2].removesuffix("'.")
    labels = dict(zip(found.dataset.names, PatternGroups(pattern).labels(found.dataset), strict=True))
    named = sentence.partition("trained on: ")[2].partition(". Set data")[0].split(", ")
    assert len({labels[name] for name in named}) == 1
    together = {name: len(labels[name]) % 2 for name in labels}
    assert find_warnings({"data.dataset": found}, together) == []
