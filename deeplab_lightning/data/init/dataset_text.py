"""Write the data sets of a configuration: paths and classes, with what was counted."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deeplab_lightning.data.check import Part
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datasets.coco_classes import BACKGROUND
from deeplab_lightning.data.init.layout import Layout
from deeplab_lightning.data.init.mask_values import FoundClasses
from deeplab_lightning.data.init.yaml_text import block, commented, scalar

KEYS = {"train": "dataset", "val": "val_dataset", "test": "test_dataset"}


def dataset_lines(
    layout: Layout, parts: Mapping[str, Part], sizes: Mapping[str, str], classes: FoundClasses | None
) -> Iterator[str]:
    """Yield the lines of the data sets, of which the later ones repeat only what differs from the first.

    Args:
        layout: The arguments of the data sets, with paths as in the configuration.
        parts: The data set and its scan for each part; `train` comes first.
        sizes: Number and size of the images of each part, a text.
        classes: The class table of mask folders; None for COCO files.
    """
    (first, arguments), *others = layout.parts.items()
    yield f"  {KEYS[first]}:{' &train' if others else ''}"
    yield from commented(f"    class_path: {layout.class_path}", layout.reason)
    yield f"    init_args:{' &train_args' if others else ''}"
    yield from _arguments(arguments, sizes[first])
    yield from _coco_classes(parts[first]) if classes is None else _mask_classes(parts[first], classes)
    for title, own in others:
        yield from (f"  {KEYS[title]}:", "    <<: *train", "    init_args:", "      <<: *train_args")
        keys = [*own, *(key for key in arguments if key not in own)]
        yield from _arguments({key: own.get(key) for key in keys if own.get(key) != arguments.get(key)}, sizes[title])


def _arguments(arguments: Mapping[str, Any], size: str) -> Iterator[str]:
    """Yield the lines of paths and suffixes, of which the first has the number and size of the images."""
    for number, (key, value) in enumerate(arguments.items()):
        line = f"      {key}: {scalar(value)}"
        yield from commented(line, size) if number == 0 else (line,)


def _coco_classes(part: Part) -> Iterator[str]:
    """Yield the lines of the classes of COCO files, with their objects and pixels."""
    objects = part.statistics.objects.sum(axis=0)
    names = part.dataset.classes.names
    items = [
        (scalar(name), f"{objects[index]:,} objects in {_share(part, index)}")
        for index, name in enumerate(names)
        if name != BACKGROUND
    ]
    yield from block(
        "classes",
        items,
        "      ",
        "the names of the categories, in the order of their ids; pixels as they are seen, after overlaps",
    )
    yield from commented("      background: class", f"pixels without object: {_share(part, 0)}")
    if part.statistics.ignored_share:
        yield from commented("      crowd: ignore", f"regions of many objects: {part.statistics.ignored_share:.2%}")


def _mask_classes(part: Part, classes: FoundClasses) -> Iterator[str]:
    """Yield the lines of the class table of mask folders, with the pixels of each value."""
    table = classes.arguments
    items = [
        (scalar(name), f"{value}: {_share(part, index)}")
        for index, (name, value) in enumerate(zip(table["names"], classes.values, strict=True))
    ]
    yield "      classes:"
    yield from block("names", items, "        ", classes.reason)
    if "colors" in table:
        items = [(scalar(color), name) for color, name in zip(table["colors"], table["names"], strict=True)]
        yield from block("colors", items, "        ", "R, G, B")
    if "raw_ids" in table:
        yield from commented(f"        raw_ids: {scalar(table['raw_ids'])}", "value in the mask: class, from 0 on")
    yield from commented(f"        ignore_ids: {scalar(table['ignore_ids'])}", _ignored(part, table["ignore_ids"]))


def _ignored(part: Part, values: list[int]) -> str:
    """Say how many pixels the ignored values have."""
    total = max(int(part.statistics.image_pixels.sum()), 1)
    shares = [f"{value}: {part.statistics.ignored.get(value, 0) / total:.2%}" for value in values]
    if values == [IGNORE_INDEX] and not part.statistics.ignored:
        return "no pixel has the value 255, which means void in most data"
    return f"void, left out of loss and metrics; of the pixels, {', '.join(shares)}" if values else "nothing is void"


def _share(part: Part, index: int) -> str:
    """Write the share of the pixels that a class has, and the number of images with it."""
    statistics = part.statistics
    total = max(int(statistics.image_pixels[statistics.is_valid].sum()), 1)
    pixels = statistics.pixels[:, index]
    return f"{np.count_nonzero(pixels)} of {len(pixels)} images, {pixels.sum() / total:.2%} of the pixels"
