from pathlib import Path

from deeplab_lightning.callbacks.data_line import describe_data
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import MaskFolderDataset
from tests.conftest import CLASSES


def test_it_counts_the_images_that_train_and_validate(mask_folder: Path) -> None:
    def described(fold: int | None) -> str:
        return describe_data(SegmentationDataModule(_dataset(mask_folder), 3, fold=fold, num_workers=0))

    source = f"MaskFolderDataset {mask_folder / 'images'}"
    folded = described(0)
    assert folded.endswith("(fold 0 of 3), 3 classes")
    num_train, num_validate = (int(folded.split(word)[0].split()[-1]) for word in (" images train", " validate"))
    assert num_train + num_validate == 10
    assert 3 <= num_validate <= 4
    assert described(None) == f"{source}: all 10 images train, none validates (fold: null), 3 classes"


def test_an_official_split_names_both_data_sets(mask_folder: Path) -> None:
    dataset, val_dataset = _dataset(mask_folder), _dataset(mask_folder)
    val_dataset.names = val_dataset.names[:4]
    datamodule = SegmentationDataModule(dataset, split="official", val_dataset=val_dataset, num_workers=0)
    source = f"MaskFolderDataset {mask_folder / 'images'}"
    assert describe_data(datamodule) == (f"{source}: 10 images train; {source}: 4 validate (official split); 3 classes")


def _dataset(folder: Path) -> MaskFolderDataset:
    classes = ClassTable(list(CLASSES), ignore_ids=[11])
    return MaskFolderDataset(str(folder), "images", masks="masks", classes=classes)
