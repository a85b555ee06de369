"""Plant errors in labels: an object gets another class, is left out, or its mask is shifted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_tools

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datasets import CocoDataset

KINDS = ("class", "missing", "shifted")
_MIN_PIXELS = 60  # that an error changes, so that a person could see it


class Planted(NamedTuple):
    """Hold one planted error.

    Attributes:
        image: Key of the image.
        kind: One of `KINDS`.
        is_wrong: (H, W) bool, where the label differs from the truth.
    """

    image: str
    kind: str
    is_wrong: npt.NDArray[np.bool_]


def plant_errors(
    clean: Path, output: Path, *, per_kind: int, seed: int, class_map: Mapping[str, str | None] | None = None
) -> list[Planted]:
    """Write a COCO JSON file with errors in the annotations of another one, at most one in an image.

    Args:
        clean: The annotations without errors.
        output: The file to write, in the same folder.
        per_kind: Number of errors of each kind.
        seed: Seed of images, objects, classes and directions.
        class_map: See `CocoDataset`; objects of categories that it ignores get no error.
    """
    rng = np.random.default_rng(seed)
    content = json.loads(clean.read_text())
    truth = CocoDataset(str(clean), class_map=class_map)
    used = [c["id"] for c in content["categories"] if (class_map or {}).get(c["name"], c["name"]) is not None]
    order = rng.permutation(len(content["images"])).tolist()
    wanted = [kind for kind in KINDS for _ in range(per_kind)]
    planted = []
    for place in order:
        if not wanted:
            break
        image = content["images"][place]
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        candidates = [a for a in own if a["category_id"] in used]
        if not candidates:
            continue
        annotation = candidates[int(rng.integers(len(candidates)))]
        changed = _changed(annotation, wanted[-1], image, used, rng)
        others = [a for a in content["annotations"] if a is not annotation]
        annotations = others if changed is None else [*others, changed]
        trial = {**content, "images": [image], "annotations": [a for a in annotations if a["image_id"] == image["id"]]}
        output.write_text(json.dumps(trial))
        index = truth.names.index(image["file_name"])
        now = CocoDataset(str(output), classes=truth.classes.names[1:], class_map=class_map).read_mask(0).numpy()
        before = truth.read_mask(index).numpy()
        is_wrong = (now != before) & (now != IGNORE_INDEX) & (before != IGNORE_INDEX)
        if is_wrong.sum() < _MIN_PIXELS:
            continue
        content["annotations"] = annotations
        planted.append(Planted(image["file_name"], wanted.pop(), is_wrong))
    assert not wanted, f"{len(wanted)} errors found no object"
    output.write_text(json.dumps(content))
    return planted


def _changed(
    annotation: dict[str, Any], kind: str, image: dict[str, Any], categories: Sequence[int], rng: np.random.Generator
) -> dict[str, Any] | None:
    """Return an annotation with an error; None if it is left out."""
    if kind == "missing":
        return None
    if kind == "class":
        others = [category for category in categories if category != annotation["category_id"]]
        return {**annotation, "category_id": int(rng.choice(others))}
    height, width = image["height"], image["width"]
    given = annotation["segmentation"]
    rle = rle_tools.merge(rle_tools.frPyObjects(given, height, width)) if isinstance(given, list) else given
    mask, (_, _, box_width, box_height) = rle_tools.decode(rle), rle_tools.toBbox(rle)
    angle = rng.uniform(0, 2 * np.pi)
    down, right = round(0.5 * np.sin(angle) * box_height), round(0.5 * np.cos(angle) * box_width)
    rows, columns = np.nonzero(mask)
    is_inside = (rows + down >= 0) & (rows + down < height) & (columns + right >= 0) & (columns + right < width)
    shifted = np.zeros_like(mask, order="F")
    shifted[rows[is_inside] + down, columns[is_inside] + right] = 1
    counts = rle_tools.encode(shifted)["counts"].decode()
    return {**annotation, "segmentation": {"size": [height, width], "counts": counts}}


def region_hits(folder: Path, errors: Sequence[Planted]) -> list[int | None]:
    """Return the error that each region of `deeplab suspects` lies on by more than half of its pixels, by rank.

    Args:
        folder: The folder that the command wrote.
        errors: The errors.
    """
    coco = json.loads((folder / "suspects.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    of_image = {error.image: index for index, error in enumerate(errors)}
    found: list[int | None] = []
    for annotation in coco["annotations"]:
        index = of_image.get(names[annotation["image_id"]])
        pixels = rle_tools.decode(annotation["segmentation"]).astype(bool)
        is_hit = index is not None and (pixels & errors[index].is_wrong).sum() > pixels.sum() / 2
        found.append(index if is_hit else None)
    return found


class Hits(NamedTuple):
    """Count what is found among the first k of a ranking.

    Attributes:
        precision: Share of the k entries that lie on an error.
        recall: Share of the errors that one of them lies on.
        by_kind: The recall of each kind.
    """

    precision: float
    recall: float
    by_kind: dict[str, float]


def count_hits(planted: Sequence[Planted], hit_of: Sequence[int | None]) -> Hits:
    """Count the hits of a ranking.

    Args:
        planted: The errors.
        hit_of: Index of the error that each of the first k entries lies on, or None.
    """
    found = {hit for hit in hit_of if hit is not None}
    by_kind = {}
    for kind in dict.fromkeys(error.kind for error in planted):
        own = [index for index, error in enumerate(planted) if error.kind == kind]
        by_kind[kind] = len(found.intersection(own)) / len(own)
    return Hits(sum(hit is not None for hit in hit_of) / len(hit_of), len(found) / len(planted), by_kind)
