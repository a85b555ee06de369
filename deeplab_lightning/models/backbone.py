"""Dilated feature extractors at a chosen output stride."""

import difflib
import re
from typing import Any, cast

import timm
from torch import Tensor, nn

from deeplab_lightning.models.pretrained import hub_weights_file, load_package_weights, load_state_dict_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OUTPUT_STRIDES = (8, 16, 32)

VGG_STAGES = {  # number of 3x3 convolutions before each of the five pools (Simonyan and Zisserman 2015, table 1)
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_VGG_CHANNELS = (64, 128, 256, 512, 512)


class Backbone(nn.Module):
    """Pictures -> feature maps, one per stage.

    Attributes:
        channels: Channels of each stage's map, from the shallowest to the deepest.
        strides: Stride of each stage's map; the last is the output stride.
        mean: Mean of the pixels (RGB, 0-1) that the pretrained weights were trained with.
        std: Standard deviation likewise.
    """

    channels: list[int]
    strides: list[int]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def out_channels(self) -> int:
        """Channels of the deepest map."""
        return self.channels[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) float, normalised by `mean` and `std` -> per stage (B, C_i, H/s_i, W/s_i)."""
        raise NotImplementedError


class VGGBackbone(Backbone):
    """VGG as DeepLab uses it (Chen et al. 2017, DeepLab v2, section 4.1).

    All pools are 3x3 with padding 1. Those that would go beyond the output stride have stride 1, and
    the convolutions after them are dilated instead; so at stride 8 pool4 and pool5 have stride 1 and
    conv5 has dilation 2. torchvision's VGG pools 2x2; its weights fit all the same.

    Args:
        name: `vgg11`, `vgg13`, `vgg16` or `vgg19`, with `_bn` for BatchNorm.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights.
    """

    def __init__(self, name: str, *, output_stride: int, pretrained: bool) -> None:
        super().__init__()
        has_norm = name.endswith("_bn")
        counts = VGG_STAGES[name.removesuffix("_bn")]
        self.channels, self.strides = list(_VGG_CHANNELS), []
        self.stages = nn.ModuleList()
        in_channels, stride, dilation = 3, 1, 1
        for count, out_channels in zip(counts, _VGG_CHANNELS, strict=True):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=True))
                layers += [nn.BatchNorm2d(out_channels)] if has_norm else []
                layers.append(nn.ReLU(inplace=True))
                in_channels = out_channels
            is_reducing = stride < output_stride
            layers.append(nn.MaxPool2d(3, stride=2 if is_reducing else 1, padding=1))
            stride, dilation = (stride * 2, dilation) if is_reducing else (stride, dilation * 2)
            self.stages.append(nn.Sequential(*layers))
            self.strides.append(stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
        if pretrained:
            self._load_imagenet(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        features, x = [], images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _load_imagenet(self, name: str) -> None:
        """Convolutions and norms stand in the same order as in torchvision's `features`."""
        source = load_state_dict_file(hub_weights_file(name))
        order = {
            "weight": 0,
            "bias": 1,
            "running_mean": 2,
            "running_var": 3,
        }  # of a layer's tensors in PyTorch
        keys = [key for key in source if key.startswith("features.") and key.split(".")[2] in order]
        keys.sort(key=lambda key: (int(key.split(".")[1]), order[key.split(".")[2]]))
        own = [key for key in self.state_dict() if not key.endswith("num_batches_tracked")]
        if len(own) != len(keys):
            raise ValueError(f"the weights of {name} hold {len(keys)} tensors, {len(own)} are needed.")
        self.load_state_dict({mine: source[key] for mine, key in zip(own, keys, strict=True)}, strict=False)


class TimmBackbone(Backbone):
    """Any convolutional timm model that can be dilated.

    timm's rule keeps the pretrained receptive field: the first block of a stage whose stride was
    removed keeps the previous dilation (as in torchvision), depthwise convolutions included.

    Args:
        name: A timm model name.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights: from an installed weight package, timm's local cache or
            the hub, in this order.
    """

    def __init__(self, name: str, *, output_stride: int, pretrained: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"features_only": True, "output_stride": output_stride, "pretrained": False}
        try:
            self.net = timm.create_model(name, **options)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"backbone {name} cannot be dilated to output stride {output_stride}. Take a convolutional one, such "
                "as resnet50, tf_efficientnet_b3, mobilenetv3_large_100, convnext_tiny or regnety_032."
            ) from error
        self.channels = list(self.net.feature_info.channels())
        self.strides = list(self.net.feature_info.reduction())
        config = timm.get_pretrained_cfg(name)
        if config is not None:
            self.mean, self.std = config.mean, config.std
        if pretrained and not load_package_weights(name, self.net):
            overlay = {"file": str(hub_weights_file(name))}
            self.net = timm.create_model(name, **options | {"pretrained": True, "pretrained_cfg_overlay": overlay})

    def forward(self, images: Tensor) -> list[Tensor]:
        return cast("list[Tensor]", self.net(images))


def build_backbone(name: str, *, output_stride: int, pretrained: bool) -> Backbone:
    """A feature extractor by name.

    Args:
        name: `vgg11/13/16/19` with or without `_bn`; `efficientnet-b0`..`b7` (timm's `tf_efficientnet_b*`,
            the original weights); or any timm name.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights.

    Raises:
        ValueError: For an unknown name (similar ones are listed), an output stride that is not 8, 16 or
            32, or a model that cannot be dilated to it.
        RuntimeError: If the weights are not on this machine and the hub cannot be reached.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}.")
    if name.removesuffix("_bn") in VGG_STAGES:
        return VGGBackbone(name, output_stride=output_stride, pretrained=pretrained)
    timm_name = re.sub(r"^efficientnet-(b[0-7])$", r"tf_efficientnet_\1", name)
    if not timm.is_model(timm_name):
        known = [*VGG_STAGES, *timm.list_models()]
        similar = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ValueError(f"no backbone is called {name!r}. Similar: {', '.join(similar) or 'none'}.")
    return TimmBackbone(timm_name, output_stride=output_stride, pretrained=pretrained)
