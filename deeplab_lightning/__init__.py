"""DeepLab semantic segmentation on PyTorch Lightning.

The public API. Names are imported on first use, so that `deeplab --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_lightning.data.datamodule import SegmentationDataModule
    from deeplab_lightning.data.folds import stratified_folds
    from deeplab_lightning.models.deeplab import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus
    from deeplab_lightning.models.weights import load_weights
    from deeplab_lightning.module import SegmentationModule

__version__ = "0.1.0"
__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "SegmentationDataModule",
    "SegmentationModule",
    "__version__",
    "load_weights",
    "stratified_folds",
]

_HOMES = {
    "DeepLabV1": "deeplab_lightning.models.deeplab",
    "DeepLabV2": "deeplab_lightning.models.deeplab",
    "DeepLabV3": "deeplab_lightning.models.deeplab",
    "DeepLabV3Plus": "deeplab_lightning.models.deeplab",
    "SegmentationDataModule": "deeplab_lightning.data.datamodule",
    "SegmentationModule": "deeplab_lightning.module",
    "load_weights": "deeplab_lightning.models.weights",
    "stratified_folds": "deeplab_lightning.data.folds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
