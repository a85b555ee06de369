"""Turn values of any type and number of channels into pixels."""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deeplab_lightning.data.array_files import array_header, read_array
from deeplab_lightning.data.image_format import ImageFormat
from deeplab_lightning.data.images import image_size, open_image, read_image
from deeplab_lightning.data.mask_files import read_mask
from deeplab_lightning.drawing import viewable
from deeplab_lightning.errors import UserError

HERE = Path("a.npy")


def test_values_are_clipped_and_scaled() -> None:
    values = np.array([[-5.0, 0.0, 1.0], [2.0, 9.0, np.nan]], dtype=np.float64)
    pixels = ImageFormat(1, (0, 2)).from_array(values, HERE)
    assert pixels[..., 0].tolist() == [[0, 0, 128], [255, 255, 0]]
    infinite = np.array([[np.inf, -np.inf]])
    assert ImageFormat(1, (0, 2)).from_array(infinite, HERE)[..., 0].tolist() == [[255, 0]]


def test_pixels_without_measurement_get_the_mean_of_the_others() -> None:
    values = np.array([[[0, 5.0], [100, -9999]], [[-9999, np.nan], [80, -9999]]])
    pixels = ImageFormat(2, (0, 100), nodata=-9999).from_array(values, HERE)
    assert pixels.tolist() == [[[0, 13], [255, 13]], [[153, 13], [204, 13]]]
    nothing = np.full((3, 4, 2), np.nan, dtype=np.float32)
    assert not ImageFormat(2, (-1, 1), nodata=float("nan")).from_array(nothing, HERE).any()
    black = np.array([[0, 10], [30, 0]], dtype=np.uint8)
    assert ImageFormat(1, nodata=0).from_array(black, HERE)[..., 0].tolist() == [[20, 10], [30, 20]]


@pytest.mark.long
def test_the_mean_of_a_large_image_is_that_of_all_its_pixels() -> None:
    """A sum in float32 stands still after 17 million pixels, so gaps were filled darker the larger an image was."""
    values = np.full((5000, 4000, 2), 200, dtype=np.float32)
    values[0, 0] = -9999
    pixels = ImageFormat(2, (0, 255), nodata=-9999).from_array(values, HERE)
    assert pixels[0, 0].tolist() == pixels[1, 1].tolist() == [200, 200]


def test_each_channel_has_its_range() -> None:
    values = np.full((4, 5, 2), 50, dtype=np.int32)
    assert ImageFormat(2, [(0, 50), (0, 100)]).from_array(values, HERE)[0, 0].tolist() in ([255, 128], [255, 127])


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (1, 6, 7)])
def test_one_channel_is_grey_or_repeated(shape: tuple[int, ...]) -> None:
    values = np.arange(42, dtype=np.uint8).reshape(shape)
    grey = ImageFormat(1).from_array(values, HERE)
    assert grey.shape == (6, 7, 1)
    rgb = ImageFormat(3).from_array(values, HERE)
    assert rgb.shape == (6, 7, 3)
    assert all(np.array_equal(rgb[..., c], np.arange(42).reshape(6, 7)) for c in range(3))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((4, 5, 2), np.uint8), "has 2 channels, and the network takes 3"),
        (np.zeros((4, 5, 3), np.uint16), "more than 8 bits"),
        (np.zeros((4, 5, 3), np.float32), "more than 8 bits"),
        (np.zeros((2, 4, 5, 3), np.uint8), "(2, 4, 5, 3)"),
        (np.zeros((4, 5, 3), complex), "arrays of numbers"),
        (np.zeros((0, 5, 3), np.uint8), "arrays of numbers"),
        (np.array(["a"]), "arrays of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_named(array: Any, text: str) -> None:
    with pytest.raises(UserError, match=text.replace("(", r"\(").replace(")", r"\)")):
        ImageFormat().from_array(array, HERE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 0},
        {"value_range": (3, 3)},
        {"value_range": (0, float("nan"))},
        {"channels": 4, "value_range": [(0, 1), (0, 1)]},
        {"mean": [0.5, 0.5, 0.5]},
        {"channels": 1, "mean": [0.5, 0.5], "std": [0.5, 0.5]},
        {"channels": 1, "mean": [0.5], "std": [0.0]},
        {"value_range": (0, 1), "nodata": float("inf")},
    ],
)
def test_formats_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="image_format"):
        ImageFormat(**arguments)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 1), ("P", 1), ("RGBA", 3), ("LA", 3), ("RGBA", 4)])
def test_pillow_images_have_the_channels_that_are_asked_for(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8), "RGBA").convert(mode)
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageFormat(channels)).shape == (channels, 5, 6)


def test_an_alpha_channel_is_not_made_up(tmp_path: Path) -> None:
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has 3 channels, and the network takes 4"):
        read_image(tmp_path / "a.png", ImageFormat(4))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no array", b"\x93NUMPY" + b"\xff" * 40])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a{suffix}"):
        open_image(path, ImageFormat(5)).pixels()
    with pytest.raises(UserError, match=f"a{suffix}"):
        image_size(path)


def test_pickled_arrays_are_not_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be decoded"):
        read_array(tmp_path / "a.npy")


def test_cut_arrays_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 60, 4), dtype=np.uint8))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be decoded"):
        array_header(tmp_path / "a.npy")


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_any_image_can_be_looked_at(channels: int) -> None:
    assert viewable(np.ones((4, 5, channels), dtype=np.uint8)).shape == (4, 5, 3)


def write_deep_png(path: Path, values: Any) -> None:
    """Write a PNG of 16 bits per channel, which Pillow cannot: (H, W, C) of 2, 3 or 4 channels."""
    height, width, channels = values.shape
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_sixteen_bits_keep_them(tmp_path: Path, channels: int) -> None:
    """Pillow keeps the upper 8 bits, so that pictures of 12 bits were nearly black without a word."""
    pytest.importorskip("imagecodecs", reason="of the extra multiband")
    values = np.random.default_rng(0).integers(0, 4096, (5, 6, channels)).astype(np.uint16)
    write_deep_png(tmp_path / "a.png", values)
    assert image_size(tmp_path / "a.png") == (5, 6)
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.png", ImageFormat(channels))
    expected = np.rint(values * (255 / 4095))
    found = read_image(tmp_path / "a.png", ImageFormat(channels, (0, 4095))).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1
    if channels > 2:
        rgb = read_image(tmp_path / "a.png", ImageFormat(3, (0, 4095))).permute(1, 2, 0).numpy()
        assert np.array_equal(rgb, found[..., :3])


def test_colours_of_sixteen_bits_are_not_cut_without_their_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    write_deep_png(tmp_path / "a.png", np.full((5, 6, 3), 4000, dtype=np.uint16))
    for image_format in (ImageFormat(), ImageFormat(3, (0, 4095))):
        with pytest.raises(UserError, match="has 16 bits per channel in colour, which needs imagecodecs"):
            read_image(tmp_path / "a.png", image_format)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright_whoever_reads_it(orientation: int, channels: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, channels), dtype=np.uint8)
    path = tmp_path / "a.tif"
    photometric = "rgb" if channels == 3 else "minisblack"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, pixels.squeeze(), photometric=photometric, extratags=tags)
    size = (6, 20) if orientation < 5 else (20, 6)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))).reshape(*size, channels)
    for image_format in (ImageFormat(channels), ImageFormat(channels, value_range=(0, 255))):
        source = open_image(path, image_format)
        assert source.size == image_size(path) == expected.shape[:2]
        assert source.is_turned == (orientation != 1)
        assert np.array_equal(source.pixels().permute(1, 2, 0).numpy(), expected)
    if channels == 1:
        assert np.array_equal(read_mask(path), expected[..., 0])  # Pillow alone mixes up the rows of such a file


@pytest.mark.parametrize("layout", ["pages", "planar", "interleaved", "grey pages"])
def test_bands_that_plain_images_have_not_are_named(layout: str, tmp_path: Path) -> None:
    """Pillow reads the first page, or the first three bands, without a word."""
    tifffile = pytest.importorskip("tifffile")
    bands, path = np.random.default_rng(0).integers(0, 256, (4, 12, 20), dtype=np.uint8), tmp_path / "a.tif"
    if layout == "pages":
        tifffile.imwrite(path, bands, photometric="minisblack")
    elif layout == "planar":
        tifffile.imwrite(path, bands, photometric="rgb", planarconfig="separate", extrasamples=["unspecified"])
    elif layout == "interleaved":
        tifffile.imwrite(path, np.moveaxis(bands, 0, -1), photometric="rgb", extrasamples=["unspecified"])
    else:
        tifffile.imwrite(path, np.moveaxis(bands, 0, -1), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"has 4 channels, and the network takes 3; set data.image_format.ch"):
        read_image(path)
    assert image_size(path) == (12, 20)
    assert read_image(path, ImageFormat(4)).shape == (4, 12, 20)


def test_pages_of_one_size_are_bands_and_small_copies_are_not(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands, path = np.random.default_rng(0).integers(0, 256, (3, 12, 20), dtype=np.uint8), tmp_path / "a.tif"
    tifffile.imwrite(path, bands, photometric="minisblack")
    assert np.array_equal(read_image(path).numpy(), bands)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(np.moveaxis(bands, 0, -1), photometric="rgb", subifds=0)
        file.write(np.moveaxis(bands, 0, -1)[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "b.tif").numpy(), bands)


def test_images_of_8_bits_are_not_read_as_deep_ones(tmp_path: Path) -> None:
    write = Image.fromarray(np.full((6, 8), 200, dtype=np.uint8))
    write.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: has 8 bits, of which data.image_format.value_range .* leave nothing"):
        read_image(tmp_path / "a.png", ImageFormat(1, (0, 65535)))


@pytest.mark.parametrize("wrong", [np.zeros((4, 5, 3), dtype=np.uint8), np.full((4, 5), 0.5)])
def test_a_mask_of_numpy_is_read_or_refused(wrong: Any, tmp_path: Path) -> None:
    mask = np.arange(20, dtype=np.int32).reshape(4, 5)
    np.save(tmp_path / "a.npy", mask)
    assert np.array_equal(read_mask(tmp_path / "a.npy"), mask)
    np.save(tmp_path / "a.npy", wrong)
    with pytest.raises(UserError, match=r"a.npy: holds .*masks are \(H, W\)|a.npy: holds the value 0.5"):
        read_mask(tmp_path / "a.npy")


def test_transparent_tiffs_stay_plain(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif").permute(1, 2, 0).numpy(), pixels[..., :3])
