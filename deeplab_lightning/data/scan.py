"""Scan a data set: read every file once, find all problems and count the pixels of each class."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from torch import Tensor

from deeplab_lightning.data.cache import Row, cache_folder, cached_rows, content_key
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datasets.base import MaskFacts, SegmentationDataset, UnknownMaskValuesError, size_problem
from deeplab_lightning.data.digest import DIGEST_LENGTH
from deeplab_lightning.data.images import planar
from deeplab_lightning.data.problems import Problem

_MAX_FILES = 3  # in one message
_VERSION = 5  # part of the cache key: raise it when the same files give other counts
_NUM_IGNORED = 3  # raw values behind ignored pixels that are remembered for each image, the most frequent ones
_BYTE_VALUES = 256  # raw values of masks with 8 bits
_WORD = 64  # bits
# Columns of a row after objects and pixels: pixels of the image, its digest, that of its labels, turned, invisible,
# palette; raw values and numbers of the ignored pixels; and a bit for each raw value of 8 bits.
_SINGLE = 6
_EXTRA = _SINGLE + 2 * _NUM_IGNORED + _BYTE_VALUES // _WORD


@dataclass(frozen=True)
class Statistics:
    """Hold the counts and the problems that a scan found.

    Attributes:
        names: N image keys, including images with a problem.
        objects: (N, K) int64 number of objects of each class: annotations, or connected regions of a mask.
            Zero for images with a problem.
        pixels: (N, K) int64 number of pixels of each class. Zero for images with a problem.
        image_pixels: (N,) int64 number of pixels of each image, ignored pixels included; 1 for images with
            a problem.
        problems: All problems in the order of the images. Unknown mask values are one problem for all masks.
        is_valid: (N,) bool, False for images with a problem.
        digests: (N,) int64 hash of each image's pixels; equal for identical images, 0 with a problem.
        label_digests: (N,) int64 hash of each image's train ids and their places; 0 with a problem.
        is_turned: (N,) bool, whether the EXIF tag of the image or its mask asks for a rotation or reflection.
        invisible: (N,) int64 number of annotated objects that cover no pixel.
        palettes: (N,) int64 hash of the mask file's palette; 0 without one.
        ignored: Number of ignored pixels by raw value, of the most frequent values of each mask.
        raw_values: The raw values of 8 bits that any mask holds, ascending.
    """

    names: list[str]
    objects: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    image_pixels: npt.NDArray[np.int64]
    problems: list[Problem]
    is_valid: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.int64]
    label_digests: npt.NDArray[np.int64]
    is_turned: npt.NDArray[np.bool_]
    invisible: npt.NDArray[np.int64]
    palettes: npt.NDArray[np.int64]
    ignored: dict[int, int]
    raw_values: list[int]

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Return the fraction of each image that each class covers, (N, K).

        Unlike pixels, fractions can be added up over images of different sizes.
        """
        return self.pixels / self.image_pixels[:, None]

    @property
    def ignored_share(self) -> float:
        """Return the fraction of all pixels that are ignored."""
        total = int(self.image_pixels[self.is_valid].sum())
        return 1 - int(self.pixels.sum()) / total if total else 0.0

    @property
    def digest(self) -> str:
        """Return sixteen hexadecimal digits that change with an image, its name, or the train id of a pixel."""
        found = hashlib.sha256("\0".join(self.names).encode())
        found.update(self.digests.tobytes() + self.label_digests.tobytes())
        return found.hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class _Finding:
    """Hold the counts of one image, or its problem."""

    counts: Row | None  # (2 K + _EXTRA,)
    problem: Problem | None = None
    unknown: UnknownMaskValuesError | None = None


def scan_dataset(dataset: SegmentationDataset, *, is_quiet: bool = False) -> Statistics:
    """Read every image and mask that changed since the last scan, and count objects and pixels.

    The counts of faultless images are stored in the cache folder under their fingerprints: a second call
    reads no file, and after one file was touched only that file.

    Args:
        dataset: Any data set; it is not changed.
        is_quiet: Whether to hide the progress bar.
    """
    num_classes = dataset.classes.num_classes
    keys = [_key(dataset, index) for index in range(len(dataset))]
    store = cache_folder() / "scans" / f"{content_key(_VERSION, dataset.source, num_classes)}.npz"
    width = 2 * num_classes + _EXTRA
    problems: list[Problem] = []
    unknown: list[tuple[str, UnknownMaskValuesError]] = []

    def count(missing: list[int]) -> Iterator[Row | None]:
        for index, finding in zip(missing, _inspect_all(dataset, missing, is_quiet), strict=True):
            if finding.unknown is not None:
                unknown.append((dataset.names[index], finding.unknown))
            elif finding.problem is not None:
                problems.append(finding.problem)
            yield finding.counts

    known = cached_rows(store, keys, width, count)
    if unknown:
        problems.append(_unknown_values_problem(dataset, unknown))
    no_counts = np.zeros(width, dtype=np.int64)
    no_counts[2 * num_classes] = 1  # pixels of the image
    rows = np.array([known.get(key, no_counts) for key in keys], dtype=np.int64).reshape(-1, width)
    objects, pixels, extra = np.split(rows, [num_classes, 2 * num_classes], axis=1)
    return Statistics(
        names=list(dataset.names),
        objects=objects,
        pixels=pixels,
        image_pixels=extra[:, 0],
        problems=problems,
        is_valid=np.array([key in known for key in keys], dtype=bool),
        digests=extra[:, 1],
        label_digests=extra[:, 2],
        is_turned=extra[:, 3].astype(bool),
        invisible=extra[:, 4],
        palettes=extra[:, 5],
        ignored=_summed_ignored(extra[:, _SINGLE : _SINGLE + 2 * _NUM_IGNORED]),
        raw_values=_joined_values(extra[:, _SINGLE + 2 * _NUM_IGNORED :]),
    )


def _key(dataset: SegmentationDataset, index: int) -> str:
    try:
        return dataset.fingerprint(index) + dataset.image_format.key
    except OSError:  # the file is missing: the inspection reports it
        return f"unreadable {index}"


def _inspect_all(dataset: SegmentationDataset, indices: Sequence[int], is_quiet: bool) -> Iterator[_Finding]:
    """Inspect images in threads and yield the findings in the order of the indices.

    Threads are enough, since decoding does not hold the interpreter's lock.
    """
    if not indices:
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        findings: Iterable[_Finding] = pool.map(lambda index: _inspect(dataset, index), indices)
        console = Console(stderr=True)
        if not is_quiet and console.is_terminal:
            findings = track(findings, f"Reading {dataset.source}", total=len(indices), console=console)
        yield from findings


def _inspect(dataset: SegmentationDataset, index: int) -> _Finding:
    """Read one image and its mask, compare their sizes and count objects and pixels."""
    name, path = dataset.names[index], dataset.paths[index]
    try:
        source = dataset.open_image(index)
        image = planar(source.pixels())
    except (OSError, ValueError) as error:
        return _Finding(None, Problem.from_error(error, "Replace the file.", name))
    try:
        facts = dataset.inspect_mask(index)
    except UnknownMaskValuesError as error:
        return _Finding(None, unknown=error)
    except (OSError, ValueError) as error:
        return _Finding(None, Problem.from_error(error, "Replace the mask.", name))
    size = tuple(facts.mask.shape)
    if image.shape[1:] != size:
        return _Finding(None, size_problem(name, path, tuple(image.shape[1:]), "its mask is", size))
    labels, num_classes = facts.mask.numpy(), dataset.classes.num_classes
    pixels = np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)
    if pixels[num_classes:IGNORE_INDEX].any():
        return _Finding(None, _train_id_problem(name, path, np.flatnonzero(pixels), num_classes))
    counts = [
        *dataset.count_objects(index, labels),
        *pixels[:num_classes],
        labels.size,
        pixel_digest(image),
        pixel_digest(facts.mask),
        source.is_turned or facts.is_turned,
        facts.num_invisible,
        _palette_digest(facts.palette),
        *_most_ignored(dataset, facts),
        *_value_bits(facts.counts),
    ]
    return _Finding(np.array(counts, dtype=np.int64))


def pixel_digest(image: Tensor) -> int:
    """Hash the pixels of an image or a mask, so that copies are known whatever their names and files.

    Args:
        image: (C, H, W) or (H, W) of any numbers.
    """
    pixels = image.contiguous().numpy()
    digest = hashlib.blake2b(pixels.data, digest_size=8, key=str(tuple(image.shape)).encode())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _train_id_problem(name: str, path: Any, found: npt.NDArray[np.int64], num_classes: int) -> Problem:
    """Describe a mask with train ids that are no class, as a data set's own `read_mask` may return."""
    wrong = [int(value) for value in found if num_classes <= value < IGNORE_INDEX]
    return Problem(
        str(path),
        f"its mask holds the train ids {wrong}, but there are {num_classes} classes (0 to {num_classes - 1})",
        f"read_mask must return train ids below {num_classes}, or {IGNORE_INDEX} for ignored pixels.",
        (name,),
    )


def _palette_digest(palette: bytes | None) -> int:
    """Hash a palette to a number that is not 0; 0 without a palette."""
    if palette is None:
        return 0
    return int.from_bytes(hashlib.blake2b(palette, digest_size=7).digest(), "little") + 1


def _most_ignored(dataset: SegmentationDataset, facts: MaskFacts) -> list[int]:
    """Return the raw values behind most of a mask's ignored pixels, and their numbers of pixels, alternating."""
    known = set(dataset.classes.raw_ids or {}) if facts.is_raw else set(range(dataset.classes.num_classes))
    ignored = Counter({value: number for value, number in facts.counts.items() if value not in known})
    pairs = [number for pair in ignored.most_common(_NUM_IGNORED) for number in pair]
    return pairs + [0] * (2 * _NUM_IGNORED - len(pairs))


def _summed_ignored(pairs: npt.NDArray[np.int64]) -> dict[int, int]:
    """Add up the ignored pixels of all masks by raw value, the most frequent first."""
    total: Counter[int] = Counter()
    for value, number in pairs.reshape(-1, 2).tolist():
        if number:
            total[value] += number
    return dict(total.most_common())


def _value_bits(counts: dict[int, int]) -> list[int]:
    """Mark the raw values of 8 bits that a mask holds: bit v % 64 of the number v // 64."""
    words = [0] * (_BYTE_VALUES // _WORD)
    for value in counts:
        if 0 <= value < _BYTE_VALUES:
            words[value // _WORD] |= 1 << (value % _WORD)
    return [word - (1 << _WORD) if word >> (_WORD - 1) else word for word in words]  # signed, as NumPy's int64


def _joined_values(words: npt.NDArray[np.int64]) -> list[int]:
    """List the raw values that any mask holds."""
    joined = np.bitwise_or.reduce(words, axis=0) if len(words) else np.zeros(words.shape[1], dtype=np.int64)
    return [v for v in range(_BYTE_VALUES) if int(joined[v // _WORD]) >> (v % _WORD) & 1]


def _unknown_values_problem(
    dataset: SegmentationDataset, found: Sequence[tuple[str, UnknownMaskValuesError]]
) -> Problem:
    """Describe all masks with unknown values as one problem."""
    values = sorted({value for _, error in found for value in error.values})
    files = ", ".join(str(error.path) for _, error in found[:_MAX_FILES])
    others = f" and {len(found) - _MAX_FILES} more" if len(found) > _MAX_FILES else ""
    table = dict(dataset.classes.raw_ids or {})
    return Problem(
        f"{files}{others}",
        f"mask values {values} are not in the class table, which holds {sorted(table)} "
        f"and ignores {list(dataset.classes.ignore_ids)}",
        "Add them to classes.raw_ids, or to classes.ignore_ids if they mean void.",
        tuple(name for name, _ in found),
    )
