"""Store confusion matrices per image, to pool folds and to compare runs on the same images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.files import write_atomically

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PerImageConfusion:
    """Hold the counts of (truth, prediction) pairs of each image.

    Attributes:
        names: N image keys, sorted.
        counts: (N, K * K) int64, sparse: column t * K + p counts an image's pixels of class t predicted as p.
    """

    names: list[str]
    counts: csr_matrix

    @classmethod
    def of(cls, images: Iterable[tuple[str, Any]]) -> "PerImageConfusion":
        """Build the counts from pairs of name and (K, K) matrix, in any order."""
        names, matrices = zip(*images, strict=True)
        rows = [csr_matrix(np.asarray(matrix, dtype=np.int64).reshape(1, -1)) for matrix in matrices]
        return cls._sorted(list(names), vstack(rows, format="csr"))

    @classmethod
    def read(cls, path: Path) -> "PerImageConfusion":
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
            _check_counts(names, counts)
        except Exception as error:  # the readers raise errors of many kinds for damaged files
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"{path}: is damaged or holds no confusion matrices of images ({reason}).") from error
        return cls(names, counts)

    @classmethod
    def joined(cls, parts: Sequence["PerImageConfusion"]) -> "PerImageConfusion":
        """Join the images of several sets, sorted by name."""
        names = [name for part in parts for name in part.names]
        return cls._sorted(names, vstack([part.counts for part in parts], format="csr"))

    @classmethod
    def _sorted(cls, names: list[str], counts: csr_matrix) -> "PerImageConfusion":
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

    @property
    def num_classes(self) -> int:
        """Return the number of classes K."""
        return round(self.counts.shape[1] ** 0.5)

    def total(self) -> Ints:
        """Sum the counts over all images, (K, K)."""
        sums = np.asarray(self.counts.sum(axis=0), dtype=np.int64)
        return sums.reshape(self.num_classes, self.num_classes)

    def keep(self, names: Sequence[str]) -> "PerImageConfusion":
        """Select images by name, in the order of the names."""
        row_of = {name: row for row, name in enumerate(self.names)}
        return PerImageConfusion(list(names), self.counts[[row_of[name] for name in names]])


def _check_counts(names: Sequence[str], counts: csr_matrix) -> None:
    """Check that counts can be those of images.

    Raises:
        ValueError: If they cannot.
    """
    if len(names) != counts.shape[0] or len(set(names)) != len(names):
        raise ValueError(f"{len(set(names))} names of {counts.shape[0]} images")
    if round(counts.shape[1] ** 0.5) ** 2 != counts.shape[1]:
        raise ValueError(f"{counts.shape[1]} columns are no square matrix")
    if not np.issubdtype(counts.dtype, np.integer) or (counts.data < 0).any():
        raise ValueError("negative or fractional counts")


class ImageMatrices:
    """Collect the confusion matrices of the images of a set.

    Matrices on a GPU stay there until `collect`, since each copy would wait for the device; others are kept sparse.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        self._names: list[str] = []
        self._sparse: list[csr_matrix] = [csr_matrix((0, self._num_classes**2), dtype=np.int64)]
        self._on_device: list[Tensor] = []

    def add(self, names: Sequence[str], matrices: Tensor) -> None:
        """Add B images by name, with counts (B, K, K) int64."""
        self._names.extend(names)
        flat = matrices.flatten(1)
        if flat.device.type == "cpu":
            self._sparse.append(csr_matrix(flat.numpy()))
        else:
            self._on_device.append(flat.to(torch.int32))  # an image has fewer than 2**31 pixels

    def collect(self) -> PerImageConfusion:
        """Return the counts of all images, which stay."""
        moved = [csr_matrix(torch.cat(self._on_device).cpu().long().numpy())] if self._on_device else []
        return PerImageConfusion._sorted(list(self._names), vstack([*self._sparse, *moved], format="csr"))
