"""Turn the CSV files of `deeplab predict` back into masks by the real command."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning.cli import main
from deeplab_lightning.data import ClassTable, MaskFolderDataset
from deeplab_lightning.data.transforms import resize_mask
from tests.commands.pictures import draw_picture, draw_pictures, train_on_pictures
from tests.conftest import CLASSES, write_image
from tests.processes import run_program

SIZES = {"deep/a.png": (48, 64), "deep/b.jpg": (61, 45)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two new images in `new`, and their predictions with a CSV of ids in `ids`, and of runs in `rle`."""
    root = tmp_path_factory.mktemp("masks")
    draw_pictures(root)
    for seed, (name, size) in enumerate(SIZES.items(), start=20):
        draw_picture(root / "new" / name, size, seed=seed)
    best = str(train_on_pictures(root, "v3").best)
    for kind, words in (("ids", ["--csv_size", "32"]), ("rle", ["--csv_format", "rle"])):
        given = ["--ckpt_path", best, "--images", str(root / "new"), "--output", str(root / kind)]
        main(["predict", *given, "--csv", "a.csv", *words])
    return root


def read(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(folder / Path(name).with_suffix(".png")))


def sampled(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    resized: npt.NDArray[np.uint8] = resize_mask(torch.from_numpy(mask.copy()), size).numpy()
    return resized


@pytest.mark.long
def test_decoded_ids_are_the_predicted_masks_sampled_at_the_size_of_the_file(root: Path, tmp_path: Path) -> None:
    table = str(root / "ids" / "a.csv")
    run_program("masks", table, "--output", str(tmp_path / "small"), check=True)
    run_program("masks", table, "--output", str(tmp_path / "full"), "--images", str(root / "new"), check=True)
    for name, size in SIZES.items():
        predicted = read(root / "ids" / "masks", name)
        assert predicted.shape == size
        assert len(np.unique(predicted)) > 1
        assert np.array_equal(read(tmp_path / "small", name), sampled(predicted, (32, 32)))
        assert np.array_equal(read(tmp_path / "full", name), sampled(sampled(predicted, (32, 32)), size))


@pytest.mark.long
def test_decoded_runs_are_the_predicted_masks_and_train_further(root: Path, tmp_path: Path) -> None:
    table = str(root / "rle" / "a.csv")
    run_program("masks", table, "--output", str(tmp_path / "out"), "--images", str(root / "new"), check=True)
    for name in SIZES:
        assert np.array_equal(read(tmp_path / "out", name), read(root / "rle" / "masks", name))
    classes = ClassTable(CLASSES)
    dataset = MaskFolderDataset(str(root), "new", masks=str(tmp_path / "out"), classes=classes)
    assert dataset.names == list(SIZES)
    extra = {"root": str(root), "images": "new", "masks": str(tmp_path / "out"), "classes": {"names": list(CLASSES)}}
    entry = {"class_path": "deeplab_lightning.data.MaskFolderDataset", "init_args": extra}
    overlay = {"data": {"extra_datasets": [entry]}, "trainer": {"max_epochs": 1}}
    (tmp_path / "extra.yaml").write_text(yaml.safe_dump(overlay))
    run_program("fit", "-c", str(root / "config.yaml"), "-c", str(tmp_path / "extra.yaml"), check=True)


def table(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "a.csv")


def decoded(tmp_path: Path, *words: str) -> npt.NDArray[np.uint8]:
    main(["masks", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out"), *words])
    [path] = list((tmp_path / "out").iterdir())
    return np.asarray(Image.open(path))


IDS, RLE = "image_id,PredictionString", "ImageId,ClassId,EncodedPixels"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((IDS, "a.png,0 1 2 255 0 1"), [[0, 1, 2], [255, 0, 1]]),
        ((RLE, "a.png,1,1 2 6 1", "a.png,2,3 1"), [[1, 2, 0], [1, 0, 1]]),  # column by column
        ((RLE, "a.png,1,1 2 6 1", "a.png,0,3 1"), [[1, 0, 255], [1, 255, 1]]),  # without a background
        (("ImageId,EncodedPixels", "a.png,2 2"), [[0, 1, 0], [1, 0, 0]]),
        (("0,1", "a.png,0 1 2 255 0 1"), [[0, 1, 2], [255, 0, 1]]),  # as pandas writes columns without names
        (("0,1,2", "a.png,1,1 2 6 1", "a.png,2,3 1"), [[1, 2, 0], [1, 0, 1]]),
        (("ImageId,EncodedPixels", "a.png,-1"), [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_ids_and_runs_are_decoded(tmp_path: Path, lines: tuple[str, ...], expected: list[list[int]]) -> None:
    table(tmp_path, *lines)
    assert decoded(tmp_path, "--size", "2", "3").tolist() == expected


@pytest.mark.parametrize("name", ["rle", "RLE_mask", "encodedPixels", " encoded_pixels"])
def test_runs_are_known_by_the_usual_names_of_their_column(tmp_path: Path, name: str) -> None:
    """`rle` gave `n0.png has 2 ids, and no square; give --size`."""
    table(tmp_path, f"image_id,{name}", "n0.png,2 2")
    run_program("masks", "a.csv", "--output", "out", "--size", "2", "3", cwd=tmp_path, check=True)
    assert np.asarray(Image.open(tmp_path / "out" / "n0.png")).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("row", ["n{}.png,1 1 1 1", "n{}.png,1,1 2", "n{}.png,1,", "n{}.png,"])
def test_a_missing_header_is_said(tmp_path: Path, row: str) -> None:
    """The first row was taken for the header: of 4 images, 3 masks were written."""
    table(tmp_path, *(row.format(index) for index in range(4)))
    done = run_program("masks", "a.csv", "--output", "out", "--size", "2", "2", cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: a.csv, line 1: holds the mask of n0.png, and the header is missing. Write a first")
    assert not (tmp_path / "out").exists()


def test_ids_of_more_characters_than_a_reader_takes_are_decoded(tmp_path: Path) -> None:
    table(tmp_path, IDS, f"a,{' '.join(['1'] * 300 * 300)}")
    assert decoded(tmp_path).shape == (300, 300)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ((IDS, "a.png,0 1 2 3", "b.png,0 x 2 3"), "line 3: ids must be integers with blanks between, got 'x'"),
        ((IDS, "a.png,0 1 2"), "line 2: a.png has 3 ids, and no square; give --size"),
        ((IDS, "a.png,3 2"), "has 2 ids, and no square; give --size; if these are runs, call the column EncodedPixels"),
        ((IDS, "a.png,300 2 310 4"), "or 255 for void, got 300; if these are runs, call the column EncodedPixels"),
        ((IDS, "a.png,0 1 2 254"), r"line 2: ids must be in \[0, 253\), or 255 for void, got 254"),
        ((IDS, "a.png,0 0 0 0", "a.png,0 0 0 0"), "line 3: a.png has a mask already, on line 2"),
        ((IDS, "a.png,0 0 0 0", "a.jpg,0 0 0 0"), "line 3: a.jpg would have the mask a.png, as the image of line 2"),
        ((IDS, "../a.png,0 0 0 0"), "line 2: '../a.png' is no relative path"),
        ((IDS, "a.png"), "line 2: has 1 columns, and the header 2"),
        ((IDS,), "a.csv holds no image"),
        (("name",), "line 1: needs a header of two columns"),
        ((RLE, "a.png,1,1 2"), "line 2: the size of a.png is not known; give --size or --images"),
        ((RLE, "a.png,x,1 2"), "line 2: class id must be integers"),
    ],
)
def test_a_row_that_cannot_be_decoded_is_named_and_nothing_written(
    tmp_path: Path, lines: tuple[str, ...], text: str
) -> None:
    path = table(tmp_path, *lines)
    with pytest.raises(ValueError, match=text):
        main(["masks", path, "--output", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("1 2 3", "runs are pairs of first pixel and length, got 3 numbers"),
        ("0 2", "the run 0 2 leaves the 2 x 3 pixels of a.png"),
        ("6 2", "the run 6 2 leaves the 2 x 3 pixels"),
        ("9223372036854775807 9223372036854775807", "leaves the 2 x 3 pixels"),
        ("99999999999999999999 1", "runs must be integers"),
        ("1 3 2 1", "pixels of a.png have another class or run already"),
    ],
)
def test_runs_that_leave_the_image_or_overlap_are_named(tmp_path: Path, row: str, text: str) -> None:
    path = table(tmp_path, RLE, f"a.png,1,{row}")
    with pytest.raises(ValueError, match=f"line 2: .*{text}"):
        main(["masks", path, "--output", str(tmp_path / "out"), "--size", "2", "3"])


@pytest.mark.slow
def test_an_image_that_is_not_in_the_folder_is_one_line(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "b.png", (4, 6))
    path = table(tmp_path, IDS, "sub/b.png,0 0 0 0")
    done = run_program("masks", path, "--output", str(tmp_path / "out"), "--images", str(tmp_path / "images"))
    assert done.returncode == 1
    assert f"line 2: no image sub/b.png in {tmp_path / 'images'}. The folder" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    path = table(tmp_path, IDS, "b,0 0 1 1")
    done = run_program("masks", path, "--output", str(tmp_path / "out"), "--images", str(tmp_path / "images"))
    assert np.asarray(Image.open(tmp_path / "out" / "b.png")).tolist() == [[0] * 6] * 2 + [[1] * 6] * 2
