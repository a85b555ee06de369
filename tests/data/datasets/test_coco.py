import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from deeplab_lightning.cli import main
from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.errors import DataError
from tests.conftest import write_image

Coco = Callable[..., Path]


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


BIG, SMALL = rectangle(0, 0, 6, 6), rectangle(2, 2, 4, 4)


def test_smaller_object_is_on_top_whatever_the_order(coco: Coco) -> None:
    path = coco([{"category_id": 2, "segmentation": SMALL}, {"category_id": 1, "segmentation": BIG}])
    mask = CocoDataset(str(path)).read_mask(0)
    expected = np.zeros((8, 10))
    expected[:6, :6], expected[2:4, 2:4] = 1, 2
    assert mask.tolist() == expected.tolist()


def test_file_order_puts_the_later_object_on_top(coco: Coco) -> None:
    path = coco([{"category_id": 2, "segmentation": SMALL}, {"category_id": 1, "segmentation": BIG}])
    mask = CocoDataset(str(path), overlap="file_order").read_mask(0)
    assert mask[:6, :6].unique().tolist() == [1]


def test_polygon_and_both_kinds_of_rle_give_the_same_mask(coco: Coco) -> None:
    rle = rle_tools.merge(rle_tools.frPyObjects(BIG, 8, 10))
    column_major = rle_tools.decode(rle).reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], column_major])))
    counts = np.diff(np.concatenate([[0], changes, [80]])).tolist()
    segmentations = (
        BIG,
        {"size": [8, 10], "counts": rle["counts"].decode()},
        {"size": [8, 10], "counts": counts},
    )
    masks = [CocoDataset(str(coco([{"category_id": 1, "segmentation": s}]))).read_mask(0) for s in segmentations]
    assert int(masks[0].sum()) == 36
    assert masks[0].equal(masks[1])
    assert masks[0].equal(masks[2])


def test_parts_of_a_polygon_are_one_object(coco: Coco) -> None:
    parts = rectangle(0, 0, 2, 2) + rectangle(6, 4, 8, 6)
    mask = CocoDataset(str(coco([{"category_id": 1, "segmentation": parts}]))).read_mask(0)
    assert (int(mask[:2, :2].sum()), int(mask[4:6, 6:8].sum()), int(mask.sum())) == (4, 4, 8)


def test_images_without_annotations_are_background(coco: Coco) -> None:
    path = coco([])
    assert CocoDataset(str(path)).read_mask(0).unique().tolist() == [0]
    assert CocoDataset(str(path), background="ignore").read_mask(0).unique().tolist() == [255]


def test_crowd_regions_are_below_objects_and_ignored(coco: Coco) -> None:
    crowd = {"category_id": 1, "segmentation": SMALL, "iscrowd": 1}
    path = coco([crowd, {"category_id": 2, "segmentation": rectangle(3, 3, 9, 8)}])
    mask = CocoDataset(str(path)).read_mask(0)
    assert (int(mask[2, 2]), int(mask[3, 3])) == (255, 2)
    assert int(CocoDataset(str(path), crowd="class").read_mask(0)[2, 2]) == 1


def test_classes_are_ordered_by_id_with_gaps_zero_and_duplicates(coco: Coco) -> None:
    categories = [
        {"id": 7, "name": "can", "supercategory": "litter"},
        {"id": 0, "name": "litter", "supercategory": "none"},
        {"id": 3, "name": "bag", "supercategory": "litter"},
        {"id": 9, "name": "can", "supercategory": "litter"},
    ]
    path = coco(
        [{"category_id": 9, "segmentation": BIG}, {"category_id": 3, "segmentation": SMALL}],
        categories=categories,
    )
    dataset = CocoDataset(str(path))
    assert dataset.classes.names == ("background", "bag", "can")  # the unused parent is left out
    assert dataset.read_mask(0)[0, 0] == 2
    remarks = " ".join(dataset.remarks())
    for remark in (
        "category 0 (litter) is the parent",
        "can is used 2 times",
        "ids have gaps",
        "overlap in 1 of 1",
    ):
        assert remark in remarks


def test_class_map_merges_renames_and_ignores(coco: Coco) -> None:
    categories = [{"id": i, "name": n} for i, n in enumerate(("can", "tin", "bag", "dirt"), start=1)]
    annotations = [{"category_id": i + 1, "segmentation": rectangle(2 * i, 0, 2 * i + 2, 2)} for i in range(4)]
    path = coco(annotations, categories=categories)
    dataset = CocoDataset(str(path), class_map={"can": "metal", "tin": "metal", "4": None, "*": "rest"})
    assert dataset.classes.names == ("background", "metal", "rest")
    assert dataset.read_mask(0)[0, ::2].tolist() == [1, 1, 2, 255, 0]


def test_class_map_to_background(coco: Coco) -> None:
    path = coco([{"category_id": 1, "segmentation": BIG}])
    dataset = CocoDataset(str(path), class_map={"can": "background"})
    assert dataset.classes.names == ("background", "bag")
    assert dataset.read_mask(0).unique().tolist() == [0]


def test_second_read_comes_from_the_cache(coco: Coco, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = CocoDataset(str(coco([{"category_id": 1, "segmentation": rectangle(1, 1, 9, 7)}])))
    first = dataset.read_mask(0)
    monkeypatch.setattr(dataset, "_rasterise", lambda index: pytest.fail("rasterised again"))
    assert dataset.read_mask(0).equal(first)


def test_a_damaged_mask_in_the_cache_is_made_again_with_a_word(
    coco: Coco, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPLAB_CACHE", str(tmp_path / "cache"))
    dataset = CocoDataset(str(coco([{"category_id": 1, "segmentation": BIG}])))
    first = dataset.read_mask(0)
    [path] = (tmp_path / "cache" / "masks").iterdir()
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            assert dataset.read_mask(0).equal(first)
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        assert dataset.read_mask(0).equal(first)


def test_images_are_sorted_by_name(coco: Coco) -> None:
    images = [
        {"id": i, "file_name": n, "height": 8, "width": 10} for i, n in ((5, "c.png"), (2, "a.png"), (9, "b.png"))
    ]
    annotation = {"image_id": 9, "category_id": 1, "segmentation": BIG}
    dataset = CocoDataset(str(coco([annotation], images=images)))
    assert dataset.names == ["a.png", "b.png", "c.png"]
    assert [int(dataset.read_mask(i).max()) for i in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 1, "segmentation": [[0, 0, 5, 5]]}, "annotation 1 of a.png: a polygon with 2 points"),
        ({"category_id": 1, "segmentation": [[0, 0, 5, 5, 3, 1, 2]]}, r"odd number of coordinates \(7\)"),
        ({"category_id": 1, "segmentation": []}, "a box alone cannot train segmentation"),
        ({"category_id": 1, "segmentation": BIG, "image_id": 77}, "unknown image_id 77"),
        (
            {"category_id": 5, "segmentation": BIG},
            r"unknown category_id 5. The file's category ids are \[1, 2\]",
        ),
    ],
)
def test_faulty_annotations_are_named(coco: Coco, annotation: dict, message: str) -> None:  # type: ignore[type-arg]
    path = coco([annotation])
    with pytest.raises(DataError, match=message):
        CocoDataset(str(path))


def test_skip_leaves_faulty_annotations_out_and_lists_them(coco: Coco) -> None:
    """The box of a faulty object is ignored below the others; without a box, its image is left out."""
    faulty = {"category_id": 5, "segmentation": BIG, "bbox": [0, 0, 6, 6]}
    images = [{"id": i, "file_name": name, "height": 8, "width": 10} for i, name in ((1, "a.png"), (2, "b.png"))]
    boxless = {"category_id": 1, "image_id": 2}
    path = coco([faulty, {"category_id": 1, "segmentation": SMALL}, boxless], images=images)
    dataset = CocoDataset(str(path), on_error="skip")
    assert dataset.names == ["a.png"]
    assert [str(problem).rpartition("on_error: ")[2] for problem in dataset.problems] == [
        "skip ignores its box.",
        "skip leaves b.png out.",
    ]
    expected = np.zeros((8, 10))
    expected[:6, :6], expected[2:4, 2:4] = 255, 1
    assert dataset.read_mask(0).tolist() == expected.tolist()
    assert dataset.measure_annotations(0)[0].tolist() == [0, 1, 0]


def test_missing_image_is_named(coco: Coco, tmp_path: Path) -> None:
    path = coco([], has_files=False)
    with pytest.raises(DataError, match=r"a.png: no such image. Add the file"):
        CocoDataset(str(path))


def test_a_different_size_is_named(coco: Coco, tmp_path: Path) -> None:
    path = coco([])
    write_image(tmp_path / "a.png", (9, 10))
    with pytest.raises(DataError, match=r"the image is 9x10 \(height x width\) but coco.json says 8x10"):
        CocoDataset(str(path))


def test_no_images_is_an_error(coco: Coco) -> None:
    with pytest.raises(DataError, match="holds no image"):
        CocoDataset(str(coco([], images=[])))


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"shapes": []}')
    with pytest.raises(DataError, match="lacks images, annotations, categories"):
        CocoDataset(str(tmp_path / "x.json"))


def test_class_map_of_unknown_category_is_refused(coco: Coco) -> None:
    with pytest.raises(DataError, match=r"class_map names categories \['botle'\]"):
        CocoDataset(str(coco([])), class_map={"botle": "glass"})


@pytest.mark.parametrize("counts", ["compressed", [0, 20]])
def test_an_rle_of_another_size_is_a_problem_of_its_image(coco: Coco, counts: str | list[int]) -> None:
    other = rle_tools.merge(rle_tools.frPyObjects(BIG, 8, 12))
    rle = {"size": [8, 12], "counts": other["counts"].decode() if counts == "compressed" else counts}
    annotations = [{"category_id": 1, "segmentation": rle}, {"category_id": 1, "segmentation": BIG, "image_id": 2}]
    images = [{"id": i, "file_name": name, "height": 8, "width": 10} for i, name in ((1, "a.png"), (2, "b.png"))]
    message = r"annotation 1 of a.png: an RLE for an image of \[8, 12\] \(height, width\), but the image is \[8, 10\]"
    path = coco(annotations, images=images)
    with pytest.raises(DataError, match=message):
        CocoDataset(str(path))
    skipping = CocoDataset(str(path), on_error="skip")
    assert skipping.names == ["b.png"]
    assert skipping.measure_annotations(0)[0].tolist() == [0, 1, 0]


def test_the_check_names_the_image_of_such_an_rle(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = [
        {"category_id": 1, "segmentation": {"size": [8, 12], "counts": [0, 20]}},
        {"category_id": 1, "segmentation": BIG, "image_id": 2},
    ]
    images = [{"id": i, "file_name": name, "height": 8, "width": 10} for i, name in ((1, "a.png"), (2, "b.png"))]
    path = coco(annotations, images=images)
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", "--data.dataset", "CocoDataset", "--data.dataset.annotations", str(path)])
    assert "annotation 1 of a.png: an RLE for an image of [8, 12]" in capsys.readouterr().out
