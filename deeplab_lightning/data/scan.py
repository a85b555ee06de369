"""Scan a data set: read every file once, find all problems and count the pixels of each class."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from torch import Tensor

from deeplab_lightning.data.cache import Row, cache_folder, cached_rows, content_key
from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.datasets.base import SegmentationDataset, UnknownMaskValuesError, size_problem
from deeplab_lightning.data.problems import Problem

_MAX_FILES = 3  # in one message
_VERSION = 3  # part of the cache key: raise it when the same files give other counts


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
    """

    names: list[str]
    objects: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    image_pixels: npt.NDArray[np.int64]
    problems: list[Problem]

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Return the fraction of each image that each class covers, (N, K).

        Unlike pixels, fractions can be added up over images of different sizes.
        """
        return self.pixels / self.image_pixels[:, None]


@dataclass(frozen=True)
class _Finding:
    """Hold the counts of one image, or its problem."""

    counts: Row | None  # (2 K + 1,): objects, pixels, pixels of the image
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
    width = 2 * num_classes + 1
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
    no_counts = np.array([0] * (width - 1) + [1])
    rows = np.array([known.get(key, no_counts) for key in keys], dtype=np.int64).reshape(-1, width)
    objects, pixels, image_pixels = np.split(rows, [num_classes, 2 * num_classes], axis=1)
    return Statistics(list(dataset.names), objects, pixels, image_pixels[:, 0], problems)


def _key(dataset: SegmentationDataset, index: int) -> str:
    try:
        return dataset.fingerprint(index)
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
    image = _attempt(lambda: dataset.read_image(index))
    if isinstance(image, Exception):
        return _Finding(None, Problem.from_error(image, "Replace the file.", name))
    mask = _attempt(lambda: dataset.read_mask(index))
    if isinstance(mask, UnknownMaskValuesError):
        return _Finding(None, unknown=mask)
    if isinstance(mask, Exception):
        return _Finding(None, Problem(str(path), f"its mask cannot be used: {mask}", "Replace the mask.", (name,)))
    if image.shape[1:] != mask.shape:
        return _Finding(None, size_problem(name, path, tuple(image.shape[1:]), "its mask is", tuple(mask.shape)))
    labels = mask.numpy()
    pixels = np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)[: dataset.classes.num_classes]
    return _Finding(np.concatenate([dataset.count_objects(index, labels), pixels, [labels.size]]).astype(np.int64))


def _attempt(read: Callable[[], Tensor]) -> Tensor | Exception:
    """Return the tensor, or the error of a file that cannot be read."""
    try:
        return read()
    except (OSError, ValueError) as error:
        return error


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
