"""Draw pictures of coloured shapes that a small network learns in seconds, and train an experiment on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.conftest import noise_config
from tests.processes import run_program

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210)}
SIZE = 64  # pixels


def draw_shapes(folder: Path, *, num_images: int, seed: int = 0) -> Path:
    """Write images with three rectangles of colours on grey noise, and return their COCO JSON file."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        pixels = rng.integers(60, 180, (SIZE, SIZE, 1)).repeat(3, axis=2).astype(np.int64)
        for place in rng.permutation(4)[:3].tolist():  # one in each of three quarters
            height, width = rng.integers(14, 24, 2).tolist()
            top = int(rng.integers(2, 31 - height)) + 32 * (place // 2)
            left = int(rng.integers(2, 31 - width)) + 32 * (place % 2)
            number = int(rng.integers(len(COLORS)))
            color = np.array(list(COLORS.values())[number]) + rng.integers(-30, 31, (height, width, 3))
            pixels[top : top + height, left : left + width] = color
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": number + 1,
                    "segmentation": [corners],
                    "iscrowd": 0,
                }
            )
        name = f"{index:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        images.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLORS, start=1)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def train_on_shapes(folder: Path, annotations: Path, *words: str, epochs: int = 14) -> Path:
    """Train the folds of an experiment by the real command, and return its folder."""
    config = noise_config(folder, trainer={"max_epochs": epochs, "num_sanity_val_steps": 0}, data={"batch_size": 4})
    config["model"]["net"]["class_path"] = "DeepLabV3Plus"
    config["model"]["net"]["init_args"]["aspp_channels"] = 16
    config["model"] |= {"head_lr_multiplier": 1.0, "head_bias_lr_multiplier": 1.0}
    config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": 0.005}}
    config["data"]["dataset"] = {"class_path": "CocoDataset", "init_args": {"annotations": str(annotations)}}
    config["data"]["train_transforms"]["init_args"] |= {"crop_size": SIZE, "scale_range": [1.0, 1.0]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_program("kfold", "-c", str(folder / "config.yaml"), "--name", "cv", *words, check=True)
    return folder / "runs" / "cv"
