"""Draw pictures that a training of seconds learns, and train on them."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from deeplab_lightning.cli import main
from deeplab_lightning.runs import RunFolder
from tests.conftest import draw_noise_data, noise_config


def draw_picture(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write noise whose lower half is brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 128, (*size, 3), dtype=np.uint8)
    pixels[size[0] // 2 :] += 120
    Image.fromarray(pixels).save(path)


def draw_pictures(folder: Path) -> None:
    """Write ten pictures of 48x64 with the masks of `draw_noise_data`."""
    draw_noise_data(folder)
    for index in range(10):
        draw_picture(folder / "images" / f"{index:02d}.png", (48, 64), seed=index)


def train_on_pictures(folder: Path, name: str, **data: Any) -> RunFolder:
    """Train on the pictures and masks of a folder, as its `config.yaml` says then."""
    config = noise_config(folder, trainer={"max_epochs": 6, "num_sanity_val_steps": 0}, data={"fold": 0, **data})
    config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": 0.005}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(folder / "config.yaml"), "--name", name])
    return RunFolder(folder / "runs" / name)
