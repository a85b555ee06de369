import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.errors import DataError, UserError
from tests.conftest import write_image

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that changes a valid file of three images and three objects, and returns its path."""

    def changed(change: Callable[[dict[str, Any]], object] = lambda content: None, *, encoding: str = "utf-8") -> str:
        names = ("a.png", "b.png", "c.png")
        content = {
            "images": [{"id": i, "file_name": n, "height": 8, "width": 10} for i, n in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": SQUARE, "bbox": [0, 0, 4, 4]}
                for i in range(3)
            ],
            "categories": [{"id": 1, "name": "can"}, {"id": 2, "name": "bag"}],
        }
        for index, name in enumerate(names):
            write_image(tmp_path / name, (8, 10), seed=index)
        change(content)
        (tmp_path / "x.json").write_text(json.dumps(content), encoding=encoding)
        return str(tmp_path / "x.json")

    return changed


def labels(path: str, **options: Any) -> list[int]:
    """Return the label of the top left pixel of each image."""
    dataset = CocoDataset(path, **options)
    return [int(dataset.read_mask(index)[0, 0]) for index in range(len(dataset))]


def set_all(content: dict[str, Any], section: str, key: str, value: Callable[[Any], Any]) -> dict[str, Any]:
    for entry in content[section]:
        entry[key] = value(entry.get(key))
    return content


@pytest.mark.parametrize(
    "change",
    [
        lambda c: set_all(c, "annotations", "image_id", str),
        lambda c: set_all(c, "annotations", "image_id", float),
        lambda c: set_all(c, "images", "id", str),
        lambda c: (set_all(c, "categories", "id", str), set_all(c, "annotations", "category_id", float)),
        lambda c: [set_all(c, s, k, lambda v: f"n{v}") for s, k in (("images", "id"), ("annotations", "image_id"))],
        lambda c: set_all(c, "annotations", "iscrowd", lambda _: "0"),
        lambda c: set_all(c, "annotations", "iscrowd", lambda _: None),
        lambda c: set_all(c, "annotations", "iscrowd", lambda _: False),
        lambda c: set_all(c, "images", "height", lambda _: None),
        lambda c: set_all(c, "images", "width", str),
        lambda c: [image.pop("width") for image in c["images"]],
        lambda c: [entry.pop("id") for entry in c["annotations"]],
    ],
)
def test_what_other_tools_write_is_understood(write: Write, change: Callable[[dict[str, Any]], object]) -> None:
    assert labels(write(change)) == [1, 2, 1]


def test_a_byte_order_mark_is_no_part_of_the_file(write: Write) -> None:
    assert labels(write(encoding="utf-8-sig")) == [1, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(id=0), r"image id 0 is used by 2 entries \(a.png, b.png\)"),
        (lambda c: c["images"][1].update(id="0"), r"image id 0 is used by 2 entries \(a.png, b.png\)"),
        (lambda c: c["images"][1].update(file_name="a.png"), "file_name a.png is used by 2 entries"),
        (lambda c: c["categories"][1].update(id=1), r"category id 1 is used by 2 entries \(can, bag\)"),
        (
            lambda c: c["annotations"][2].update(id=0),
            r"annotation id 0 is used by 2 entries \(annotations\[0\], annotations\[2\]\)",
        ),
        (lambda c: c["categories"][1].update(name=None), r"categories\[1\]: name is null"),
        (lambda c: c["categories"][1].pop("id"), r"categories\[1\]: id is missing"),
        (lambda c: c["categories"][1].update(id=[2]), r"categories\[1\], id: must be a whole number or text, got list"),
        (lambda c: c["images"][1].update(file_name=None), r"images\[1\]: file_name is null"),
        (lambda c: c["images"][1].pop("id"), r"images\[1\]: id is missing"),
        (lambda c: c["images"][1].update(width="wide"), r"images\[1\], width: must be a number of pixels, got 'wide'"),
        (lambda c: c["images"][1].update(width=-10), r"images\[1\], width: must be a number of pixels, got -10"),
        (lambda c: c["images"][1].update(file_name="b\0.png"), "NUL"),
        (lambda c: c["images"].append("d.png"), r"images\[3\]: must be an object with id and file_name, got text"),
        (lambda c: c["annotations"].append(None), r"annotations\[3\]: an entry of null"),
        (lambda c: c["annotations"][0].update(iscrowd="perhaps"), r"iscrowd must be 0 or 1, got 'perhaps' \(text\)"),
        (lambda c: c["annotations"][0].update(image_id=None), "annotation 0: image_id is missing or null"),
        (lambda c: c["annotations"][0].update(image_id="zero"), "unknown image_id 'zero'.*image ids are such as 0"),
        (lambda c: c["annotations"][0].update(category_id=[1]), r"unknown category_id '\[1\]'"),
        (lambda c: c.update(annotations=None), "annotations must be a list of entries, got null"),
        (lambda c: c.update(images={}), "images must be a list of entries, got object"),
    ],
)
def test_what_cannot_be_understood_is_named(
    write: Write, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CocoDataset(write(change))


@pytest.mark.parametrize("text", ["", "[]", '"text"', "{", "\x00\x01", "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json: is (empty|not JSON|not a COCO file)"):
        CocoDataset(str(tmp_path / "x.json"))


def test_normalised_coordinates_are_recognised(write: Write) -> None:
    def normalise(content: dict[str, Any]) -> None:
        set_all(content, "annotations", "segmentation", lambda _: [[0, 0, 0.4, 0, 0.4, 0.5]])

    with pytest.raises(DataError, match="3 of 3 objects cover no pixel; coordinates between 0 and 1 look normalised"):
        CocoDataset(write(normalise))


@pytest.mark.parametrize(
    "name", ["sub\\a.png", "upload/1/a.png", "A.PNG", "%61.png", "https://host/bucket/a.png", "./x/../a.png"]
)
def test_a_wrong_file_name_gets_a_hint(write: Write, name: str) -> None:
    path = write(lambda content: content["images"][0].update(file_name=name))
    if (Path(path).parent / name).is_file():
        pytest.skip("the name is right here")
    with pytest.raises(DataError, match=r"no such image\. The folder .* holds a\.png\."):
        CocoDataset(path)


def test_a_class_list_serves_files_that_lack_a_category(write: Write) -> None:
    path = write(
        lambda content: content["categories"].pop(0) and set_all(content, "annotations", "category_id", lambda _: 2)
    )
    options: dict[str, Any] = {"classes": ["can", "bag"], "class_map": {"can": "can", "bag": "bag"}}
    dataset = CocoDataset(path, **options)
    assert dataset.classes.names == ("background", "can", "bag")
    assert labels(path, **options) == [2, 2, 2]
    with pytest.raises(DataError, match=r"holds the classes \['bag'\], which are not in `classes` \(can\)"):
        CocoDataset(path, classes=["can"])


@pytest.mark.parametrize(
    ("name", "class_map", "message"),
    [
        ("2", {"2": "metal"}, "the class_map key '2' is the id of bag and the name of a category"),
        ("*", {"*": "metal"}, r"the class_map key '\*' is all categories that are not named and the name"),
        ("can", {"1": "metal", "can": "tin"}, r"the class_map keys '1' \(metal\) and 'can' \(tin\) mean one category"),
    ],
)
def test_an_ambiguous_class_map_is_refused(write: Write, name: str, class_map: dict[str, str], message: str) -> None:
    path = write(lambda content: content["categories"][0].update(name=name))
    with pytest.raises(DataError, match=message):
        CocoDataset(path, class_map=class_map)


def test_skipped_entries_never_become_background(write: Write) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = None
        content["annotations"][1]["category_id"] = 77
        content["annotations"][2].update(segmentation={"size": [8, 10], "counts": [3, 4]}, bbox=None)

    path = write(spoil)
    dataset = CocoDataset(path, on_error="skip")
    assert dataset.names == ["a.png", "b.png"]
    assert [np.unique(dataset.read_mask(i)[:4, :4]).tolist() for i in range(2)] == [[255], [255]]


def test_skipping_keeps_objects_whose_only_fault_is_their_id(write: Write) -> None:
    """TACO's own file holds two ids twice."""
    path = write(lambda content: content["annotations"][2].update(id=0))
    assert labels(path, on_error="skip") == [1, 2, 1]
    assert len(CocoDataset(path, on_error="skip").problems) == 1


def test_folders_and_missing_files_are_named(tmp_path: Path) -> None:
    for wrong, message in ((tmp_path, "is a folder"), (tmp_path / "none.json", "no such annotation file")):
        with pytest.raises(UserError, match=message):
            CocoDataset(str(wrong))
