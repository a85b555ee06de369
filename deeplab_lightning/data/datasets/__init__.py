"""Read data sets as sorted, validated pairs of image and mask in uint8."""

from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.datasets.coco import CocoDataset
from deeplab_lightning.data.datasets.image_folder import ImageFolderDataset
from deeplab_lightning.data.datasets.mask_folder import MaskFolderDataset
from deeplab_lightning.data.datasets.synthetic import SyntheticLitterDataset

__all__ = [
    "CocoDataset",
    "ImageFolderDataset",
    "MaskFolderDataset",
    "SegmentationDataset",
    "SyntheticLitterDataset",
]
