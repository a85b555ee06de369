"""Read data sets, split them into folds, and augment and load their images."""

from typing import TYPE_CHECKING

from deeplab_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from deeplab_lightning.data.batch import Batch as Batch
    from deeplab_lightning.data.batch import Sample as Sample
    from deeplab_lightning.data.classes import IGNORE_INDEX as IGNORE_INDEX
    from deeplab_lightning.data.classes import ClassTable as ClassTable
    from deeplab_lightning.data.datamodule import SegmentationDataModule as SegmentationDataModule
    from deeplab_lightning.data.datasets.base import SegmentationDataset as SegmentationDataset
    from deeplab_lightning.data.datasets.coco import CocoDataset as CocoDataset
    from deeplab_lightning.data.datasets.image_folder import ImageFolderDataset as ImageFolderDataset
    from deeplab_lightning.data.datasets.mask_folder import MaskFolderDataset as MaskFolderDataset
    from deeplab_lightning.data.datasets.synthetic import SyntheticLitterDataset as SyntheticLitterDataset
    from deeplab_lightning.data.datasets.synthetic import write_synthetic as write_synthetic
    from deeplab_lightning.data.folds import stratified_folds as stratified_folds
    from deeplab_lightning.data.folds.balance import fold_balance as fold_balance
    from deeplab_lightning.data.folds.balance import lower_bounds as lower_bounds
    from deeplab_lightning.data.folds.balance import unbalanceable_classes as unbalanceable_classes
    from deeplab_lightning.data.groups import DuplicateGroups as DuplicateGroups
    from deeplab_lightning.data.groups import PatternGroups as PatternGroups
    from deeplab_lightning.data.groups import TableGroups as TableGroups
    from deeplab_lightning.data.mixing import ClassMix as ClassMix
    from deeplab_lightning.data.mixing import CopyPaste as CopyPaste
    from deeplab_lightning.data.mixing import CutMix as CutMix
    from deeplab_lightning.data.scan import scan_dataset as scan_dataset
    from deeplab_lightning.data.transforms import EvalTransforms as EvalTransforms
    from deeplab_lightning.data.transforms import TrainTransforms as TrainTransforms


_HOMES = {
    "Batch": "data.batch",
    "ClassMix": "data.mixing",
    "ClassTable": "data.classes",
    "CocoDataset": "data.datasets.coco",
    "CopyPaste": "data.mixing",
    "CutMix": "data.mixing",
    "DuplicateGroups": "data.groups",
    "EvalTransforms": "data.transforms",
    "IGNORE_INDEX": "data.classes",
    "ImageFolderDataset": "data.datasets.image_folder",
    "MaskFolderDataset": "data.datasets.mask_folder",
    "PatternGroups": "data.groups",
    "Sample": "data.batch",
    "SegmentationDataModule": "data.datamodule",
    "SegmentationDataset": "data.datasets.base",
    "SyntheticLitterDataset": "data.datasets.synthetic",
    "TableGroups": "data.groups",
    "TrainTransforms": "data.transforms",
    "fold_balance": "data.folds.balance",
    "lower_bounds": "data.folds.balance",
    "scan_dataset": "data.scan",
    "stratified_folds": "data.folds",
    "unbalanceable_classes": "data.folds.balance",
    "write_synthetic": "data.datasets.synthetic",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
