"""Write a page that shows data before training: images with masks, a batch, classes, sizes, folds and warnings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from deeplab_lightning.data.check import Part
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.drawing import colorize, draw_balance, viewable
from deeplab_lightning.files import naming_errors, write_text

Pixels = npt.NDArray[np.uint8]
_NUM_IMAGES, _NUM_CROPS = 12, 8
_WIDTH, _CROP_WIDTH = 480, 256  # pixels of an image and of a crop on the page
_MAX_SIZES = 12  # rows of the table of sizes
_MAX_MEASURED = 2000  # images whose size is read, evenly spaced
_QUALITY = 88  # of JPEG
_MAX_LINES = 40  # problems on the page


def write_page(
    datamodule: SegmentationDataModule,
    parts: Mapping[str, Part],
    problems: Sequence[str],
    warnings: Sequence[str],
    folder: Path,
) -> Path:
    """Write `index.html` and its pictures.

    Args:
        datamodule: The data, of which the training images are shown.
        parts: The data sets by their keys in the configuration, the one to train on first.
        problems: Descriptions of what is wrong.
        warnings: Descriptions of what may be wrong.
        folder: Folder to write to, which is made if needed.

    Returns:
        The path of the page.
    """
    first = next(iter(parts.values()))
    environment = Environment(
        loader=PackageLoader("deeplab_lightning.data", "."), autoescape=True, undefined=StrictUndefined
    )
    with naming_errors(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        page = environment.get_template("page.html").render(
            title=f"Data: {first.dataset.source}",
            parts=[f"{key}: {len(part.dataset)} images of {part.dataset.source}" for key, part in parts.items()],
            problems=_first(problems),
            warnings=warnings,
            classes=[{"title": key, "rows": _class_rows(part)} for key, part in parts.items()],
            images=[_draw_image(first, index, place, folder) for place, index in enumerate(_chosen(first))],
            batch=_draw_batch(datamodule, folder),
            sizes=_sizes(first),
            folds=_draw_folds(datamodule, folder),
        )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _first(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    others = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *([f"... and {others} more"] if others > 0 else [])]


def _class_rows(part: Part) -> list[dict[str, Any]]:
    """Return colour, name, id, number of images and objects and the area of each class, and of ignored pixels."""
    dataset, statistics = part
    total = max(int(statistics.image_pixels[statistics.is_valid].sum()), 1)
    rows = []
    for index, (name, color) in enumerate(zip(dataset.classes.names, dataset.classes.colors or (), strict=True)):
        pixels = statistics.pixels[:, index]
        rows.append(
            {
                "color": f"rgb{tuple(color)}",
                "name": name,
                "id": index,
                "images": np.count_nonzero(pixels),
                "objects": int(statistics.objects[:, index].sum()),
                "area": f"{pixels.sum() / total:.2%}",
            }
        )
    if statistics.ignored_share:
        ignored = np.count_nonzero(statistics.is_valid & (statistics.pixels.sum(axis=1) < statistics.image_pixels))
        rows.append(
            {
                "color": "rgb(224, 224, 224)",
                "name": f"ignored ({', '.join(map(str, statistics.ignored))})",
                "id": "",
                "images": ignored,
                "objects": "",
                "area": f"{statistics.ignored_share:.2%}",
            }
        )
    return rows


def _chosen(part: Part) -> list[int]:
    """Choose images that show each class, the rarest first, and others evenly spaced."""
    areas = np.where(part.statistics.is_valid[:, None], part.statistics.areas, -1)
    holders = (areas > 0).sum(axis=0)
    chosen = [int(areas[:, c].argmax()) for c in np.argsort(holders, kind="stable") if holders[c]]
    valid = np.flatnonzero(part.statistics.is_valid)
    places = np.linspace(0, len(valid) - 1, min(_NUM_IMAGES, len(valid))).round().astype(int)
    spread = valid[places] if len(valid) else valid
    return sorted(list(dict.fromkeys([*chosen, *map(int, spread)]))[:_NUM_IMAGES])


def _draw_image(part: Part, index: int, place: int, folder: Path) -> dict[str, str]:
    """Write an image beside its mask, and return its file, name and size."""
    dataset = part.dataset
    image = viewable(dataset.read_image(index).permute(1, 2, 0).numpy())
    mask = colorize(dataset.read_mask(index).numpy(), dataset.classes)
    file = f"images/{place:02d}.jpg"
    _beside(image, mask, _WIDTH).save(folder / file, quality=_QUALITY)
    return {"file": file, "name": dataset.names[index], "size": f"{image.shape[0]}x{image.shape[1]}"}


def _draw_batch(datamodule: SegmentationDataModule, folder: Path) -> str:
    """Write augmented training crops with their masks, and return the file's name; empty without training images."""
    dataset = datamodule.dataset
    if dataset is None:
        return ""
    view = datamodule.train_view(dataset)
    places = np.linspace(0, len(view) - 1, min(_NUM_CROPS, len(view))).round().astype(int)
    pairs = []
    for place in places.tolist():
        sample = view[0, place]
        assert sample.mask is not None
        crop = viewable(sample.image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        mask = colorize(sample.mask.as_subclass(Tensor).numpy(), dataset.classes)
        pairs.append(np.asarray(_beside(crop, mask, _CROP_WIDTH)))
    rows = [np.concatenate(pairs[start : start + 2], axis=1) for start in range(0, len(pairs) - len(pairs) % 2, 2)]
    Image.fromarray(np.concatenate(rows or pairs)).save(folder / "batch.png")
    return "batch.png"


def _draw_folds(datamodule: SegmentationDataModule, folder: Path) -> str:
    """Write the deviations of the folds from their even share, and return the file's name; empty without folds."""
    if datamodule.dataset is None or datamodule.split != "folds":
        return ""
    balance = datamodule.balance()
    sums = {str(datamodule.fold_method): {"objects": balance.objects, "area": balance.pixels}}
    draw_balance(sums, datamodule.foreground_names, folder / "folds.png")
    return "folds.png"


def _sizes(part: Part) -> list[tuple[str, str]]:
    """Count the images of each size, the most frequent first, and the others together."""
    dataset = part.dataset
    places = np.linspace(0, len(dataset) - 1, min(_MAX_MEASURED, len(dataset))).round().astype(int)
    counts = Counter(dataset.open_image(int(place)).size for place in places)
    rows = [(f"{height}x{width}", str(count)) for (height, width), count in counts.most_common(_MAX_SIZES)]
    if len(counts) > _MAX_SIZES:
        others = sum(counts.values()) - sum(int(number) for _, number in rows)
        rows.append((f"{len(counts) - _MAX_SIZES} other sizes", str(others)))
    if len(places) < len(dataset):
        rows.append((f"not measured, of {len(dataset)}", str(len(dataset) - len(places))))
    return rows


def _beside(image: Pixels, mask: Pixels, width: int) -> Image.Image:
    """Return an image and its coloured mask side by side, each at most `width` pixels wide."""
    scale = min(1.0, width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    left = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    right = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    both = Image.new("RGB", (2 * size[0], size[1]))
    both.paste(left, (0, 0))
    both.paste(right, (size[0], 0))
    return both
