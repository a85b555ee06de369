"""Store confusion matrices and other counts per image, to pool folds and to compare runs on the same images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.files import write_atomically

Ints = npt.NDArray[np.int64]
PARTS = ("boundary", "small", "medium", "large")
"""What `image_details` counts of each class: pixels near contours, and those of objects of three sizes."""


@dataclass(frozen=True)
class PerImageCounts:
    """Hold counts of each image.

    Attributes:
        names: N image keys, sorted.
        counts: (N, C) int64, sparse; what a column counts is for subclasses to say.
    """

    names: list[str]
    counts: csr_matrix

    @classmethod
    def of(cls, images: Iterable[tuple[str, Any]]) -> Self:
        """Build the counts from pairs of name and array, in any order."""
        names, arrays = zip(*images, strict=True)
        rows = [csr_matrix(np.asarray(array, dtype=np.int64).reshape(1, -1)) for array in arrays]
        return cls.sorted(list(names), vstack(rows, format="csr"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If it is damaged, or holds no such counts.
        """
        if not path.is_file():
            raise MissingFileError(f"no such file: {path.absolute()}. The run did not finish an epoch with validation.")
        try:
            with path.open("rb") as file, np.load(file) as content:
                arrays = (content["data"], content["indices"], content["indptr"])
                counts = csr_matrix(arrays, tuple(map(int, content["shape"])))
                names = [str(name) for name in content["names"]]
            counts.check_format(full_check=True)  # indices out of range crash the interpreter later
            _check_counts(names, counts, cls._num_classes(counts.shape[1]))
        except Exception as error:  # the readers raise errors of many kinds for damaged files
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"{path}: is damaged or holds no {cls._content()} of images ({reason}).") from error
        return cls(names, counts)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the images of several sets, sorted by name."""
        names = [name for part in parts for name in part.names]
        return cls.sorted(names, vstack([part.counts for part in parts], format="csr"))

    @classmethod
    def sorted(cls, names: list[str], counts: csr_matrix) -> Self:
        """Sort the images by name."""
        order = sorted(range(len(names)), key=names.__getitem__)
        return cls([names[i] for i in order], counts[order])

    def write(self, path: Path) -> None:
        """Write a compressed NumPy archive, atomically."""
        arrays = {
            "names": np.array(self.names),
            "data": self.counts.data,
            "indices": self.counts.indices,
            "indptr": self.counts.indptr,
            "shape": np.array(self.counts.shape),
        }
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    def keep(self, names: Sequence[str]) -> Self:
        """Select images by name, in the order of the names."""
        row_of = {name: row for row, name in enumerate(self.names)}
        return type(self)(list(names), self.counts[[row_of[name] for name in names]])

    @property
    def num_classes(self) -> int:
        """Return the number of classes K."""
        return self._num_classes(self.counts.shape[1])

    @staticmethod
    def _num_classes(columns: int) -> int:
        """Return the number of classes that columns belong to.

        Raises:
            ValueError: If these cannot be their number.
        """
        raise NotImplementedError

    @staticmethod
    def _content() -> str:
        """Name what is counted, for messages."""
        raise NotImplementedError


class PerImageConfusion(PerImageCounts):
    """Hold the counts of (truth, prediction) pairs of each image: column t * K + p, of pixels of class t seen as p."""

    def total(self) -> Ints:
        """Sum the counts over all images, (K, K)."""
        sums = np.asarray(self.counts.sum(axis=0), dtype=np.int64)
        return sums.reshape(self.num_classes, self.num_classes)

    @staticmethod
    def _num_classes(columns: int) -> int:
        k = round(columns**0.5)
        if k**2 != columns:
            raise ValueError(f"{columns} columns are no square matrix")
        return k

    @staticmethod
    def _content() -> str:
        return "confusion matrices"


class PerImageDetails(PerImageCounts):
    """Hold the counts of `image_details` of each image, flattened to one row."""

    def of_units(self, units: Ints) -> Ints:
        """Add up the counts of units of images, such as folds.

        Args:
            units: (N,) unit of each image, in [0, U).

        Returns:
            (U, 4, 3, K), see `image_details`.
        """
        add = csr_matrix((np.ones(len(units), dtype=np.int64), (units, np.arange(len(units)))))
        return np.asarray((add @ self.counts).toarray(), dtype=np.int64).reshape(-1, len(PARTS), 3, self.num_classes)

    @staticmethod
    def _num_classes(columns: int) -> int:
        if columns % (3 * len(PARTS)):
            raise ValueError(f"{columns} columns are no counts of {len(PARTS)} parts")
        return columns // (3 * len(PARTS))

    @staticmethod
    def _content() -> str:
        return "boundaries and objects"


def _check_counts(names: Sequence[str], counts: csr_matrix, num_classes: int) -> None:
    """Check that counts can be those of images.

    Raises:
        ValueError: If they cannot.
    """
    if len(names) != counts.shape[0] or len(set(names)) != len(names):
        raise ValueError(f"{len(set(names))} names of {counts.shape[0]} images")
    if num_classes < 1:
        raise ValueError("no class")
    if not np.issubdtype(counts.dtype, np.integer) or (counts.data < 0).any():
        raise ValueError("negative or fractional counts")


Kind = TypeVar("Kind", bound=PerImageCounts)


class _Collector(Generic[Kind]):
    """Collect the counts of the images of a set.

    Counts on a GPU stay there until `collect`, since each copy would wait for the device; others are kept sparse.

    Args:
        kind: Class of the counts.
        num_columns: Number of counts of an image.
    """

    def __init__(self, kind: type[Kind], num_columns: int) -> None:
        self._kind, self._num_columns = kind, num_columns
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        self._names: list[str] = []
        self._sparse: list[csr_matrix] = [csr_matrix((0, self._num_columns), dtype=np.int64)]
        self._on_device: list[Tensor] = []

    def add(self, names: Sequence[str], counts: Tensor) -> None:
        """Add B images by name, with counts (B, ...) int64."""
        self._names.extend(names)
        flat = counts.flatten(1)
        if flat.device.type == "cpu":
            self._sparse.append(csr_matrix(flat.numpy()))
        else:
            self._on_device.append(flat.to(torch.int32))  # an image has fewer than 2**31 pixels

    def collect(self) -> Kind:
        """Return the counts of all images, which stay."""
        moved = [csr_matrix(torch.cat(self._on_device).cpu().long().numpy())] if self._on_device else []
        return self._kind.sorted(list(self._names), vstack([*self._sparse, *moved], format="csr"))


class ImageMatrices(_Collector[PerImageConfusion]):
    """Collect the confusion matrices (B, K, K) of the images of a set.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(PerImageConfusion, num_classes**2)


class ImageDetails(_Collector[PerImageDetails]):
    """Collect the counts (B, 4, 3, K) of `image_details` of the images of a set.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(PerImageDetails, 3 * len(PARTS) * num_classes)
