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

from deeplab_lightning.data.cache import cache_folder, content_key
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.images import ImageSource, image_size
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_atomically

CacheMode = Literal["none", "ram", "disk"]
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Mask = npt.NDArray[np.uint8]  # (H, W)
_MEMORY = Path("/proc/meminfo")  # Linux


class DecodedDataset(SegmentationDataset):
    """A data set that is read from memory, pixel for pixel as from its files.

    Args:
        dataset: The data set; only the headers of its pictures are read before it is built.
        mode: `ram` keeps it in this process's memory, which its forked workers share; `disk` in
            uncompressed files in the cache folder, which all processes and later runs map into memory,
            pictures and masks apart, each under what it depends on: another class table decodes no picture again.
        num_processes: How many training processes of this machine keep it in memory, each for itself.

    Attributes:
        num_bytes: What it takes.

    Raises:
        DataError: If memory or disk are too small for it.
    """

    def __init__(self, dataset: SegmentationDataset, mode: Literal["ram", "disk"], *, num_processes: int = 1) -> None:
        super().__init__(dataset.on_error)
        self._dataset, self._mode, self._num_processes = dataset, mode, num_processes
        self.classes, self.names, self.paths = dataset.classes, dataset.names, dataset.paths
        self._has_files = type(dataset).open_image is SegmentationDataset.open_image
        self._sizes = [self._size(index) for index in range(len(dataset))]
        self.num_bytes = sum(4 * height * width for height, width in self._sizes)
        self._pixels: list[Pixels] = []
        self._masks: list[Mask] = []
        self._folder = cache_folder() / "decoded"

    def build(self) -> None:
        """Decode what is not there yet. Threads: decoding does not hold the interpreter's lock.

        Raises:
            DataError: If memory or disk are too small for it.
        """
        pictures = masks = list(range(len(self)))
        if self._mode == "disk":
            pictures = [i for i in pictures if not self._pixel_file(i).is_file()]
            masks = [i for i in masks if not self._mask_file(i).is_file()]
        areas = [height * width for height, width in self._sizes]
        self._require_space(3 * sum(areas[i] for i in pictures) + sum(areas[i] for i in masks))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if self._mode == "ram":
                self._pixels = list(pool.map(self._decode, pictures))
                self._masks = list(pool.map(self._decode_mask, masks))
            else:
                list(pool.map(lambda i: _write(self._pixel_file(i), self._decode(i)), pictures))
                list(pool.map(lambda i: _write(self._mask_file(i), self._decode_mask(i)), masks))

    @property
    def source(self) -> str:
        return self._dataset.source

    @property
    def place(self) -> str:
        """Where it is kept, for messages."""
        return "memory" if self._mode == "ram" else str(self._folder)

    def open_image(self, index: int) -> ImageSource:
        return _CachedImage(self, index)

    def read_mask(self, index: int) -> Tensor:
        mask = self._masks[index] if self._mode == "ram" else np.load(self._mask_file(index))
        return torch.from_numpy(mask.copy() if self._mode == "ram" else mask)

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB of picture `index`, not to be written to."""
        # Copy-on-write rather than read-only: torch has no tensors that cannot be written to.
        pixels = self._pixels[index] if self._mode == "ram" else np.load(self._pixel_file(index), mmap_mode="c")
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def file_picture(self, index: int) -> ImageSource:
        """Image `index` as its file, for what is quicker from there."""
        return self._dataset.open_image(index)

    def fingerprint(self, index: int) -> str:
        return self._dataset.fingerprint(index)

    def remarks(self) -> list[str]:
        return self._dataset.remarks()

    def _size(self, index: int) -> tuple[int, int]:
        """(height, width) of picture `index`, from its header."""
        return image_size(self.paths[index]) if self._has_files else self._dataset.open_image(index).size

    def _pixel_file(self, index: int) -> Path:
        if not self._has_files:
            return self._folder / f"{self._dataset.fingerprint(index)}.pixels.npy"
        path, stat = self.paths[index], self.paths[index].stat()
        return self._folder / f"{content_key(path.absolute(), stat.st_size, stat.st_mtime_ns)}.pixels.npy"

    def _mask_file(self, index: int) -> Path:
        return self._folder / f"{self._dataset.fingerprint(index)}.mask.npy"

    def _decode(self, index: int) -> Pixels:
        pixels = self._dataset.open_image(index).pixels()  # (3, H, W), in any memory order
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())

    def _decode_mask(self, index: int) -> Mask:
        return np.ascontiguousarray(self._dataset.read_mask(index).numpy())

    def _require_space(self, num_bytes: int) -> None:
        """The first process of the machine asks for all: the others may have filled a part when they ask."""
        if self._mode == "ram":
            if int(os.environ.get("LOCAL_RANK", 0)) > 0:
                return
            num_bytes, free = num_bytes * self._num_processes, available_memory()
            copies = f" in {self._num_processes} processes" if self._num_processes > 1 else ""
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            free, copies = shutil.disk_usage(self._folder).free, ""
        if num_bytes > free:
            raise DataError(
                f"data.cache: {self._mode} needs {num_bytes / 1e9:.2f} GB for {len(self)} decoded pictures of "
                f"{self.source}{copies}, but {self.place} has {free / 1e9:.2f} GB available. Set data.cache: none"
                f"{', or disk, which all processes share' if self._mode == 'ram' else ''}"
                f"{'' if self._mode == 'ram' else ', or DEEPLAB_CACHE to a larger disk'}."
            )


def available_memory() -> int:
    """Bytes that processes may still take without swapping; all memory where the system does not tell."""
    if _MEMORY.is_file():
        fields = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _write(path: Path, array: npt.NDArray[np.uint8]) -> None:
    write_atomically(path, lambda file: np.save(file, array))


class _CachedImage(ImageSource):
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

    def scratch_pixels(self, reduction: int = 1) -> Tensor:
        is_file = reduction > 1
        return self._dataset.file_picture(self._index).scratch_pixels(reduction) if is_file else self.pixels()
