"""Keep decoded images and masks in memory or on disk, for data sets that are read many times."""

import math
import os
import shutil
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from deeplab_lightning.data.cache import cache_folder, content_key, try_cache
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.images import ImageSource, image_size
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_atomically

CacheMode = Literal["none", "ram", "disk"]
Pixels = npt.NDArray[np.uint8]  # (H, W, C)
Mask = npt.NDArray[np.uint8]  # (H, W)
_HEADER, _CHECKSUM = 128, 4  # bytes before and after an array in its file


class DecodedDataset(SegmentationDataset):
    """Read a data set from decoded images and masks, pixel for pixel as from its files.

    Args:
        dataset: The data set. Only the headers of its images are read before `build`.
        mode: `ram` keeps images and masks in this process's memory, which its forked workers share. `disk`
            keeps them in uncompressed files in the cache folder, which all processes and later runs map
            into memory. Images and masks have separate files, each with its own key, so that a change of
            the class table does not decode any image again. Each process compares the checksum of a file when it
            first reads it, and decodes what is damaged again.
        num_processes: Number of training processes on this machine; each keeps its own copy with `ram`.

    Attributes:
        num_bytes: Size of all decoded images and masks in bytes.
    """

    def __init__(self, dataset: SegmentationDataset, mode: Literal["ram", "disk"], *, num_processes: int = 1) -> None:
        super().__init__(dataset.on_error)
        self._dataset, self._mode, self._num_processes = dataset, mode, num_processes
        self.classes, self.names, self.paths = dataset.classes, dataset.names, dataset.paths
        self.image_format = dataset.image_format
        self._has_files = type(dataset).open_image is SegmentationDataset.open_image
        self._sizes = [self._size(index) for index in range(len(dataset))]
        self.num_bytes = sum((self.image_format.channels + 1) * height * width for height, width in self._sizes)
        self._pixels: list[Pixels] = []
        self._masks: list[Mask] = []
        self._folder = cache_folder() / "decoded"
        self._intact: set[Path] = set()  # files whose checksum was compared

    def build(self) -> None:
        """Decode all images and masks that are not cached yet.

        Threads do the work, since decoding does not hold the interpreter's lock.

        Raises:
            DataError: If the memory or the disk is too small.
        """
        images = masks = list(range(len(self)))
        channels = self.image_format.channels
        if self._mode == "disk":
            images = [i for i in images if not _is_whole(self._pixel_file(i), channels * math.prod(self._sizes[i]))]
            masks = [i for i in masks if not _is_whole(self._mask_file(i), math.prod(self._sizes[i]))]
        areas = [height * width for height, width in self._sizes]
        self._require_space(self.image_format.channels * sum(areas[i] for i in images) + sum(areas[i] for i in masks))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if self._mode == "ram":
                self._pixels = list(pool.map(self._decode, images))
                self._masks = list(pool.map(self._decode_mask, masks))
            else:
                list(pool.map(lambda i: _write(self._pixel_file(i), self._decode(i)), images))
                list(pool.map(lambda i: _write(self._mask_file(i), self._decode_mask(i)), masks))

    @property
    def source(self) -> str:
        """Return the location of the underlying data set."""
        return self._dataset.source

    @property
    def place(self) -> str:
        """Return the place of the decoded data for messages: `memory`, or the cache folder."""
        return "memory" if self._mode == "ram" else str(self._folder)

    def open_image(self, index: int) -> ImageSource:
        """Open the decoded image `index`."""
        return _CachedImage(self, index, self._sizes[index])

    def read_mask(self, index: int) -> Tensor:
        """Read the train ids of image `index`: (H, W) uint8."""
        is_kept = self._mode == "ram"
        return torch.from_numpy(
            (self._masks[index] if is_kept else self._read(self._mask_file(index), self._decode_mask, index)).copy()
        )

    def pixels(self, index: int) -> Tensor:
        """Return the pixels of image `index` without a copy, so do not write to them.

        Returns:
            (C, H, W) uint8, not contiguous.
        """
        is_kept = self._mode == "ram"
        pixels = self._pixels[index] if is_kept else self._read(self._pixel_file(index), self._decode, index)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _read(self, path: Path, decode: Callable[[int], npt.NDArray[np.uint8]], index: int) -> npt.NDArray[np.uint8]:
        """Map a file into memory; one that is damaged is made again."""
        if path not in self._intact:
            if not _is_intact(path):
                warnings.warn(f"{path} is damaged and is made again.", stacklevel=2)
                array = decode(index)
                try_cache(path, _writer(array))
                return array
            self._intact.add(path)
        return _mapped(path)

    def open_original(self, index: int) -> ImageSource:
        """Open image `index` of the underlying data set, for decoding at reduced size."""
        return self._dataset.open_image(index)

    def fingerprint(self, index: int) -> str:
        """Return the key of image `index` in the underlying data set."""
        return self._dataset.fingerprint(index)

    def remarks(self) -> list[str]:
        """Return the remarks on the underlying data set."""
        return self._dataset.remarks()

    def _size(self, index: int) -> tuple[int, int]:
        """Read (height, width) of image `index` from its header."""
        if not self._has_files:
            return self._dataset.open_image(index).size
        return image_size(self.paths[index], self._dataset.image_format.channels)

    def _pixel_file(self, index: int) -> Path:
        if not self._has_files:
            return self._folder / f"{self._dataset.fingerprint(index)}.pixels.npy"
        path, stat = self.paths[index], self.paths[index].stat()
        parts = [path.absolute(), stat.st_size, stat.st_mtime_ns, *filter(None, [self.image_format.key])]
        return self._folder / f"{content_key(*parts)}.pixels.npy"

    def _mask_file(self, index: int) -> Path:
        return self._folder / f"{self._dataset.fingerprint(index)}.mask.npy"

    def _decode(self, index: int) -> Pixels:
        pixels = self._dataset.open_image(index).pixels()  # (C, H, W), in any memory order
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())

    def _decode_mask(self, index: int) -> Mask:
        return np.ascontiguousarray(self._dataset.read_mask(index).numpy())

    def _require_space(self, num_bytes: int) -> None:
        """Check that memory or disk can hold `num_bytes` more bytes, for each process with `ram`.

        In memory, only the first process of the machine checks, for all processes together: when the others
        start, the first may have taken a part already.

        Raises:
            DataError: If they cannot.
        """
        if self._mode == "ram":
            if int(os.environ.get("LOCAL_RANK", 0)) > 0:
                return
            num_bytes, free = num_bytes * self._num_processes, available_memory()
            copies = f" in {self._num_processes} processes" if self._num_processes > 1 else ""
            advice = "Set data.cache: none, or disk, which all processes share."
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            free, copies = shutil.disk_usage(self._folder).free, ""
            advice = "Set data.cache: none, or DEEPLAB_CACHE to a larger disk."
        if num_bytes > free:
            raise DataError(
                f"data.cache: {self._mode} needs {num_bytes / 1e9:.2f} GB for {len(self)} decoded images of "
                f"{self.source}{copies}, but {self.place} has only {free / 1e9:.2f} GB available. {advice}"
            )


def available_memory() -> int:
    """Return the bytes that processes may still use without swapping."""
    return int(psutil.virtual_memory().available)


def _write(path: Path, array: npt.NDArray[np.uint8]) -> None:
    write_atomically(path, _writer(array))


def _writer(array: npt.NDArray[np.uint8]) -> Callable[[IO[bytes]], None]:
    """Return a function that writes an array to a file, and its checksum after it."""

    def write(file: IO[bytes]) -> None:
        np.save(file, array)
        file.write(_checksum(array))

    return write


def _checksum(array: npt.NDArray[np.uint8]) -> bytes:
    return zlib.crc32(array.data, zlib.crc32(str(array.shape).encode())).to_bytes(_CHECKSUM)


def _is_whole(path: Path, num_bytes: int) -> bool:
    """Check whether a file has the size of such an array; files of earlier versions lack the checksum."""
    return path.is_file() and path.stat().st_size == _HEADER + num_bytes + _CHECKSUM


def _is_intact(path: Path) -> bool:
    """Compare the checksum of a file with its content."""
    try:
        with path.open("rb") as file:
            file.seek(-_CHECKSUM, os.SEEK_END)
            return file.read() == _checksum(_mapped(path))
    except Exception:  # NumPy raises errors of many kinds for damaged files
        return False


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Map an array into memory, copy-on-write instead of read-only, since torch has no read-only tensors."""
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c")
    return array


class _CachedImage(ImageSource):
    """Read an image at full size from a `DecodedDataset`, and at reduced size from its file."""

    def __init__(self, dataset: DecodedDataset, index: int, size: tuple[int, int]) -> None:
        self._dataset, self._index = dataset, index
        self.size = size

    def reduction(self, scale: float) -> int:
        # The same as for the file, so that a crop is the same with and without cache.
        return 1 if scale > 0.5 else self._dataset.open_original(self._index).reduction(scale)

    def pixels(self, reduction: int = 1) -> Tensor:
        if reduction > 1:
            return self._dataset.open_original(self._index).pixels(reduction)
        return self._dataset.pixels(self._index)
