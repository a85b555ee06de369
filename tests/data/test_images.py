from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_lightning.data.images import LARGE_PIXELS, ImageFile, image_size, read_image
from deeplab_lightning.data.mask_files import read_mask
from tests.conftest import write_image


def test_images_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :5] = 255  # the left end of an image that was taken sideways
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    image = read_image(path)
    assert tuple(image.shape) == (3, 20, 10)
    assert image_size(path) == (20, 10)
    assert int(image[0, 0, 0]) == 255  # the left end is at the top
    assert int(image[0, -1, 0]) == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3), (51, 51, 51)).convert(mode).save(path)
    assert read_image(path).tolist() == np.full((3, 3, 4), 51).tolist()


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.png")


def test_two_valued_masks_hold_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[1, 0]]


def test_sixteen_bit_masks_keep_their_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 3]], dtype=np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[1000, 3]]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_both_jpeg_decoders_give_the_same_pixels(tmp_path: Path, subsampling: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (51, 37, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", subsampling=subsampling)
    assert (
        read_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy().tolist()
        == np.array(Image.open(tmp_path / "a.jpg")).tolist()
    )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_files_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (16, 24), (51, 51, 51)).convert(mode).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert tuple(image.shape) == (3, 24, 16)
    assert (image.int() - 51).abs().max() <= 2


def test_turned_jpeg_files_are_upright_and_never_reduced(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16)).save(tmp_path / "a.jpg", exif=exif)
    image = ImageFile(tmp_path / "a.jpg")
    assert (image.size, tuple(image.pixels().shape), image.reduction(0.1)) == ((32, 16), (3, 32, 16), 1)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a.{suffix}")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match=f"a.{suffix}: cannot be decoded"):
        read_image(path)


def test_more_pixels_are_read_only_where_that_is_asked_for(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has 200 megapixels, and at most 179 are read; predict it with --tile 1024"):
        ImageFile(tmp_path / "a.png")
    assert ImageFile(tmp_path / "a.png", max_pixels=LARGE_PIXELS).size == (10_000, 20_000)
