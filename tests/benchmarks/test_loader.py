"""Reading and augmenting a training image, against the usual libraries. `make bench`."""

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.data.image_cache import DecodedDataset
from deeplab_lightning.data.transforms import TrainTransforms
from tests.benchmarks.measure import alternating, write

NUM_IMAGES, CROP, REPEATS = 24, 512, 7
Read = Callable[[int], Any]


@pytest.fixture
def facade(real_data: Path) -> CocoDataset:
    """Photos of 1024x1024 with 30 objects each; masks are drawn before anything is measured."""
    dataset = CocoDataset(str(next((real_data / "facade" / "train").glob("*.json"))), on_error="skip")
    dataset._keep(range(NUM_IMAGES))
    for index in range(NUM_IMAGES):
        dataset.read_mask(index)
    return dataset


def test_loader(facade: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    cached = DecodedDataset(facade, "ram")
    cached.build()
    readers: dict[str, Read] = {
        "ours": ours(facade),
        "ours, cache: ram": ours(cached),
        "torchvision v2 on cached masks": plain_v2(facade, tmp_path),
        "bare JPEG decode, Pillow": lambda index: np.asarray(Image.open(facade.paths[index])),
        "bare JPEG decode, simplejpeg": lambda index: simplejpeg.decode_jpeg(facade.paths[index].read_bytes()),
    }
    skipped = {}
    try:
        readers["competition code"] = competition(facade)
    except ImportError as error:
        skipped["competition code"] = f"not measured: {error}. pip install opencv-python-headless albumentations==2.0.8"
    seconds = alternating(
        {name: lambda read=read: [read(i) for i in range(NUM_IMAGES)] for name, read in readers.items()},  # type: ignore[misc]
        repeats=REPEATS,
        clock=time.process_time,
    )
    milliseconds = {name: 1000 * value / NUM_IMAGES for name, value in seconds.items()}
    times = {name: value / milliseconds["ours"] for name, value in milliseconds.items()}
    document = {
        "milliseconds_per_image": milliseconds,
        "times_ours": times,
        "ours_over_bare_decode": 1 / times["bare JPEG decode, Pillow"],
        **skipped,
    }
    with capsys.disabled():
        print(write("loader", document))
    assert times["torchvision v2 on cached masks"] >= 2.7  # 3 is wanted; 2.8 to 3.1 were measured, by the run
    assert times.get("competition code", 5) >= 5
    assert 1 / times["bare JPEG decode, Pillow"] <= 2.5


def ours(dataset: Any) -> Read:
    """As the training loader calls it, seeds by (seed, epoch, name) included."""
    module = SegmentationDataModule(dataset, fold=None, num_workers=0, train_transforms=TrainTransforms(CROP))
    view: Any = module.train_dataloader().dataset
    return lambda index: view[0, index]


def plain_v2(dataset: CocoDataset, folder: Path) -> Read:
    """Pillow and torchvision's transforms one after the other, on whole images and masks saved as PNG.

    As in its documentation they end with a normalised float image; ours is normalised on the device.
    """
    masks = [folder / f"{index}.png" for index in range(len(dataset))]
    for index, path in enumerate(masks):
        Image.fromarray(dataset.read_mask(index).numpy()).save(path)
    resize = v2.ScaleJitter((1024, 1024), (0.5, 2.0), antialias=True)
    fill = {tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: 255}
    transforms = v2.Compose(
        [
            resize,
            v2.RandomCrop(CROP, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def read(index: int) -> Any:
        image = v2.functional.to_image(Image.open(dataset.paths[index]).convert("RGB"))
        return transforms(image, tv_tensors.Mask(torch.from_numpy(np.array(Image.open(masks[index])))))

    return read


def competition(dataset: CocoDataset) -> Read:
    """cv2, pycocotools object by object, and albumentations, as notebooks of competitions do."""
    A, cv2 = importlib.import_module("albumentations"), importlib.import_module("cv2")
    to_tensor = importlib.import_module("albumentations.pytorch").ToTensorV2()
    from pycocotools.coco import COCO

    cv2.setNumThreads(1)
    coco = COCO(str(dataset.json_path))
    ids = {record["file_name"]: record["id"] for record in json.loads(dataset.json_path.read_text())["images"]}
    transforms = A.Compose(
        [
            A.RandomScale((-0.5, 1.0), p=1),
            A.PadIfNeeded(CROP, CROP, border_mode=cv2.BORDER_CONSTANT, fill=(124, 116, 104), fill_mask=255),
            A.RandomCrop(CROP, CROP),
            A.HorizontalFlip(),
            A.ColorJitter(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(0, 0), p=1),
            A.Normalize(),
            to_tensor,
        ]
    )

    def read(index: int) -> Any:
        image = cv2.cvtColor(cv2.imread(str(dataset.paths[index])), cv2.COLOR_BGR2RGB)
        mask = np.zeros(image.shape[:2], dtype=np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=ids[dataset.names[index]])):
            mask = np.maximum(mask, coco.annToMask(annotation) * annotation["category_id"])
        return transforms(image=image, mask=mask)

    return read
