"""Print which data a training uses."""

import lightning as L

from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import SegmentationDataset


class DataLine(L.Callback):
    """Print the data sets and the number of training and validation images when a training starts.

    The base configuration trains on the built-in data set, so a forgotten data overlay is seen here.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line on the first process."""
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(datamodule, SegmentationDataModule):
            print(f"Data: {describe_data(datamodule)}", flush=True)


def describe_data(datamodule: SegmentationDataModule) -> str:
    """Describe the training and validation images in one line.

    Args:
        datamodule: A datamodule that is set up for training.
    """
    dataset = datamodule.dataset
    assert dataset is not None
    extra = sum(map(len, datamodule.extra_datasets))
    classes = f"{datamodule.num_classes} classes" + (f", and {extra} extra images train" if extra else "")
    if datamodule.split == "official":
        assert datamodule.val_dataset is not None
        parts = (f"{_name(dataset)}: {len(dataset)} images train", f"{_name(datamodule.val_dataset)}: ")
        return f"{parts[0]}; {parts[1]}{len(datamodule.val_dataset)} validate (official split); {classes}"
    if datamodule.fold is None:
        return f"{_name(dataset)}: all {len(dataset)} images train, none validates (fold: null), {classes}"
    num_validation = sum(fold == datamodule.fold for fold in datamodule.folds.values())
    return (
        f"{_name(dataset)}: {len(dataset) - num_validation} images train, {num_validation} validate "
        f"(fold {datamodule.fold} of {datamodule.n_folds}), {classes}"
    )


def _name(dataset: SegmentationDataset) -> str:
    return f"{type(dataset).__name__} {dataset.source}"
