"""Reading a data set as loose files, from `data.cache: disk`, and unpacked from an archive to a local folder first.

It empties the page cache of the machine before each cold figure, and so needs root.
"""

import os
import random
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import CocoDataset, MaskFolderDataset, SegmentationDataset
from deeplab_lightning.data.image_cache import DecodedDataset
from tests.benchmarks.measure import write

NUM_IMAGES, SIZE, PART = 2000, 512, 100
_CACHES = Path("/proc/sys/vm/drop_caches")
pytestmark = pytest.mark.skipif(not os.access(_CACHES, os.W_OK), reason=f"{_CACHES} cannot be written: root only")


def camvid(source: Path, target: Path) -> None:
    """Copy the frames of CamVid and their masks, PNG files of 480x360, until there are enough."""
    frames = sorted((source / "camvid" / "train").iterdir())
    for number in range(NUM_IMAGES):
        frame, name = frames[number % len(frames)], f"{number:05d}.png"
        shutil.copyfile(frame, target / "images" / name)
        shutil.copyfile(source / "camvid" / "trainannot" / frame.name, target / "masks" / name)


def facade(source: Path, target: Path) -> None:
    """Copy photos as JPEG files of 512x512 and their masks as PNG files, until there are enough."""
    photos = CocoDataset(str(next((source / "facade" / "train").glob("*.json"))), on_error="skip")
    for index, path in enumerate(photos.paths):
        first = f"{index:05d}"
        Image.open(path).convert("RGB").resize((SIZE, SIZE)).save(target / "images" / f"{first}.jpg", quality=90)
        mask = Image.fromarray(photos.read_mask(index).numpy()).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        mask.save(target / "masks" / f"{first}.png")
    for number in range(len(photos), NUM_IMAGES):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            own = target / folder / f"{number % len(photos):05d}.{suffix}"
            shutil.copyfile(own, target / folder / f"{number:05d}.{suffix}")


@pytest.mark.parametrize("copy", [camvid, facade])
def test_storage(
    copy: Callable[[Path, Path], None],
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Parts of the data are read in turn, in each way twice: after the page cache was emptied, and once more."""
    loose, unpacked, archive = tmp_path / "loose", tmp_path / "unpacked", tmp_path / "all.tar"
    for folder in (loose / "images", loose / "masks", unpacked):
        folder.mkdir(parents=True)
    copy(real_data, loose)
    subprocess.run(["tar", "cf", archive, "-C", loose, "."], check=True)
    monkeypatch.setenv("DEEPLAB_CACHE", str(tmp_path / "cache"))
    cached = DecodedDataset(dataset(loose), "disk")

    def unpack() -> None:
        subprocess.run(["tar", "xf", archive, "-C", unpacked], check=True)
        os.sync()  # as the cache does

    once = {
        "unpack": seconds(unpack, is_cold=True),
        "build the cache": seconds(cached.build, is_cold=True),
    }
    readers = {"loose": dataset(loose), "cache": cached, "unpacked": dataset(unpacked)}
    order = random.Random(0).sample(range(NUM_IMAGES), NUM_IMAGES)
    times: dict[str, list[float]] = defaultdict(list)
    for part in (order[i : i + PART] for i in range(0, NUM_IMAGES, PART)):
        for name, data in readers.items():
            times[f"{name}, cold"].append(seconds(lambda data=data, part=part: read(data, part), is_cold=True))  # type: ignore[misc]
            times[f"{name}, warm"].append(seconds(lambda data=data, part=part: read(data, part), is_cold=False))  # type: ignore[misc]
    first = times["loose, cold"]
    shares = {name: quartiles([a / b for a, b in zip(own, first, strict=True)]) for name, own in times.items()}
    once_shares = {name: round(value / sum(first), 3) for name, value in once.items()}
    bytes_of = {path.name: size(path) for path in (loose, archive, tmp_path / "cache")}
    with capsys.disabled():
        document = {
            "to_loose_cold": shares,
            "once_to_loose_cold": once_shares,
            "seconds": dict(times),
            "bytes": bytes_of,
        }
        print(write(f"storage_{copy.__name__}", document))


def seconds(call: Callable[[], object], *, is_cold: bool) -> float:
    if is_cold:
        os.sync()
        _CACHES.write_text("3")
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def dataset(root: Path) -> MaskFolderDataset:
    classes = ClassTable(names=[f"class {number}" for number in range(12)], ignore_ids=[255])
    return MaskFolderDataset(str(root), "images", masks="masks", classes=classes)


def read(data: SegmentationDataset, part: list[int]) -> None:
    """Read images and masks as training does, without augmentation."""
    for index in part:
        np.asarray(data.open_image(index).pixels()).sum()  # the cache maps its files, which are read when looked at
        data.read_mask(index)


def size(path: Path) -> int:
    return sum(own.stat().st_size for own in [path, *path.rglob("*")] if own.is_file())
