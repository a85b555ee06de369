"""Pictures and masks kept decoded, for data sets that are read many times."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab_lightning.data.cache import cache_folder, write_atomically
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.images import Picture
from deeplab_lightning.data.problems import DataError

CacheMode = Literal["none", "ram", "disk"]
Record = npt.NDArray[np.uint8]  # (4 * H * W,): the (H, W, 3) pixels, then the (H, W) mask


class DecodedDataset(SegmentationDataset):
    """A data set that is read from memory, pixel for pixel as from its files.

    Args:
        dataset: The data set; its files are read when this is built.
        mode: `ram` keeps it in this process's memory, which its forked workers share; `disk` in
            uncompressed files in the cache folder, which all processes and later runs map into memory,
            each under what its picture and mask depend on.

    Attributes:
        num_bytes: What it takes.

    Raises:
        DataError: If memory or disk are too small for it.
    """

    def __init__(self, dataset: SegmentationDataset, mode: Literal["ram", "disk"]) -> None:
        super().__init__(dataset.on_error)
        self._dataset, self._mode = dataset, mode
        self.classes, self.names, self.paths = dataset.classes, dataset.names, dataset.paths
        self._sizes = [dataset.open_image(index).size for index in range(len(dataset))]
        self.num_bytes = sum(4 * height * width for height, width in self._sizes)
        self._records: list[Record] = []
        self._folder = cache_folder() / "decoded"

    def build(self) -> None:
        """Decode what is not there yet. Threads: decoding does not hold the interpreter's lock.

        Raises:
            DataError: If memory or disk are too small for it.
        """
        indices = range(len(self))
        if self._mode == "disk":
            indices = [i for i in indices if not self._file(i).is_file()]  # type: ignore[assignment]
        self._require_space(sum(4 * self._sizes[i][0] * self._sizes[i][1] for i in indices))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if self._mode == "ram":
                self._records = list(pool.map(self._decoded, indices))
            else:
                list(pool.map(self._write, indices))

    @property
    def source(self) -> str:
        return self._dataset.source

    @property
    def place(self) -> str:
        """Where it is kept, for messages."""
        return "memory" if self._mode == "ram" else str(self._folder)

    def open_image(self, index: int) -> Picture:
        return _DecodedPicture(self, index)

    def read_mask(self, index: int) -> Tensor:
        height, width = self._sizes[index]
        return torch.from_numpy(self._record(index)[3 * height * width :].reshape(height, width).copy())

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB of picture `index`, not to be written to."""
        height, width = self._sizes[index]
        return torch.from_numpy(self._record(index)[: 3 * height * width].reshape(height, width, 3)).permute(2, 0, 1)

    def file_picture(self, index: int) -> Picture:
        """Picture `index` as its file, for what is quicker from there."""
        return self._dataset.open_image(index)

    def fingerprint(self, index: int) -> str:
        return self._dataset.fingerprint(index)

    def oddities(self) -> list[str]:
        return self._dataset.oddities()

    def _file(self, index: int) -> Path:
        return self._folder / f"{self._dataset.fingerprint(index)}.npy"

    def _record(self, index: int) -> Record:
        if self._mode == "ram":
            return self._records[index]
        # Copy-on-write rather than read-only: torch has no tensors that cannot be written to.
        record: Record = np.load(self._file(index), mmap_mode="c")
        return record

    def _decoded(self, index: int) -> Record:
        pixels = self._dataset.open_image(index).pixels().permute(1, 2, 0)
        mask = self._dataset.read_mask(index)
        return np.concatenate([pixels.numpy().reshape(-1), mask.numpy().reshape(-1)])

    def _write(self, index: int) -> None:
        record = self._decoded(index)
        write_atomically(self._file(index), lambda file: np.save(file, record))

    def _require_space(self, num_bytes: int) -> None:
        if self._mode == "ram":
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        if num_bytes > free:
            raise DataError(
                f"data.cache: {self._mode} needs {num_bytes / 1e9:.2f} GB for {len(self)} decoded pictures of "
                f"{self.source}, but {self.place} has {free / 1e9:.2f} GB. Set data.cache: none"
                f"{'' if self._mode == 'ram' else ', or DEEPLAB_CACHE to a larger disk'}."
            )


class _DecodedPicture(Picture):
    def __init__(self, dataset: DecodedDataset, index: int) -> None:
        self._dataset, self._index = dataset, index
        self.size = dataset._sizes[index]

    def reduction(self, scale: float) -> int:
        # As from the file, so that a crop is the same with and without cache.
        return 1 if scale > 0.5 else self._dataset.file_picture(self._index).reduction(scale)

    def pixels(self, reduction: int = 1) -> Tensor:
        if reduction > 1:
            return self._dataset.file_picture(self._index).pixels(reduction)
        return self._dataset.pixels(self._index)
