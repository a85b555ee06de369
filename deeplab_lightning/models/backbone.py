"""Build dilated feature extractors at a chosen output stride."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import adapt_input_conv
from torch import Tensor, nn

from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.models.dilation import DilationRule, dilate, map_channels, map_strides
from deeplab_lightning.models.pretrained import (
    hub_file,
    hub_weights_file,
    load_package_weights,
    load_state_dict_file,
    torch_hub_file,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN = (122.675 / 255, 116.669 / 255, 104.008 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
OUTPUT_STRIDES = (8, 16, 32)
LOW_LEVEL_STRIDE = 4
_CLASSIFIER_STRIDE = 32  # at which nothing is dilated

VGG_STAGES = {  # number of 3x3 convolutions before each of the five pools (Simonyan and Zisserman 2015, table 1)
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
CAFFE_RESNETS = ("caffe_resnet50", "caffe_resnet101", "caffe_resnet152")
_HALF_SMP_ENCODERS = ("xception", "inceptionv4", "inceptionresnetv2")  # trained on pixels from -1 to 1
_VGG_CHANNELS = (64, 128, 256, 512, 512)
_VGG_TAG = "tv_in1k"
TAGS = {  # timm model -> its weights; timm's own default may change with its version
    **{f"tf_efficientnet_b{i}": "ns_jft_in1k" for i in range(8)},
    **{f"tf_efficientnet_lite{i}": "in1k" for i in range(5)},
    **{"resnet18": "a1_in1k", "resnet34": "a1_in1k", "resnet50": "a1_in1k"},
    **{"resnet101": "a1h_in1k", "resnet152": "a1h_in1k"},
    **{"mobilenetv3_large_100": "ra_in1k", "mobilenetv3_small_100": "lamb_in1k", "mobilenetv2_100": "ra_in1k"},
    **{"convnext_tiny": "in12k_ft_in1k", "regnety_032": "ra_in1k", "densenet121": "ra_in1k", "xception65": "ra3_in1k"},
}
"""Weights of the backbones that the documentation names, as timm tags them."""

_IS_REBUILDING = ContextVar("_IS_REBUILDING", default=False)


class Backbone(nn.Module):
    """Compute feature maps of images, one per stage.

    Attributes:
        channels: Channels of each stage's map, from the shallowest to the deepest.
        strides: Stride of each stage's map in pixels; the last is the output stride.
        mean: Mean of the pixels (RGB, 0-1) that the pretrained weights were trained with, or of each channel.
        std: Standard deviation of these pixels.
        in_channels: Channels C of the images.
        imagenet_weights: Name of the ImageNet weights that were loaded, such as `resnet50.a1_in1k`; None if none were.
        dilation: Rule by which `dilate` replaced strides by dilation; None if no stride was replaced by it.
    """

    channels: list[int]
    strides: list[int]
    dilation: DilationRule | None = None
    imagenet_weights: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    in_channels: int = 3

    @property
    def out_channels(self) -> int:
        """Return the channels of the deepest map."""
        return self.channels[-1]

    @property
    def low_level_index(self) -> int:
        """Return the index of the deepest map of stride 4, which decoders use.

        Raises:
            ValueError: If no map has stride 4.
        """
        if LOW_LEVEL_STRIDE not in self.strides:
            raise UserError(f"the backbone has no map at stride 4, only at {self.strides}; take another one.")
        return len(self.strides) - 1 - self.strides[::-1].index(LOW_LEVEL_STRIDE)

    def _dilate(self, net: nn.Module, name: str, output_stride: int, dilation: DilationRule) -> None:
        """Dilate a network of another library to the output stride, and set `strides`."""
        try:
            self.strides = dilate(net, output_stride, rule=dilation)
            self.dilation = dilation if output_stride < _CLASSIFIER_STRIDE else None
        except (ValueError, RuntimeError, AssertionError, TypeError, KeyError) as error:
            raise _not_dilatable(name, output_stride, str(error)) from error
        if self.strides[-1] != output_stride:
            raise _not_dilatable(name, output_stride, f"its deepest map has stride {self.strides[-1]}")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute a map (B, C_i, H/s_i, W/s_i) per stage i.

        Args:
            images: (B, C, H, W) float, normalised by `mean` and `std`.
        """
        raise NotImplementedError


class VGGBackbone(Backbone):
    """Extract features with VGG as DeepLab uses it (Chen et al. 2017, DeepLab v2, section 4.1).

    All pools are 3x3 with padding 1. Those that would exceed the output stride have stride 1, and the convolutions
    after them are dilated instead: at output stride 8, pool4 and pool5 have stride 1 and conv5 has dilation 2. The
    pools themselves are not dilated. torchvision's VGG has pools of 2x2; its weights can be loaded all the same.

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
        """Compute the map of each stage, see `Backbone.forward`."""
        features, x = [], images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _load_imagenet(self, name: str) -> None:
        """Load torchvision's weights, whose convolutions and norms have the same order."""
        self.imagenet_weights = f"{name}.{_VGG_TAG}"
        source = load_state_dict_file(hub_weights_file(self.imagenet_weights))
        order = {"weight": 0, "bias": 1, "running_mean": 2, "running_var": 3}  # of a layer's tensors in PyTorch
        keys = [key for key in source if key.startswith("features.") and key.split(".")[2] in order]
        keys.sort(key=lambda key: (int(key.split(".")[1]), order[key.split(".")[2]]))
        own = [key for key in self.state_dict() if not key.endswith("num_batches_tracked")]
        if len(own) != len(keys):
            raise UserError(f"the weights of {name} hold {len(keys)} tensors, but the network has {len(own)}.")
        self.load_state_dict({own_key: source[key] for own_key, key in zip(own, keys, strict=True)}, strict=False)


class TimmBackbone(Backbone):
    """Extract features with any timm model that reduces its maps by strided convolutions and pools.

    Args:
        name: Name of a timm model, with or without the tag of its weights, such as `resnet50.tv_in1k`.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights: from an installed weight package, timm's local cache or
            the hub, in this order.
        dilation: `torchvision` or `smp`, see `dilate`.
    """

    def __init__(
        self, name: str, *, output_stride: int, pretrained: bool, dilation: DilationRule = "torchvision"
    ) -> None:
        super().__init__()
        full_name = _with_tag(name)
        options: dict[str, Any] = {"features_only": True, "pretrained": False}
        try:
            self.net = timm.create_model(full_name, **options)
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            raise _not_dilatable(name, output_stride, "timm gives no feature maps for it") from error
        self.channels = list(self.net.feature_info.channels())
        config = timm.get_pretrained_cfg(full_name)
        if config is not None:
            self.mean, self.std = config.mean, config.std
        if pretrained and not load_package_weights(full_name, self.net):
            overlay = {"file": str(hub_weights_file(full_name))}
            self.net = timm.create_model(full_name, **options | {"pretrained": True, "pretrained_cfg_overlay": overlay})
        self.imagenet_weights = full_name if pretrained else None
        reductions = self.net.feature_info.reduction()
        if any(stride & (stride - 1) for stride in reductions):
            raise _not_dilatable(name, output_stride, f"its strides {reductions} are no powers of two")
        self._dilate(self.net, name, output_stride, dilation)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute timm's feature maps, see `Backbone.forward`."""
        return cast("list[Tensor]", self.net(images))


class CaffeResNetBackbone(TimmBackbone):
    """Extract features with the ResNet of DeepLab v2's authors.

    The first 1x1 convolution of a block holds the stride, and the pool rounds the size up. Images are RGB; weights for
    BGR are converted when they are loaded.

    Args:
        name: `caffe_resnet50`, `caffe_resnet101` or `caffe_resnet152`.
        output_stride: 8, 16 or 32.
        pretrained: Always False; `load_weights` loads the published weights.
        dilation: `torchvision` or `smp`, see `dilate`; the published weights were trained with `smp`.

    Raises:
        RuntimeError: If pretrained is true.
    """

    def __init__(
        self, name: str, *, output_stride: int, pretrained: bool, dilation: DilationRule = "torchvision"
    ) -> None:
        if pretrained:
            raise UnavailableError(
                f"there are no ImageNet weights for {name}. Set pretrained: false, and weights to a file."
            )
        super().__init__(name.removeprefix("caffe_"), output_stride=output_stride, pretrained=False, dilation=dilation)
        self.mean, self.std = CAFFE_MEAN, CAFFE_STD
        for stage in (self.net.layer2, self.net.layer3, self.net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
        self.net.maxpool.ceil_mode = True


class SmpBackbone(Backbone):
    """Extract features with an encoder of segmentation_models_pytorch that timm does not have.

    Args:
        name: Name of the encoder in segmentation_models_pytorch.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights from the local cache or the hub.
        dilation: `torchvision` or `smp`, see `dilate`.
    """

    def __init__(
        self, name: str, *, output_stride: int, pretrained: bool, dilation: DilationRule = "torchvision"
    ) -> None:
        super().__init__()
        self.net = smp.encoders.get_encoder(name, weights=None)
        if pretrained:
            settings = smp.encoders.encoders[name]["pretrained_settings"].get("imagenet")
            if settings is None:
                raise UnavailableError(f"there are no ImageNet weights for {name}. Set pretrained: false.")
            self.imagenet_weights = settings["repo_id"]
            file = hub_file(settings["repo_id"], name=name, revision=settings["revision"])
            self.net.load_state_dict(load_state_dict_file(file))
        if name in _HALF_SMP_ENCODERS:
            self.mean, self.std = IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
        self.channels = [channels for channels in self.net.out_channels[1:] if channels > 0]
        self._dilate(self, name, output_stride, dilation)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the encoder's feature maps, see `Backbone.forward`."""
        return [x for x in self.net(images)[1:] if x.shape[1] > 0]


class TorchvisionBackbone(Backbone):
    """Extract features with the `features` of a torchvision classifier.

    It is meant for weights that were trained on them.

    Args:
        name: `tv-` and the name of a torchvision model, such as `tv-mobilenet_v3_large`.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights from the local cache or torchvision's server.
        dilation: `torchvision` or `smp`, see `dilate`.
    """

    def __init__(
        self, name: str, *, output_stride: int, pretrained: bool, dilation: DilationRule = "torchvision"
    ) -> None:
        super().__init__()
        name = name.removeprefix("tv-")
        model = torchvision.models.get_model(name, weights=None)
        if not isinstance(getattr(model, "features", None), nn.Sequential):
            raise _not_dilatable(f"tv-{name}", output_stride, "it has no sequence of features; timm may have it")
        if pretrained:
            weights = torchvision.models.get_model_weights(name).DEFAULT
            self.imagenet_weights = f"torchvision {weights}"
            model.load_state_dict(load_state_dict_file(torch_hub_file(weights.url)))
        self.net = model.features
        self._feature_indices = list(range(len(self.net)))
        strides = map_strides(self)  # of all layers; the last layer of each stride gives a feature map
        self._feature_indices = [
            i for i in self._feature_indices if i + 1 == len(strides) or strides[i + 1] > strides[i]
        ]
        self._dilate(self, f"tv-{name}", output_stride, dilation)
        self.channels = map_channels(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the last map of each stride, see `Backbone.forward`."""
        features, x = [], images
        for index, layer in enumerate(self.net):
            x = layer(x)
            if index in self._feature_indices:
                features.append(x)
        return features


def build_backbone(
    name: str,
    *,
    output_stride: int,
    pretrained: bool,
    dilation: DilationRule = "torchvision",
    in_channels: int = 3,
) -> Backbone:
    """Build a feature extractor by name.

    Args:
        name: `vgg11/13/16/19` with or without `_bn`; `efficientnet-b0` to `b7` (timm's
            `tf_efficientnet_b*.ns_jft_in1k`, noisy students that also saw the unlabelled images of JFT-300M); any timm
            name, with or without the tag of its weights, also with smp's prefix `tu-`; another encoder of
            segmentation_models_pytorch; `tv-` and a torchvision name; or `caffe_resnet50/101/152`. A timm name without
            a tag has the weights of `TAGS`, or timm's default.
        output_stride: 8, 16 or 32.
        pretrained: Load the ImageNet weights.
        dilation: `torchvision` keeps the pretrained receptive field; `smp` is for weights of
            segmentation_models_pytorch. See `dilate`.
        in_channels: Channels C of the images. Other than 3, the first layer's weights are adapted as timm does: added
            up for one channel, else repeated in turn and rescaled by 3 / C; mean and std become 0.5 and 0.25.

    Raises:
        ValueError: If the name is unknown (similar names are listed), output_stride is not 8, 16 or 32, in_channels is
            below 1, or the model cannot be dilated.
        RuntimeError: If the weights are not on this machine and the hub cannot be reached.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride must be 8, 16 or 32, got {output_stride}.")
    if in_channels < 1:
        raise UserError(f"in_channels must be at least 1, got {in_channels}.")
    pretrained = pretrained and not _IS_REBUILDING.get()
    backbone = _rgb_backbone(name, output_stride=output_stride, pretrained=pretrained, dilation=dilation)
    if in_channels != backbone.in_channels:
        _adapt_first_layer(backbone, in_channels)
    return backbone


@contextmanager
def without_pretrained() -> Iterator[None]:
    """Build backbones without ImageNet weights, whatever their arguments say, since other weights follow."""
    token = _IS_REBUILDING.set(True)
    try:
        yield
    finally:
        _IS_REBUILDING.reset(token)


def _rgb_backbone(name: str, *, output_stride: int, pretrained: bool, dilation: DilationRule) -> Backbone:
    """Build a feature extractor of RGB images."""
    name = name.removesuffix(f".{_VGG_TAG}") if name.startswith("vgg") else name
    if name.removesuffix("_bn") in VGG_STAGES:
        if dilation != "torchvision":
            raise UserError(f"dilation must be torchvision for {name}, got {dilation}: VGG is dilated in one way only.")
        return VGGBackbone(name, output_stride=output_stride, pretrained=pretrained)
    timm_name = re.sub(r"^efficientnet-(b[0-7])$", r"tf_efficientnet_\1", name.removeprefix("tu-"))
    kind: type[Any]
    if timm.is_model(timm_name):
        _check_tag(timm_name)
        name, kind = timm_name, TimmBackbone
    elif name in CAFFE_RESNETS:
        kind = CaffeResNetBackbone
    elif name in smp.encoders.encoders and not name.startswith("timm-"):
        kind = SmpBackbone
    elif name.removeprefix("tv-") in torchvision.models.list_models(module=torchvision.models):
        kind = TorchvisionBackbone
    else:
        known = [*VGG_STAGES, *CAFFE_RESNETS, *timm.list_models()]
        similar = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise UserError(f"no backbone is called {name!r}. Similar: {', '.join(similar) or 'none'}.")
    backbone: Backbone = kind(name, output_stride=output_stride, pretrained=pretrained, dilation=dilation)
    return backbone


def _adapt_first_layer(backbone: Backbone, in_channels: int) -> None:
    """Change a backbone of RGB images to another number of channels, with its weights."""
    layers = (m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.in_channels == backbone.in_channels)
    first = next(layers, None)
    if first is None or first.groups != 1:
        raise UserError(f"the first layer of {type(backbone).__name__} takes RGB images only; take another backbone.")
    adapted = adapt_input_conv(in_channels, first.weight.detach()).to(first.weight.dtype)
    first.weight = nn.Parameter(adapted.clone(memory_format=torch.contiguous_format))  # not a view of other weights
    first.in_channels = backbone.in_channels = in_channels
    backbone.mean, backbone.std = (0.5,) * in_channels, (0.25,) * in_channels


def _with_tag(name: str) -> str:
    """Return a timm name with the tag of its weights, if there is one."""
    if "." in name:
        return name
    tag = TAGS.get(name) or getattr(timm.get_pretrained_cfg(name), "tag", "")
    return f"{name}.{tag}" if tag else name


def _check_tag(name: str) -> None:
    """Raise an error if timm has no weights of the tag in a name."""
    model, _, tag = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")] if tag else []
    if tag and tag not in known:
        raise UserError(f"{model} has no weights {tag!r}: take one of {', '.join(known) or 'none'}.")


def _not_dilatable(name: str, output_stride: int, reason: str) -> UserError:
    return UserError(
        f"backbone {name} cannot be dilated to output stride {output_stride}: {reason.strip() or 'unknown reason'}. "
        "Take a convolutional one, such as resnet50, tf_efficientnet_b3, mobilenetv3_large_100, convnext_tiny or "
        "regnety_032."
    )
