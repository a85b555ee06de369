"""Which images must not be separated: neighbours in a video, pictures of one place, near-duplicates."""

import csv
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

_HASH_BITS, _MAX_BITS = 64, 12
_COMPARED = 512  # hashes against all others at once
_HASHED_SIZE = (64, 64)  # pixels that a JPEG decoder may stop at


class Grouping(ABC):
    """Labels the images of a data set; images of one label stay in one fold."""

    @abstractmethod
    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """One label per image, parallel to `dataset.names`.

        Raises:
            DataError: If an image has none.
        """


class PatternGroups(Grouping):
    """Groups by file name, such as the sequences of a video data set.

    Args:
        pattern: Regular expression searched in file names; its first group, or the whole match if it has
            none, is the label. `^(.*?)_` for CamVid's `0001TP_006690.png`.
        chunk_size: Divides each group's images, in the order of their names, into chunks of at most this
            many neighbours: more folds to choose from, and only a chunk's ends have neighbours elsewhere.

    Raises:
        ValueError: For a pattern that is no regular expression, or a chunk size below 1.
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
        """What the pattern finds in each file name, and the number of the chunk."""
        found = []
        for name in dataset.names:
            match = self.pattern.search(PurePosixPath(name).name)
            label = match and (match.group(1) if self.pattern.groups else match.group(0))
            if not label:
                raise DataError(f"the pattern of data.groups, {self.pattern.pattern!r}, does not match {name}.")
            found.append(label)
        if self.chunk_size is None:
            return found
        seen: dict[str, int] = defaultdict(int)
        chunks = [""] * len(found)
        for index in sorted(range(len(found)), key=lambda i: _natural(PurePosixPath(dataset.names[i]).name)):
            label = found[index]
            chunks[index] = f"{label}-{seen[label] // self.chunk_size:04d}"
            seen[label] += 1
        return chunks


class TableGroups(Grouping):
    """Groups from a column of a CSV file.

    Args:
        file: CSV with a header and a row for every image.
        image_column: Column of the images' keys, as `folds.csv` has them.
        group_column: Column of the labels.
    """

    def __init__(self, file: str, image_column: str = "image", group_column: str = "group") -> None:
        self.file, self.image_column, self.group_column = Path(file), image_column, group_column

    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """The label in each image's row."""
        if not self.file.is_file():
            raise MissingFileError(f"no such table of groups: {self.file.absolute()}")
        with self.file.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for column in (self.image_column, self.group_column):
                if column not in columns:
                    raise DataError(f"{self.file}: has no column {column!r}; its columns are {list(columns)}.")
            table = {row[self.image_column]: row[self.group_column] for row in reader}
        missing = [name for name in dataset.names if not table.get(name)]
        if missing:
            raise DataError(
                f"{self.file}: has no group for {len(missing)} of {len(dataset)} images ({', '.join(missing[:3])}). "
                f"Its column {self.image_column!r} must hold keys like {dataset.names[0]!r}."
            )
        return [table[name] for name in dataset.names]


class DuplicateGroups(Grouping):
    """Near-duplicates together: pictures whose perceptual hashes differ in few bits, and theirs in turn.

    The hash is the pHash of Zauner (2010), 64 signs of low frequencies of the grey picture: it survives
    resizing, compression and mild changes of light, not crops or rotations. Hashes are remembered.

    Args:
        max_distance: Bits of 64 that may differ. 0 groups only what looks the same; unrelated photographs
            rarely come below 16.

    Raises:
        ValueError: For a distance outside [0, 12].
    """

    def __init__(self, max_distance: int = 6) -> None:
        if not 0 <= max_distance <= _MAX_BITS:
            raise UserError(f"max_distance must be in [0, {_MAX_BITS}], got {max_distance}.")
        self.max_distance = max_distance

    def labels(self, dataset: SegmentationDataset) -> list[str]:
        """The name of the first picture that looks like it."""
        keys = [content_key(path.absolute(), *_size_and_time(path)) for path in dataset.paths]
        store = cache_folder() / "hashes" / f"{content_key(dataset.source)}.npz"
        rows = cached_rows(store, keys, 1, lambda missing: _hashes([dataset.paths[i] for i in missing]))
        hashes = np.array([rows[key][0] for key in keys], dtype=np.int64).view(np.uint64)
        component = _near(hashes, self.max_distance)
        _, first = np.unique(component, return_index=True)
        return [dataset.names[first[label]] for label in component]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame 9 before frame 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _hashes(paths: Sequence[Path]) -> Iterable[npt.NDArray[np.int64]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_hash, paths)


def _hash(path: Path) -> npt.NDArray[np.int64]:
    """(1,) the 64 bits as a number."""
    with Image.open(path) as picture:
        picture.draft("L", _HASHED_SIZE)
        bits = imagehash.phash(picture).hash
    return np.packbits(bits.reshape(-1)).view(np.int64)


def _near(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int32]:
    """Component of each hash in the graph of those at most `distance` bits apart.

    Cut into distance + 1 bands, two such hashes agree in at least one band: only those are compared.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    bounds = np.linspace(0, _HASH_BITS, distance + 2).astype(int)
    edges = [np.zeros((2, 0), dtype=np.int64)]
    for start, stop in pairwise(bounds.tolist()):
        bands = (unique >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)
        order = np.argsort(bands, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bands[order])) + 1):
            for block in np.split(members, range(_COMPARED, len(members), _COMPARED)):
                differing = np.bitwise_count(unique[block][:, None] ^ unique[members])
                one, other = np.nonzero(differing <= distance)
                edges.append(np.stack([block[one], members[other]]))
    pairs = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), (len(unique), len(unique)))
    return np.asarray(connected_components(graph, directed=False)[1])[inverse.reshape(-1)]
