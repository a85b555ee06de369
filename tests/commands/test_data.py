"""Check whole data sets as people bring them: what is right, what came before is in the names of the cases."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from deeplab_lightning import __main__ as program
from deeplab_lightning.cli import main
from deeplab_lightning.errors import DataError
from deeplab_lightning.runs import RunFolder
from tests.conftest import CLASSES, noise_config, write_image, write_mask
from tests.processes import run_program

NAMES = {"mask_255": ["background", "building"], "mask_jpeg": ["background", *"abcde"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "mask_same_folder": {"images": "all", "masks": "all"},
    "mask_val_same": {"images": "train", "masks": "train_m"},
    "mask_int32": {"mask_suffix": ".tif"},
    "mask_float": {"mask_suffix": ".tif"},
    "mask_jpeg": {"mask_suffix": ".jpg"},
    "cityscapes_train_ids": {"mask_suffix": "_gtFine_labelTrainIds.png"},
}
CAT_AND_DOG = ["6 images", "cat", "90.234%", "No problems."]
CASES: dict[str, tuple[int, list[str]]] = {
    "cityscapes_train_ids": (0, ["ignored (0, 10, 2)", "83.008%", "look like train ids", "16 classes have no pixel"]),
    "coco_all_string_ids": (0, CAT_AND_DOG),
    "coco_bom": (0, CAT_AND_DOG),
    "coco_boxes_mixed": (1, ["ignored (255)", "a box alone", "on_error: skip ignores its box", "4 problems"]),
    "coco_dup_image_ids": (1, ["the image id 0 is used by 2 entries (0.png, 3.png)"]),
    "coco_empty_file": (1, ["annotations.json: is empty, not JSON"]),
    "coco_exif3_raw": (0, ["6 images (0.jpg, 1.jpg, 2.jpg and 3 more) are turned upright by an EXIF tag"]),
    "coco_iscrowd_str": (0, CAT_AND_DOG),
    "coco_nan": (1, ["annotation 2 of 2.png", "not finite (nan)", "1 problem"]),
    "coco_normalised": (1, ["6 of 6 objects cover no pixel; coordinates between 0 and 1 look normalised"]),
    "coco_null_annotations": (1, ["annotations must be a list of entries, got null"]),
    "coco_null_size": (0, CAT_AND_DOG),
    "coco_prefix": (1, ["upload/1/0.png: no such image", "holds 0.png", "holds 5.png", "no usable image is left"]),
    "coco_rle_negative": (1, ["annotation 2 of 2.png", "negative run"]),
    "coco_rle_short": (1, ["annotation 2 of 2.png", "cover 250 pixels, but the image has 64x64 = 4096"]),
    "coco_string_image_id": (0, CAT_AND_DOG),
    "coco_val_lacks": (1, ["(different: dog)", "set init_args.classes of both to [cat, dog]"]),
    "mask_255": (1, ["ignored (255)", "12.500%", "no pixel in any mask: building", "nothing to learn"]),
    "mask_bomb": (1, ["p2.png: has 200 megapixels, and at most 179 are read; predict it with --tile"]),
    "mask_float": (0, ["2 images", "75.000%", "No problems."]),
    "mask_hidden": (0, ["6 images", "names begin with a dot: 13", "no images: 1, such as Thumbs.db", "No problems."]),
    "mask_int32": (1, ["mask values [65537] are not in the class table"]),
    "mask_jpeg": (1, ["p0.jpg: is a mask in JPEG with lossy compression", "6 problems"]),
    "mask_list_abs_other": (1, ["line 1: /data/train/images/p0.jpg is an absolute path of another place"]),
    "mask_list_bom": (0, ["6 images", "No problems."]),
    "mask_list_dup": (1, ["lines 1, 7 name the same image, p0.jpg"]),
    "mask_list_space1": (0, ["6 images", "No problems."]),
    "mask_same_folder": (1, ["p0.png: it is the mask of p0.jpg and an image itself", "6 problems"]),
    "mask_upper_suffix": (0, ["6 images", "No problems."]),
    "mask_val_same": (0, ["4 images are also in data.dataset: 0.jpg = 0.jpg"]),
}


@pytest.fixture(scope="module")
def cases() -> Path:
    """Return the folder of inputs that people brought: `cases` beside the real data."""
    root = Path(os.environ.get("DEEPLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root.parent / "cases").is_dir():
        pytest.skip(f"no cases beside {root}; set DEEPLAB_DATA")
    return root.parent / "cases"


def case_options(cases: Path, case: str) -> list[str]:
    """Return the options of `deeplab data check` for a case."""
    configs = Path(__file__).parents[2] / "configs" / "data"
    if case.startswith("coco"):
        names = ["train", "val"] if case == "coco_val_lacks" else ["."]
        options = ["-c", str(configs / "coco.yaml")]
        for key, name in zip(("dataset", "val_dataset"), names, strict=False):
            annotations = str(cases / case / name / "annotations.json")
            if key == "val_dataset":
                options += ["--data.val_dataset", "CocoDataset"]
            options += [f"--data.{key}.init_args.annotations", annotations]
        return options
    if case == "cityscapes_train_ids":
        root = ["--data.dataset.init_args.root", str(cases / case)]
        suffix = ["--data.dataset.init_args.mask_suffix", OPTIONS[case]["mask_suffix"]]
        return ["-c", str(configs / "cityscapes.yaml"), *root, *suffix, "--data.val_dataset", "null"]
    arguments = {"root": str(cases / case), "images": "images", "masks": "masks", **OPTIONS.get(case, {})}
    arguments["classes"] = {"names": NAMES.get(case, ["background", "a", "b"])}
    if case.startswith("mask_list"):
        arguments["list_file"] = "list.txt"
    options = ["--data.dataset", yaml.safe_dump({"class_path": "MaskFolderDataset", "init_args": arguments})]
    if case == "mask_val_same":
        arguments |= {"images": "val", "masks": "val_m"}
        options += ["--data.val_dataset", yaml.safe_dump({"class_path": "MaskFolderDataset", "init_args": arguments})]
    return options


@pytest.mark.parametrize("case", CASES)
def test_the_check_sees_what_is_wrong_in_data_that_people_bring(
    cases: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, texts = CASES[case]
    monkeypatch.setattr(sys, "argv", ["deeplab", "data", "check", *case_options(cases, case)])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        program.run()
    shown = "".join(capsys.readouterr())
    assert [text for text in texts if text not in shown] == [], shown
    assert stop.value.code == status


def test_masks_as_images_are_a_problem(mask_folder: Path) -> None:
    """Where the masks' folder was given for both, the check found no problem, and `fit` trained on the masks."""
    config = noise_config(mask_folder, trainer={})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    (mask_folder / "linked").symlink_to(mask_folder / "masks")
    for images in ("masks", "linked"):
        words = ("-c", "config.yaml", "--data.dataset.init_args.images", images)
        done = run_program("data", "check", *words, cwd=mask_folder)
        shown = " ".join(done.stdout.split())
        assert done.returncode == 1, shown
        assert "masks/00.png: it is an image and its own mask. Set images and masks to different folders" in shown
        assert "10 problems" in shown


def test_palettes_with_the_colours_of_other_classes_are_warned_of(mask_folder: Path) -> None:
    """All labels were permuted, and the check found no problem."""
    config = noise_config(mask_folder, trainer={})
    colors = [[0, 128, 0], [0, 0, 0], [128, 0, 0]]
    config["data"]["dataset"]["init_args"]["classes"]["colors"] = [colors[1], colors[2], colors[0]]
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (mask_folder / "masks").iterdir():
        mask = Image.open(path)
        mask.putpalette([channel for color in colors for channel in color] + [7] * 759)
        mask.save(path)
    done = run_program("data", "check", "-c", "config.yaml", cwd=mask_folder, check=True)
    shown = " ".join(done.stdout.split())
    assert f"value 0 means {CLASSES[0]}, but the palette of the masks gives it (0, 128, 0), the colour of" in shown
    assert "No problems." not in shown


def test_black_masks_of_colours_have_the_class_that_is_black(tmp_path: Path) -> None:
    """An image without any object was the first class, whatever its colour."""
    for index in range(4):
        write_image(tmp_path / "images" / f"{index}.png", (20, 30), seed=index)
        mask = np.zeros((20, 30, 3), dtype=np.uint8)
        if index == 0:
            mask[:2, :15], mask[2:4, :15] = (0, 0, 255), (0, 255, 0)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    names = ["water", "forest", "background"]
    classes = {"names": names, "colors": [[0, 0, 255], [0, 255, 0], [0, 0, 0]]}
    arguments = {"root": str(tmp_path), "images": "images", "masks": "masks", "classes": classes}
    config = {"data": {"dataset": {"class_path": "MaskFolderDataset", "init_args": arguments}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = run_program("data", "check", "-c", str(tmp_path / "c.yaml"), check=True)
    lines = [line for line in done.stdout.splitlines() if "%" in line]
    shares = {word: re.findall(r"[\d.]+%", line) for line in lines for word in names if word in line}
    assert shares == {"water": ["1.250%"], "forest": ["1.250%"], "background": ["97.500%"]}


@pytest.mark.parametrize(
    ("value_range", "warning"),
    [
        ([0, 60], "of the values reach the upper end"),
        ([990, 2000], "of the values reach the lower end"),
        ([0, 65535], "the values fill 5 of 256 steps"),
        ([0, 1000], None),
        ([700, 1000], None),  # as of slices with much background
    ],
)
def test_a_range_that_does_not_fit_the_values_is_seen(
    value_range: list[int], warning: str | None, tmp_path: Path
) -> None:
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 1000, (20, 30)).astype(np.uint16)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        np_mask = (pixels > 500).astype(np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        np.save(tmp_path / "masks" / f"{index}.npy", np_mask)
    arguments = {"root": str(tmp_path), "images": "images", "masks": "masks", "mask_suffix": ".npy"}
    arguments |= {"classes": {"names": ["a", "b"]}}  # type: ignore[dict-item]
    dataset = {"class_path": "MaskFolderDataset", "init_args": arguments}
    config = {"data": {"dataset": dataset, "image_format": {"channels": 1, "value_range": value_range}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = run_program("data", "check", "-c", str(tmp_path / "c.yaml"), check=True)
    said = " ".join((done.stdout + done.stderr).split())
    assert ("value_range" in said) == (warning is not None)
    assert warning is None or warning in said


def test_a_check_without_data_is_refused(tmp_path: Path) -> None:
    """It said `No problems.`."""
    (tmp_path / "cpu.yaml").write_text("trainer: {accelerator: cpu}\n")
    for words in ((), ("-c", "cpu.yaml")):
        done = run_program("data", "check", *words, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == "error: deeplab data check needs data.dataset. Give the -c of the data.\n"


@pytest.fixture
def binary(tmp_path: Path) -> list[str]:
    """Write masks of 0 and 255 with a class table that ignores 255, and return the options of `deeplab fit`."""
    for index in range(6):
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[:20, :20] = 255
        write_image(tmp_path / "images" / f"{index}.png", seed=index)
        write_mask(tmp_path / "masks" / f"{index}.png", mask)
    config = noise_config(tmp_path, trainer={"max_epochs": 1, "limit_train_batches": 1})
    config["data"]["dataset"]["init_args"]["classes"] = {"names": ["background", "building"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return ["fit", "-c", str(tmp_path / "config.yaml"), "--name", "x"]


@pytest.mark.long
def test_a_training_stops_where_there_is_nothing_to_learn(binary: list[str], tmp_path: Path) -> None:
    """It ended with mIoU 1.000."""
    stopped = run_program(*binary)
    assert stopped.returncode == 1
    assert "error: " in stopped.stderr
    assert "only class background has pixels, so there is nothing to learn" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    told = run_program(*binary, "--data.allow_single_class", "true")
    assert told.returncode == 0
    assert "warning about the data: data.dataset: 1 class has no pixel in any mask: building" in told.stderr
    assert "`deeplab data check` with the same -c and --data options lists all of them." in told.stderr


@pytest.mark.long
def test_binary_masks_train_in_one_line_and_report_the_foreground(binary: list[str], tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del config["data"]["dataset"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "-c", str(configs / "base.yaml"), "-c", str(configs / "data" / "binary.yaml")]
    root = ["--data.dataset.init_args.root", str(tmp_path)]
    main(
        [
            *words,
            "-c",
            str(tmp_path / "small.yaml"),
            *root,
            "--name",
            "binary",
            "--checkpoint.monitor",
            "val/dice/foreground",
        ]
    )
    result = RunFolder(tmp_path / "runs" / "binary").read_result()
    assert result is not None
    counts = RunFolder(tmp_path / "runs" / "binary").read_confusion()
    truth, predicted, hits = counts[1].sum(), counts[:, 1].sum(), counts[1, 1]
    assert truth > 0
    expected = {"dice": 2 * hits / (truth + predicted), "precision": hits / max(predicted, 1), "recall": hits / truth}
    found = {key: value or 0.0 for key, value in result["val"]["foreground"].items()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert list(result["val"]["iou"]) == ["background", "foreground"]


def test_the_page_shows_images_classes_sizes_folds_and_warnings(binary: list[str], tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "6.png", (40, 50), seed=0)
    write_mask(tmp_path / "masks" / "6.png", np.zeros((40, 50), dtype=np.uint8))
    write_mask(tmp_path / "masks" / "5.png", np.full((48, 64), 9, dtype=np.uint8))
    names = ["background", "<b>building</b>", "nothing"]
    classes = {"names": names, "raw_ids": {0: 0, 255: 1, 7: 2}, "ignore_ids": []}
    options = ["-c", binary[2], "--data.dataset.init_args.classes", yaml.safe_dump(classes)]
    main(["data", "show", *options, "--output", str(tmp_path / "page")])
    page = (tmp_path / "page" / "index.html").read_text()
    for text in (
        "&lt;b&gt;building&lt;/b&gt;",
        "mask values [9] are not in the class table",
        "1 class has no pixel in any mask: nothing",
        "48x64</td><td>5",
        "40x50</td><td>1",
        "6.png: 40x50",
    ):
        assert text in page
    assert "<b>building" not in page
    shown = [*re.findall(r'src="(.*?)"', page)]
    assert {"batch.png", "folds.png", "images/00.jpg"} <= set(shown)
    for name in shown:
        with Image.open(tmp_path / "page" / name) as picture:
            assert min(picture.size) > 30
    assert "images/06.jpg" not in shown  # the faulty one of seven is left out
    main(["data", "show", *options, "--output", str(tmp_path / "page")])  # again, into the same folder
    with pytest.raises(DataError, match="holds other files"):
        main(["data", "show", *options, "--output", str(tmp_path)])


@pytest.mark.long
def test_validation_images_of_one_class_are_warned_of(tmp_path: Path) -> None:
    """The best epoch of such a fold was chosen by the background alone, without a word."""
    for index in range(6):
        write_image(tmp_path / "images" / f"{index}.png", seed=index)
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[8:24, 8:24] = index % 2
        write_mask(tmp_path / "masks" / f"{index}.png", mask)
    rows = [f"{index}.png,{index}.png,{index % 2}" for index in range(6)]
    (tmp_path / "folds.csv").write_text("\n".join(["image,group,fold", *rows]) + "\n")
    config = noise_config(tmp_path, trainer={"max_epochs": 1}, data={"fold_file": str(tmp_path / "folds.csv")})
    config["data"]["dataset"]["init_args"]["classes"] = {"names": ["background", "crack"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    said = [run_program("fit", "-c", "c.yaml", f"--data.fold={fold}", cwd=tmp_path, check=True) for fold in (0, 1)]
    warned = ["the 3 validation images hold class background alone" in run.stdout + run.stderr for run in said]
    assert warned == [True, False]
