"""Write and read the built-in data set: litter scenes as JPEG files with COCO JSON annotations."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab_lightning.data.datasets.coco import CocoDataset
from deeplab_lightning.data.datasets.litter_scene import LITTER_CLASSES, render_scene
from deeplab_lightning.data.problems import OnError
from deeplab_lightning.errors import DataError, UserError

ANNOTATION_FILE = "annotations.json"
_JPEG_QUALITY = 88


class SyntheticLitterDataset(CocoDataset):
    """Read scenes of overlapping litter, which are drawn on first use.

    The eleven classes are those of the recycling competition: background and ten kinds of litter. Their
    distribution is long-tailed, and an image holds several objects of several classes.

    Args:
        root: Folder of the data set; it is written there if it does not exist.
        num_images: Number of images, at least 1.
        size: Height and width of the images in pixels, at least 32.
        seed: Seed of the scenes.
        on_error: `raise` stops at faulty files, `skip` leaves them out and lists them once.

    Raises:
        ValueError: If there are too few images, or they are too small.
        DataError: If `root` holds a data set with another number, size or seed, or other files.
    """

    def __init__(
        self,
        root: str = "data/synthetic",
        *,
        num_images: int = 200,
        size: int = 256,
        seed: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        write_synthetic(root, num_images=num_images, size=size, seed=seed)
        super().__init__(str(Path(root) / ANNOTATION_FILE), on_error=on_error)


def write_synthetic(root: str | Path, *, num_images: int = 200, size: int = 256, seed: int = 0) -> Path:
    """Write the litter scenes, or keep the folder if it holds the same scenes already.

    The scenes are written to a temporary folder that is then renamed, so that the folder is never incomplete.

    Args:
        root: Folder to write.
        num_images: Number of images, at least 1.
        size: Height and width of the images in pixels, at least 32.
        seed: Seed of the scenes. An image depends on the seed and its own number only.

    Returns:
        The annotation file.

    Raises:
        ValueError: If there are too few images, or they are too small.
        DataError: If the folder holds other files.
    """
    if num_images < 1 or size < 32:
        raise UserError(f"num_images must be at least 1 and size at least 32, got {num_images} and {size}.")
    root = Path(root)
    recipe = {
        "generator": "deeplab_lightning synthetic litter 1",
        "num_images": num_images,
        "size": size,
        "seed": seed,
    }
    if _is_written(root, recipe):
        return root / ANNOTATION_FILE
    root.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=root.absolute().parent, prefix=f".{root.name}."))
    try:
        _write(draft, recipe, num_images, size, seed)
        draft.chmod(0o755)
        try:
            draft.rename(root)
        except OSError:  # another process wrote the folder first
            if not _is_written(root, recipe):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root / ANNOTATION_FILE


def _is_written(root: Path, recipe: dict[str, Any]) -> bool:
    """Check whether the folder holds these scenes. An empty or missing folder does not.

    Raises:
        DataError: If it holds other files.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / ANNOTATION_FILE).read_text())["info"]
    except (OSError, ValueError, KeyError):
        found = "other files"
    if found != recipe:
        raise DataError(
            f"{root.absolute()}: holds {found}, but {recipe} was requested. Choose another folder, or delete this one."
        )
    return True


def _write(folder: Path, recipe: dict[str, Any], num_images: int, size: int, seed: int) -> None:
    """Draw all scenes and write the images and the annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    for index in range(num_images):
        image, objects = render_scene(np.random.default_rng([seed, index]), size)
        name = f"images/{index:06d}.jpg"
        Image.fromarray(image).save(folder / name, quality=_JPEG_QUALITY)
        images.append({"id": index, "file_name": name, "height": size, "width": size})
        for item in objects:
            counts = item.rle["counts"].decode()
            is_rle = LITTER_CLASSES[item.class_index].name == "plastic bag"  # so that both forms are read
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": item.class_index + 1,
                    "segmentation": {"size": [size, size], "counts": counts} if is_rle else [item.polygon],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": litter.name} for i, litter in enumerate(LITTER_CLASSES, start=1)]
    content = {"info": recipe, "images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATION_FILE).write_text(json.dumps(content))
