"""Build networks of the DeepLab family in plain PyTorch, and load their weights."""

from typing import TYPE_CHECKING

from deeplab_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from deeplab_lightning.models.aspp import ASPPConcat as ASPPConcat
    from deeplab_lightning.models.aspp import ASPPSum as ASPPSum
    from deeplab_lightning.models.backbone import Backbone as Backbone
    from deeplab_lightning.models.backbone import build_backbone as build_backbone
    from deeplab_lightning.models.cost import network_cost as network_cost
    from deeplab_lightning.models.deeplab import DeepLab as DeepLab
    from deeplab_lightning.models.deeplab import DeepLabV1 as DeepLabV1
    from deeplab_lightning.models.deeplab import DeepLabV2 as DeepLabV2
    from deeplab_lightning.models.deeplab import DeepLabV3 as DeepLabV3
    from deeplab_lightning.models.deeplab import DeepLabV3Plus as DeepLabV3Plus
    from deeplab_lightning.models.deeplab import TrainingLogits as TrainingLogits
    from deeplab_lightning.models.dilation import dilate as dilate
    from deeplab_lightning.models.weights import LoadReport as LoadReport
    from deeplab_lightning.models.weights import load_weights as load_weights


_HOMES = {
    "ASPPConcat": "models.aspp",
    "ASPPSum": "models.aspp",
    "Backbone": "models.backbone",
    "DeepLab": "models.deeplab",
    "DeepLabV1": "models.deeplab",
    "DeepLabV2": "models.deeplab",
    "DeepLabV3": "models.deeplab",
    "DeepLabV3Plus": "models.deeplab",
    "LoadReport": "models.weights",
    "TrainingLogits": "models.deeplab",
    "build_backbone": "models.backbone",
    "dilate": "models.dilation",
    "load_weights": "models.weights",
    "network_cost": "models.cost",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
