"""DeepLab semantic segmentation on PyTorch Lightning.

Notebooks and scripts import from three places: this one, `deeplab_lightning.data` and `deeplab_lightning.models`.
"""

from typing import TYPE_CHECKING

from deeplab_lightning.lazy import lazy_names
from deeplab_lightning.openmp import limit_spinning

if TYPE_CHECKING:
    from deeplab_lightning.cli import main as main
    from deeplab_lightning.crf import DenseCRF as DenseCRF
    from deeplab_lightning.data.datamodule import SegmentationDataModule as SegmentationDataModule
    from deeplab_lightning.data.folds import stratified_folds as stratified_folds
    from deeplab_lightning.drawing import colorize as colorize
    from deeplab_lightning.drawing import overlay as overlay
    from deeplab_lightning.experiments.comparison import compare_experiments as compare_experiments
    from deeplab_lightning.inference.model import load as load
    from deeplab_lightning.kernels import speed_up as speed_up
    from deeplab_lightning.losses import BoundaryCrossEntropyLoss as BoundaryCrossEntropyLoss
    from deeplab_lightning.losses import CrossEntropyLoss as CrossEntropyLoss
    from deeplab_lightning.losses import DiceLoss as DiceLoss
    from deeplab_lightning.losses import FocalLoss as FocalLoss
    from deeplab_lightning.losses import OhemCrossEntropyLoss as OhemCrossEntropyLoss
    from deeplab_lightning.losses import SumLoss as SumLoss
    from deeplab_lightning.losses import TverskyLoss as TverskyLoss
    from deeplab_lightning.metrics.iou import mean_iou as mean_iou
    from deeplab_lightning.metrics.iou import summarize as summarize
    from deeplab_lightning.models.deeplab import DeepLabV1 as DeepLabV1
    from deeplab_lightning.models.deeplab import DeepLabV2 as DeepLabV2
    from deeplab_lightning.models.deeplab import DeepLabV3 as DeepLabV3
    from deeplab_lightning.models.deeplab import DeepLabV3Plus as DeepLabV3Plus
    from deeplab_lightning.models.weights import load_weights as load_weights
    from deeplab_lightning.module import SegmentationModule as SegmentationModule
    from deeplab_lightning.sync_batchnorm import TimmSyncBatchNorm as TimmSyncBatchNorm

__version__ = "0.1.0"
limit_spinning()  # at import, since it has to come before torch
_HOMES = {
    "BoundaryCrossEntropyLoss": "losses",
    "CrossEntropyLoss": "losses",
    "DeepLabV1": "models.deeplab",
    "DeepLabV2": "models.deeplab",
    "DeepLabV3": "models.deeplab",
    "DeepLabV3Plus": "models.deeplab",
    "DenseCRF": "crf",
    "DiceLoss": "losses",
    "FocalLoss": "losses",
    "OhemCrossEntropyLoss": "losses",
    "SegmentationDataModule": "data.datamodule",
    "SegmentationModule": "module",
    "SumLoss": "losses",
    "TimmSyncBatchNorm": "sync_batchnorm",
    "TverskyLoss": "losses",
    "colorize": "drawing",
    "compare_experiments": "experiments.comparison",
    "load": "inference.model",
    "load_weights": "models.weights",
    "main": "cli",
    "mean_iou": "metrics.iou",
    "overlay": "drawing",
    "speed_up": "kernels",
    "stratified_folds": "data.folds",
    "summarize": "metrics.iou",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
