"""Run the real commands on images of other channels and more bits than RGB of 8 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import SegmentationModule
from deeplab_lightning.data.image_format import ImageFormat
from deeplab_lightning.data.images import read_image
from tests.conftest import noise_config, write_mask
from tests.processes import run_program

tifffile = pytest.importorskip("tifffile")
BANDS, RANGE = 5, [100, 4100]


def write_bands(folder: Path, suffix: str, num_images: int = 8) -> None:
    """Write images of 5 bands of 12 bits, of which only the last tells the three classes apart."""
    rng = np.random.default_rng(0)
    for index in range(num_images):
        mask = np.repeat(np.repeat(rng.integers(0, 3, (2, 2)), 24, axis=0), 32, axis=1).astype(np.uint8)
        bands = rng.integers(100, 4100, (48, 64, BANDS))
        bands[..., -1] = 600 + 1500 * mask.astype(int) + rng.integers(0, 100, mask.shape)
        array = bands.astype(np.uint16)
        path = folder / "images" / f"{index:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, array if index % 2 else np.moveaxis(array, -1, 0))
        else:
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
        write_mask(folder / "masks" / f"{index:02d}.png", mask)


def write_config(folder: Path, image_format: dict[str, Any] | None, **trainer: Any) -> str:
    """Write the configuration of a small training, and return its path."""
    net = {"output_stride": 8, "aspp_channels": 16}
    data: dict[str, Any] = {"batch_size": 2, "image_format": image_format}
    config = noise_config(
        folder,
        trainer={"num_sanity_val_steps": 0, "callbacks": [{"class_path": "PredictionPanels"}], **trainer},
        net=net,
        data=data,
    )
    config["data"]["dataset"]["init_args"]["classes"] = {"names": ["low", "middle", "high"]}
    config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": 0.005}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "config.yaml")


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_bands_train_predict_and_load(tmp_path: Path, suffix: str) -> None:
    """The classes are in the fifth band alone, so that a network which sees three cannot learn them."""
    write_bands(tmp_path, suffix)
    config = write_config(tmp_path, {"channels": BANDS, "value_range": RANGE}, max_epochs=40)
    checked = run_program("data", "check", "-c", config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    run_program("fit", "-c", config, "--name", "bands", check=True)
    checkpoint = str(tmp_path / "runs" / "bands" / "checkpoints" / "last.ckpt")
    words = ("--images", str(tmp_path / "images"), "--output", str(tmp_path / "out"))
    run_program("predict", "--ckpt_path", checkpoint, *words, check=True)
    masks = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "out" / "masks").glob("*.png")}
    truths = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "masks").glob("*.png")}
    assert np.mean([(masks[stem] == truths[stem]).mean() for stem in truths]) > 0.7

    module = SegmentationModule.load_from_checkpoint(checkpoint)
    image = read_image(tmp_path / "images" / f"01{suffix}", ImageFormat(BANDS, (100, 4100)))
    assert np.array_equal(module.predict(image).numpy(), masks["01"])
    assert module.net.in_channels == BANDS
    assert module.net.preprocess.image_format["value_range"] == RANGE  # type: ignore[index]
    # The statistics of the training images, not a constant: the last band has its own.
    pixels = torch.stack(
        [read_image(path, ImageFormat(BANDS, (100, 4100))) for path in sorted((tmp_path / "images").iterdir())]
    )
    mean = pixels.float().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(torch.tensor(module.net.backbone.mean), mean, atol=0.05)
    assert (tmp_path / "runs" / "bands" / "panels").is_dir()


@pytest.mark.slow
def test_a_band_file_of_another_number_is_named(tmp_path: Path) -> None:
    write_bands(tmp_path, ".npy")
    np.save(tmp_path / "images" / "03.npy", np.zeros((48, 64, 4), dtype=np.uint16))
    config = write_config(tmp_path, {"channels": BANDS, "value_range": RANGE}, max_epochs=1)
    for command in (("data", "check"), ("fit",)):
        done = run_program(*command, "-c", config)
        assert done.returncode == 1, done.stdout
        text = " ".join((done.stdout + done.stderr).split())
        assert "03.npy: has 4 channels, and the network takes 5" in text
        assert "Traceback" not in text


@pytest.mark.long
def test_sixteen_bits_need_a_range_and_then_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(6):
        mask = np.repeat(rng.integers(0, 3, (48, 1)), 64, axis=1).astype(np.uint8)
        Image.fromarray(mask.astype(np.uint16) * 900 + 150).save(tmp_path / "images" / f"{index}.png")
        write_mask(tmp_path / "masks" / f"{index}.png", mask)
    refused = run_program("fit", "-c", write_config(tmp_path, None, max_epochs=1))
    assert refused.returncode == 1
    assert "has more than 8 bits per channel (values 150 to 1950)" in " ".join(refused.stderr.split())
    for channels in (1, 3):
        config = write_config(tmp_path, {"channels": channels, "value_range": [0, 2000]}, max_epochs=1)
        done = run_program("fit", "-c", config, "--name", f"of{channels}")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_number_of_channels_comes_from_the_data(tmp_path: Path) -> None:
    write_bands(tmp_path, ".npy")
    config = write_config(tmp_path, None, max_epochs=1)
    done = run_program("fit", "-c", config, "--model.net.init_args.in_channels", "5")
    assert done.returncode == 2
    assert "data.image_format.channels" in done.stderr
