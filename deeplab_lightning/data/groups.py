"""Group images that must stay in one fold: neighbours in a video, images of one place, near-duplicates."""

import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from deeplab_lightning.data.cache import cache_folder, cached_rows, content_key
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.tables import read_csv

_HASH_BITS, _MAX_DISTANCE = 64, 12
_BLOCK_SIZE = 512  # hashes that are compared with all others at once
_HASHED_SIZE = (64, 64)  # pixels; a JPEG may be decoded at any size from this one on


class Grouping(ABC):
    """Label the images of a data set; images with the same label stay in one fold."""

    @abstractmethod
    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """Return one label per image, in the order of `dataset.names`.

        Raises:
            DataError: If an image has no label.
        """


class PatternGroups(Grouping):
    """Group images by their file names, such as the sequences of a video data set.

    Args:
        pattern: Regular expression that is searched in file names or, if it does not match these, in their paths
            below the folder of the images. Its first group is the label, or the whole match if it has no group.
            Examples: `^(.*?)_` for CamVid's `0001TP_006690.png`, `^(.+)/` for a folder per patient.
        chunk_size: Largest number of images per group. Each group's images are divided in the order of their
            names into chunks of neighbours: more groups allow more even folds, and only the ends of a chunk
            have neighbours in other folds. If null, groups are not divided.

    Raises:
        ValueError: If the pattern is not a regular expression, or the chunk size is below 1.
    """

    def __init__(self, pattern: str, chunk_size: int | None = None) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"pattern must be a regular expression, got {pattern!r}: {error}.") from error
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1 or null, got {chunk_size}.")
        self.chunk_size = chunk_size

    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """Return the pattern's match in each file name, with the number of its chunk if chunks are used."""
        names = [PurePosixPath(name).name for name in dataset.names]
        labels = [self._label(name) for name in names]
        if not any(labels):
            labels = [self._label(name) for name in dataset.names]
        if None in labels:
            raise DataError(
                f"the pattern of data.groups, {self.pattern.pattern!r}, does not match "
                f"{dataset.names[labels.index(None)]}. It must match the file names of all images."
            )
        found = [label for label in labels if label is not None]
        if self.chunk_size is None:
            return found
        seen: dict[str, int] = defaultdict(int)
        chunks = [""] * len(found)
        for index in sorted(range(len(found)), key=lambda i: _natural(PurePosixPath(dataset.names[i]).name)):
            label = found[index]
            chunks[index] = f"{label}-{seen[label] // self.chunk_size:04d}"
            seen[label] += 1
        return chunks

    def _label(self, name: str) -> str | None:
        """Return what the pattern finds in a name; None if that is nothing."""
        match = self.pattern.search(name)
        return (match and (match.group(1) if self.pattern.groups else match.group(0))) or None


class TableGroups(Grouping):
    """Read the groups from a column of a CSV file.

    Args:
        file: CSV file with a header and one row per image.
        image_column: Name of the column with the images' keys, the same keys as in `folds.csv`.
        group_column: Name of the column with the labels.
    """

    def __init__(self, file: str, image_column: str = "image", group_column: str = "group") -> None:
        self.file, self.image_column, self.group_column = Path(file), image_column, group_column

    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """Return the label in each image's row.

        Raises:
            FileNotFoundError: If the CSV file does not exist.
            DataError: If it lacks a column, or the label of an image.
        """
        if not self.file.is_file():
            raise MissingFileError(f"no such table of groups: {self.file.absolute()}")
        rows = read_csv(self.file)
        columns = list(rows[0]) if rows else []
        for column in (self.image_column, self.group_column):
            if column not in columns:
                raise DataError(f"{self.file}: has no rows with the column {column!r}; its columns are {columns}.")
        table: dict[str, str] = {}
        for number, row in enumerate(rows, start=2):
            image, group = row[self.image_column], row[self.group_column]
            if table.setdefault(image, group) != group:
                raise DataError(f"{self.file}, line {number}: {image} is in group {group} and in {table[image]}.")
        missing = [name for name in dataset.names if not table.get(name)]
        if missing:
            raise DataError(
                f"{self.file}: has no group for {len(missing)} of {len(dataset)} images ({', '.join(missing[:3])}). "
                f"Its column {self.image_column!r} must hold keys like {dataset.names[0]!r}."
            )
        return [table[name] for name in dataset.names]


class DuplicateGroups(Grouping):
    """Group near-duplicates: images that are linked by perceptual hashes with few different bits.

    Two images are linked if their hashes differ in at most `max_distance` bits, and a group holds all images
    that are linked directly or through others. The hash is the pHash of Zauner (2010), the 64 signs of low
    frequencies of the grey image: it is robust to resizing, compression and mild changes of light, but not to
    crops or rotations. Hashes are stored in the cache folder.

    Args:
        max_distance: Largest number of the 64 bits that may differ, in [0, 12]. 0 groups only images that
            look the same; unrelated photographs rarely differ in fewer than 16 bits.

    Raises:
        ValueError: If the distance is outside [0, 12].
    """

    def __init__(self, max_distance: int = 6) -> None:
        if not 0 <= max_distance <= _MAX_DISTANCE:
            raise UserError(f"max_distance must be in [0, {_MAX_DISTANCE}], got {max_distance}.")
        self.max_distance = max_distance

    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """Return the name of the first image in each image's group of near-duplicates."""
        form = filter(None, [dataset.image_format.key])
        keys = [content_key(path.absolute(), *_size_and_time(path), *form) for path in dataset.paths]
        store = cache_folder() / "hashes" / f"{content_key(dataset.source)}.npz"
        rows = cached_rows(store, keys, 1, lambda missing: _hashes(dataset, missing))
        hashes = np.array([rows[key][0] for key in keys], dtype=np.int64).view(np.uint64)
        component = _linked_components(hashes, self.max_distance)
        _, first = np.unique(component, return_index=True)
        return [dataset.names[first[label]] for label in component]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders frame 9 before frame 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _hashes(dataset: SegmentationDataset, indices: Sequence[int]) -> Iterable[npt.NDArray[np.int64]]:
    """Compute the hashes of image files in threads and yield them in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda index: _hash(dataset, index), indices)


def _hash(dataset: SegmentationDataset, index: int) -> npt.NDArray[np.int64]:
    """Compute the 64 bits of an image file's hash as one number, (1,)."""
    if not dataset.image_format.is_plain:  # Pillow may not read it
        grey = dataset.read_image(index).float().mean(dim=0).round().byte().numpy()
        return np.packbits(imagehash.phash(Image.fromarray(grey)).hash.reshape(-1)).view(np.int64)
    with Image.open(dataset.paths[index]) as image:
        image.draft("L", _HASHED_SIZE)
        bits = imagehash.phash(image).hash
    return np.packbits(bits.reshape(-1)).view(np.int64)


def _linked_components(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int32]:
    """Label each hash with its connected component, where hashes at most `distance` bits apart are linked.

    If the bits are divided into distance + 1 bands, two such hashes agree in at least one band, so only
    hashes that agree in a band are compared.

    Args:
        hashes: (N,) hashes of 64 bits.
        distance: Largest number of different bits of a link.

    Returns:
        (N,) component of each hash.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    bounds = np.linspace(0, _HASH_BITS, distance + 2).astype(int)
    edges = [np.zeros((2, 0), dtype=np.int64)]
    for start, stop in pairwise(bounds.tolist()):
        bands = (unique >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)
        order = np.argsort(bands, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bands[order])) + 1):
            for block in np.split(members, range(_BLOCK_SIZE, len(members), _BLOCK_SIZE)):
                differing = np.bitwise_count(unique[block][:, None] ^ unique[members])
                one, other = np.nonzero(differing <= distance)
                edges.append(np.stack([block[one], members[other]]))
    pairs = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), (len(unique), len(unique)))
    return np.asarray(connected_components(graph, directed=False)[1])[inverse.reshape(-1)]
