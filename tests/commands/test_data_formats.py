"""Write the configuration of images that are not RGB of 8 bits with `deeplab data init`, check and train with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

import deeplab_lightning
from deeplab_lightning.data.image_format import ImageFormat
from deeplab_lightning.data.images import read_image
from deeplab_lightning.models import DeepLab
from tests.commands.test_data_init import SMALL, index_mask, passes, refused, written
from tests.conftest import write_image, write_mask
from tests.processes import run_program

tifffile = pytest.importorskip("tifffile")
Array = npt.NDArray[Any]
_SIZE = (48, 64)


def _bands(index: int, channels: int, *, top: float) -> Array:
    """Draw values of 0 to `top`, higher on the object, of (H, W, C)."""
    noise = np.random.default_rng(index).uniform(0, top / 2, (*_SIZE, channels))
    return noise + (index_mask(index, 0, 1) * (top / 2))[..., None]


def _sentinel(path: Path, index: int) -> None:
    """Write reflectances times 10,000 of four bands, with a corner outside of the satellite's view, as GDAL does."""
    bands = _bands(index, 4, top=3000).astype(np.int16)
    bands[:12, :16] = -9999
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(
        path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig", extratags=tags, metadata=None
    )


def _elevation(path: Path, index: int) -> None:
    """Write one channel of float32 metres, NaN where there is none, below a first channel of another scale."""
    values = np.stack([_bands(index, 1, top=1.0)[..., 0], 400 + _bands(index, 1, top=300.0)[..., 0]])
    values[:, 40:] = np.nan
    np.save(path.with_suffix(".npy"), values.astype(np.float32))  # (C, H, W)


def _x_ray(path: Path, index: int) -> None:
    Image.fromarray((_bands(index, 1, top=4000)[..., 0]).astype(np.uint16)).save(path.with_suffix(".png"))


def _five_bytes(path: Path, index: int) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), _bands(index, 5, top=255).astype(np.uint8), photometric="minisblack")


def _rgb_of_16_bits(path: Path, index: int) -> None:
    """Write what Pillow opens as RGB of 8 bits, the upper ones."""
    tifffile.imwrite(path.with_suffix(".tif"), _bands(index, 3, top=239).astype(np.uint16), photometric="rgb")


def _bands_as_pages(path: Path, index: int) -> None:
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        for band in np.moveaxis(_bands(index, 4, top=3000).astype(np.uint16), -1, 0):
            file.write(band)


def _bytes_with_nodata(path: Path, index: int) -> None:
    bands = np.maximum(_bands(index, 4, top=255), 1).astype(np.uint8)
    bands[:12] = 0
    tags = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(
        path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig", extratags=tags, metadata=None
    )


def _two_kinds_of_gaps(path: Path, index: int) -> None:
    values = _bands(index, 4, top=3000).astype(np.float32)
    values[:12] = -9999 if index < 3 else np.nan
    np.save(path.with_suffix(".npy"), values)


def _write(folder: Path, write: Callable[[Path, int], None]) -> None:
    for index in range(8):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        write(folder / "images" / f"p{index}", index)
        write_mask(folder / "masks" / f"p{index}.png", index_mask(index, 0, 1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("write", "expected", "reasons"),
    [
        (
            _sentinel,
            {"channels": 4, "value_range": [0, 3000], "nodata": -9999.0},
            ["4 channels of int16, by 8 images", "not measured: 6.2% of the values, in 8 of 8 images"],
        ),
        (
            _elevation,
            {"channels": 2, "value_range": [[0.0, 1.0], [400.0, 700.0]], "nodata": "nan"},
            ["2 channels of float32", "not measured: 16.7%"],
        ),
        (_x_ray, {"channels": 1, "value_range": [0, 4000]}, ["1 channel of uint16", "99% of the values lie within"]),
        (_five_bytes, {"channels": 5, "value_range": None}, ["5 channels of uint8"]),
        (_rgb_of_16_bits, {"channels": 3, "value_range": [0, 239]}, ["3 channels of uint16"]),
        (_bands_as_pages, {"channels": 4, "value_range": [0, 3000]}, ["4 channels of uint16"]),
        (_bytes_with_nodata, {"channels": 4, "value_range": None, "nodata": 0.0}, ["not measured: 25.0%"]),
        (_two_kinds_of_gaps, {"channels": 4, "value_range": [0, 3000], "nodata": -9999.0}, ["25.0%", "in 8 of 8"]),
    ],
)
def test_bands_and_deep_images_train_with_what_was_written(
    tmp_path: Path, write: Callable[[Path, int], None], expected: dict[str, Any], reasons: list[str]
) -> None:
    """The command stopped, and named a setting that it could not be given."""
    _write(tmp_path / "set", write)
    text, config = written(tmp_path / "set")
    found = config["data"]["image_format"]
    if "nodata" in found and np.isnan(found["nodata"]):
        found["nodata"] = "nan"
    ranges = np.array(found.pop("value_range") or [0, 0], dtype=float)
    wanted = np.array(expected.pop("value_range") or [0, 0], dtype=float)
    assert found == expected
    assert ranges.shape == wanted.shape
    assert np.abs(ranges - wanted).max() <= 0.1 * np.ptp(wanted)
    assert [reason for reason in reasons if reason not in text] == [], text
    transforms = config["data"]["train_transforms"]["init_args"]
    assert (transforms["brightness"], transforms["contrast"]) == (0, 0)
    checked = run_program("data", "check", "-c", "set.yaml", cwd=tmp_path)
    assert "No problems." in checked.stdout
    passes(tmp_path / "set")


def test_images_of_different_channels_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "set", _five_bytes)
    tifffile.imwrite(tmp_path / "set/images/p3.tif", _bands(3, 4, top=255).astype(np.uint8), photometric="minisblack")
    line = refused(tmp_path / "set")
    assert "p0.tif has 5 channels of uint8, and set/images/p3.tif has 4 channels of uint8" in line.replace(
        f"{tmp_path}/", ""
    )


@pytest.mark.long
def test_values_without_measurement_stay_out_of_mean_and_deviation(tmp_path: Path) -> None:
    """With -9999 as the lowest value, a quarter of the pixels shifted them; nothing said so."""
    means: dict[bool, Array] = {}
    for has_gaps in (False, True):
        folder = tmp_path / str(has_gaps) / "set"
        for index in range(8):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            values = 1000 + _bands(index, 4, top=1000)
            if has_gaps:
                values[:, 48:] = -9999
            np.save(folder / "images" / f"p{index}.npy", values.astype(np.float32))
            write_mask(folder / "masks" / f"p{index}.png", index_mask(index, 0, 1))
        _, config = written(folder)
        config["data"]["image_format"]["value_range"] = [0, 2000]
        (folder.parent / "set.yaml").write_text(yaml.safe_dump(config))
        passes(folder)
        [net] = deeplab_lightning.load(folder.parent / "runs" / "x").net.nets
        assert isinstance(net, DeepLab)
        means[has_gaps] = net.preprocess.mean.flatten().numpy()
    assert np.abs(means[True] - means[False]).max() < 3  # of 255; else about 40
    del config["data"]["image_format"]["nodata"]
    (tmp_path / "True" / "other.yaml").write_text(yaml.safe_dump(config))
    warned = run_program("data", "check", "-c", "other.yaml", cwd=tmp_path / "True").stdout
    assert "8 of 8 images hold -9999 (25.0% of all values)" in warned
    assert "set data.image_format.nodata: -9999" in warned


@pytest.mark.long
def test_gaps_of_nan_are_one_setting_in_every_command(tmp_path: Path) -> None:
    """NaN differs from NaN: a resumed experiment was refused, and its seeds were compared as recipes of their own."""
    _write(tmp_path / "set", _elevation)
    written(tmp_path / "set")
    folds = ("--data.n_folds=2", "--name=x", "--seeds=0,1", *SMALL)
    run_program("kfold", "-c", "set.yaml", *folds, cwd=tmp_path, check=True)
    resumed = run_program("kfold", "--resume", "--name=x", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    saved = tmp_path / "saved"
    model = deeplab_lightning.load(tmp_path / "runs/x/seed_0/fold_0")
    [net] = model.net.nets
    assert isinstance(net, DeepLab)
    net.save_pretrained(saved)
    assert (
        json.loads((saved / "config.json").read_text(), parse_constant=pytest.fail)["image_format"]["nodata"] == "nan"
    )
    compared = run_program("compare", "runs/x", "runs/x", cwd=tmp_path)
    assert "nan" not in (compared.stdout + compared.stderr).lower()
    other = run_program("data", "check", "-c", "set.yaml", "--data.image_format.nodata", "-9999", cwd=tmp_path)
    assert "No problems." in other.stdout or "warning" in other.stdout, other.stderr


def test_a_palette_keeps_its_colours_beside_nodata(tmp_path: Path) -> None:
    """The indices were read as grey tones."""
    noise = np.random.default_rng(0).integers(1, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).quantize(16).save(tmp_path / "a.tif")
    assert np.array_equal(
        read_image(tmp_path / "a.tif", ImageFormat(nodata=300)), read_image(tmp_path / "a.tif", ImageFormat())
    )


@pytest.mark.slow
def test_images_that_a_data_set_of_the_user_reads_are_checked_as_it_reads_them(tmp_path: Path) -> None:
    """Files that no image reader knows stopped the check for values without measurement."""
    for index in range(4):
        write_image(tmp_path / "images" / f"p{index}.png", _SIZE)  # a preview, which gives name and size
        _bands(index, 2, top=1000).astype(np.float32).tofile(tmp_path / "images" / f"p{index}.bin")
        write_mask(tmp_path / "masks" / f"p{index}.png", index_mask(index, 0, 1))
    (tmp_path / "my_data.py").write_text(
        """import numpy as np
import torch
from deeplab_lightning.data import ClassTable, MaskFolderDataset
from deeplab_lightning.data.images import DecodedImage


class RawFiles(MaskFolderDataset):
    def __init__(self, root: str, on_error: str = "raise") -> None:
        super().__init__(root, "images", masks="masks", classes=ClassTable(["background", "foreground"]))
        self.paths = [path.with_suffix(".bin") for path in self.paths]

    def open_image(self, index):
        values = np.fromfile(self.paths[index], np.float32).reshape(48, 64, 2)
        pixels = self.image_format.from_array(values, self.paths[index])
        return DecodedImage(torch.from_numpy(pixels).permute(2, 0, 1))
"""
    )
    dataset = {"class_path": "my_data.RawFiles", "init_args": {"root": str(tmp_path)}}
    image_format = {"channels": 2, "value_range": [0, 1000]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {"dataset": dataset, "image_format": image_format}}))
    checked = run_program("data", "check", "-c", "c.yaml", cwd=tmp_path)
    assert (checked.returncode, "No problems." in checked.stdout) == (0, True), checked.stderr + checked.stdout
