"""Write a commented configuration for the data of a folder."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_lightning.data.check import Part, find_warnings
from deeplab_lightning.data.datasets.coco_classes import BACKGROUND
from deeplab_lightning.data.groups import DuplicateGroups
from deeplab_lightning.data.images import image_size
from deeplab_lightning.data.init.dataset_text import dataset_lines
from deeplab_lightning.data.init.image_formats import FoundFormat
from deeplab_lightning.data.init.layout import Layout
from deeplab_lightning.data.init.mask_values import FoundClasses
from deeplab_lightning.data.init.sequences import Sequences, find_sequences, group_sizes
from deeplab_lightning.data.init.yaml_text import comment_lines, commented, scalar, some

_MAX_CROP, _MIN_CROP = 512, 32  # pixels
_MAX_SIDE = 2048  # pixels; larger images are shrunk to it when they are evaluated
_BATCH_SIZE = 8
_N_FOLDS = 5
_PURPOSES = {"train": "train on", "val": "validate", "test": "test"}
_MODEL = """\
trainer:
  max_epochs: 30 # as configs/base.yaml, which explains all other settings
model: # as configs/model/deeplabv3_efficientnet.yaml; another -c configs/model/... after this file replaces it
  net:
    class_path: DeepLabV3
    init_args:
      backbone: tf_efficientnet_lite0.in1k # 3.4 M parameters, so that it trains without a GPU too
      pretrained: true # ImageNet weights, from an installed package, the local cache or the hub
  optimizer:
    class_path: AdamW
    init_args:
      lr: 0.0015 # of the backbone, for batches of 8
      weight_decay: 0.01
  head_lr_multiplier: 2.0
  head_bias_lr_multiplier: 2.0"""


class Found(NamedTuple):
    """Hold all that is known of the data of a folder.

    Attributes:
        folder: The folder, as typed.
        config: The file to write.
        layout: How the data lie in the folder, with paths as in the configuration.
        parts: The data set and its scan for each part; `train` comes first.
        classes: The class table of mask folders; None for COCO files, which hold their own.
        image_format: Channels and values of the images.
    """

    folder: Path
    config: Path
    layout: Layout
    parts: dict[str, Part]
    classes: FoundClasses | None
    image_format: FoundFormat


def config_text(found: Found) -> str:
    """Write the configuration of `deeplab fit` for the data of a folder.

    Args:
        found: What is known of the data.
    """
    sizes = {title: _sizes(part) for title, part in found.parts.items()}
    texts = {title: _size_text(own) for title, own in sizes.items()}
    sequences = find_sequences(found.parts["train"].dataset)
    lines = [
        *_head(found),
        *_MODEL.splitlines(),
        "data:",
        *_split(found, sequences),
        *found.image_format.lines,
        *dataset_lines(found.layout, found.parts, texts, found.classes),
        *_loading(found, sizes),
    ]
    return "\n".join(lines) + "\n"


def _head(found: Found) -> Iterator[str]:
    yield f"# deeplab fit -c {found.config}"
    yield f"# Written by `deeplab data init {found.folder}`. The comments give the reasons and what was counted."
    if not found.folder.is_absolute():
        yield "# Paths are relative to the folder that a command is run in, as in all of configs/."
    notes = [*found.layout.notes]
    for title, part in found.parts.items():
        notes += [f"{title}: {line}" for line in part.dataset.remarks()]
    for line in [*notes, *(f"warning: {line}" for line in find_warnings(found.parts))]:
        yield from comment_lines(line)


def _split(found: Found, sequences: Sequences | None) -> Iterator[str]:
    """Yield the lines of the official split, or of the folds, and of the groups."""
    train = found.parts["train"]
    counts = ", ".join(f"{len(part.dataset)} images to {_PURPOSES[title]}" for title, part in found.parts.items())
    if "val" in found.parts:
        yield from commented("  split: official", f"the data come with parts: {counts}")
        for line in _shared_groups(found, sequences):
            yield from comment_lines(line, "  ")
        yield "  # With --data.split folds, as deeplab kfold needs it, data.dataset is divided:"
    else:
        yield from commented("  split: folds", f"the data come without a validation part: {counts}")
    copies = 0 if sequences else _num_copies(train)
    num_groups = len(sequences.sizes) if sequences else len(train.dataset) - copies
    things = "groups" if sequences else "different images" if copies else "images"
    yield from commented(f"  n_folds: {min(_N_FOLDS, num_groups)}", f"of {num_groups} {things}; {_rarest(train)}")
    yield from _groups(sequences, copies)


def _num_copies(part: Part) -> int:
    """Count the images that look the same as others, if any has the same pixels and two different ones are left."""
    digests = part.statistics.digests[part.statistics.is_valid]
    num_different = len(set(DuplicateGroups(0).labels(part.dataset)))
    return len(part.dataset) - num_different if len(np.unique(digests)) < len(digests) and num_different > 1 else 0


def _rarest(part: Part) -> str:
    """Name the class that the fewest images have."""
    images = np.count_nonzero(part.statistics.pixels, axis=0)
    counts = {name: int(count) for name, count in zip(part.dataset.classes.names, images, strict=True) if count}
    counts.pop(BACKGROUND, None)
    name = min(counts, key=counts.__getitem__)
    return f"the rarest class, {name}, is in {counts[name]} images"


def _shared_groups(found: Found, sequences: Sequences | None) -> Iterator[str]:
    """Describe sequences that are in the training part and in another one."""
    for title in [title for title in found.parts if title != "train" and sequences is not None]:
        assert sequences is not None
        own, others = sequences.sizes, group_sizes(sequences.pattern, found.parts[title].dataset)
        shared = [f"{label} ({own[label]} and {others[label]} images)" for label in own if label in others]
        if shared:
            found_there = f"train and {title} share {some(shared)}"
            yield f"warning: {found_there}, so the figures of {title} are better than on new data."


def _groups(sequences: Sequences | None, copies: int) -> Iterator[str]:
    """Yield the lines of the groups: sequences by name, or else copies."""
    if sequences is not None:
        sizes = sequences.sizes.most_common()
        named = some([f"{label} ({size})" for label, size in sizes])
        reason = f"{len(sizes)} groups of images whose names begin alike stay in one fold: {named}"
        yield from ("  groups:", "    class_path: PatternGroups", "    init_args:")
        yield from commented(f"      pattern: {scalar(sequences.pattern)}", reason)
    elif copies:
        yield "  groups:"
        yield from commented(
            "    class_path: DuplicateGroups", f"{copies} images are copies of others and stay in their fold"
        )
        yield from ("    init_args:", "      max_distance: 0 # 6 keeps also images together that look alike")
    else:
        yield "  groups: null # no groups in the names, and no copies to keep together"


def _loading(found: Found, sizes: dict[str, Counter[tuple[int, int]]]) -> Iterator[str]:
    """Yield the lines of batches and transforms."""
    height, width = (_median(sizes["train"], axis) for axis in (0, 1))
    crop = [min(max(side, _MIN_CROP), _MAX_CROP) for side in (height, width)]
    num_train = len(found.parts["train"].dataset)
    if "val" not in found.parts:
        num_train -= -(-num_train // _N_FOLDS)
    batch_size = max(1, min(_BATCH_SIZE, num_train // 2))
    steps = max(num_train // batch_size, 1)
    yield from commented(f"  batch_size: {batch_size}", f"{num_train} images in {steps} steps per epoch")
    yield from ("  train_transforms:", "    class_path: deeplab_lightning.data.TrainTransforms", "    init_args:")
    share = min(crop[0] / height, 1) * min(crop[1] / width, 1)
    reason = f"pixels (height, width): {share:.0%} of the median image of {height}x{width}, at most {_MAX_CROP}"
    yield from commented(f"      crop_size: {crop}", reason)
    if found.image_format.lines:
        yield "      brightness: 0.0 # bands of a sensor are measurements; a photograph takes 0.3"
        yield "      contrast: 0.0"
    largest = max(max(size) for own in sizes.values() for size in own)
    if largest > _MAX_SIDE:
        yield from ("  eval_transforms:", "    class_path: deeplab_lightning.data.EvalTransforms", "    init_args:")
        yield from commented(f"      max_size: {_MAX_SIDE}", f"the longest side is {largest} pixels; this saves memory")


def _sizes(part: Part) -> Counter[tuple[int, int]]:
    """Count the images of each (height, width)."""
    channels = part.dataset.image_format.channels
    return Counter(image_size(path, channels) for path in part.dataset.paths)


def _size_text(sizes: Counter[tuple[int, int]]) -> str:
    """Describe number and size of images."""
    smallest, largest = min(sizes, key=np.prod), max(sizes, key=np.prod)
    text = "x".join(map(str, smallest)) + (f" to {'x'.join(map(str, largest))}" if len(sizes) > 1 else "")
    return f"{sizes.total()} images of {text} pixels (height x width)"


def _median(sizes: Counter[tuple[int, int]], axis: int) -> int:
    return int(np.median([size[axis] for size in sizes.elements()]))
