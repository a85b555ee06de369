"""The DeepLab family: backbone -> head -> resize to the input's size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.aspp import DEFAULT_ATROUS_RATES, ASPPConcat, ASPPSum, ConvNormReLU, SeparableConv
from deeplab_lightning.models.backbone import Backbone, build_backbone
from deeplab_lightning.models.dilation import DilationRule
from deeplab_lightning.models.saving import HubFolder
from deeplab_lightning.models.weights import start_from
from deeplab_lightning.resizing import resize

LOW_LEVEL_CHANNELS = 48  # DeepLab v3+, table 1


class TrainingLogits(NamedTuple):
    """What a network in training returns if more than its result has a loss."""

    logits: Tensor
    """(B, K, H, W) float, the result."""
    auxiliary: list[tuple[float, Tensor]]
    """Weight of the loss, and (B, K, H, W) float, of every further output."""


class DeepLab(nn.Module, HubFolder):
    """A backbone, a head on its deepest map, and one bilinear resize. Subclass it for a new member.

    Args:
        backbone: The feature extractor.
        head: (B, C, H/s, W/s) -> (B, K, H/s, W/s).
        num_classes: K.
        auxiliary_weight: Weight of the loss of a second head on the map before the deepest; 0 for none.
        scales: Factors of the input's size at which the picture is seen; their scores are fused by the
            maximum, and each has its own loss in training (DeepLab v2, section 4.3).

    Raises:
        ValueError: For fewer than 1 class, a negative weight, or scales that are not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        num_classes: int,
        auxiliary_weight: float = 0.0,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        _check_num_classes(num_classes)
        if auxiliary_weight < 0:
            raise UserError(f"auxiliary_weight must not be negative, got {auxiliary_weight}.")
        if not scales or min(scales) <= 0:
            raise UserError(f"scales must be one or more positive factors, got {list(scales)}.")
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self.auxiliary_weight, self.scales = auxiliary_weight, tuple(scales)
        self.auxiliary = _fcn_head(backbone.channels[-2], num_classes) if auxiliary_weight else None

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        """Segment images (B, 3, H, W) float, normalised by the backbone's mean and std, of any H and W.

        Returns:
            logits: (B, K, H, W) float, unnormalised. In training, `TrainingLogits` if there is an auxiliary
            head or more than one scale.
        """
        size = (images.shape[-2], images.shape[-1])
        output = self.coarse_logits(images)
        if isinstance(output, Tensor):
            return resize(output, size)
        auxiliary = [(weight, resize(logits, size)) for weight, logits in output.auxiliary]
        return TrainingLogits(resize(output.logits, size), auxiliary)

    def coarse_logits(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute what `forward` does before the resize: logits (B, K, H/s, W/s).

        A subclass with another path overrides this method.
        """
        size = (images.shape[-2], images.shape[-1])
        per_scale, auxiliary = [], []
        for scale in self.scales:
            features = self.backbone(images if scale == 1 else resize(images, _scaled(size, scale)))
            per_scale.append(self.decode(features))  # (B, K, H/s, W/s), s of this scale
            if self.training and self.auxiliary is not None:
                auxiliary.append((self.auxiliary_weight, self.auxiliary(features[-2])))
        fused = per_scale[0] if len(per_scale) == 1 else _fuse(per_scale, self.scales)
        if self.training and len(per_scale) > 1:
            auxiliary += [(1.0, logits) for logits in per_scale]
        return TrainingLogits(fused, auxiliary) if auxiliary else fused

    def decode(self, features: list[Tensor]) -> Tensor:
        """Compute logits (B, K, h, w) from the backbone's feature maps, before the resize."""
        return self.head(features[-1])  # type: ignore[no-any-return]


class DeepLabV1(DeepLab):
    """DeepLab v1, LargeFOV (Chen et al. 2015, section 3.1): fc6 as a 3x3 of rate 12, fc7 and a score layer.

    Args:
        num_classes: K, without void.
        backbone: `vgg16`, or any other backbone by name, at output stride 8.
        atrous_rate: Dilation of fc6.
        hidden_channels: Channels of fc6 and fc7.
        dropout: Probability of dropping a channel after fc6 and fc7.
        pretrained: Start from ImageNet weights.
        weights: Start from these weights instead, a path or URL; see `load_weights`.

    Raises:
        ValueError: For fewer than 1 class, an unknown backbone, or weights that do not fit it.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        atrous_rate: int = 12,
        hidden_channels: int = 1024,
        dropout: float = 0.5,
        pretrained: bool = True,
        weights: str | None = None,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(backbone, output_stride=8, pretrained=pretrained and weights is None)
        head = ASPPSum(
            features.out_channels,
            num_classes,
            atrous_rates=[atrous_rate],
            hidden_channels=hidden_channels,
            dropout=dropout,
            share_head=False,
        )
        super().__init__(features, head, num_classes=num_classes)
        start_from(self, weights)


class DeepLabV2(DeepLab):
    """DeepLab v2 (Chen et al. 2017): output stride 8 and ASPP in the sum form.

    Args:
        num_classes: K, without void.
        backbone: `vgg16`, or any other backbone by name, at output stride 8.
        share_head: One fc7 and one score layer for all branches; false gives each branch its own, with a
            ReLU after fc7, as in the paper.
        atrous_rates: Dilations of the branches; (6, 12, 18, 24) is the paper's ASPP-L.
        hidden_channels: Channels of fc6 and fc7; null leaves both out, as in the paper's ResNet-101.
        dropout: Probability of dropping a channel after fc6 and fc7.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of
            a stage alike, as weights of `caffe_resnet101` expect.
        scales: Factors of the input's size, fused by the maximum; the paper's are 0.5, 0.75 and 1.
        pretrained: Start from ImageNet weights.
        weights: Start from these weights instead, a path or URL; see `load_weights`.

    Raises:
        ValueError: For fewer than 1 class, an unknown backbone, or weights that do not fit it.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        share_head: bool = True,
        atrous_rates: Sequence[int] = (6, 12, 18, 24),
        hidden_channels: int | None = 1024,
        dropout: float = 0.5,
        dilation: DilationRule = "torchvision",
        scales: Sequence[float] = (1.0,),
        pretrained: bool = True,
        weights: str | None = None,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone, output_stride=8, pretrained=pretrained and weights is None, dilation=dilation
        )
        head = ASPPSum(
            features.out_channels,
            num_classes,
            atrous_rates=atrous_rates,
            hidden_channels=hidden_channels,
            dropout=dropout,
            share_head=share_head,
        )
        super().__init__(features, head, num_classes=num_classes, scales=scales)
        start_from(self, weights)


class DeepLabV3(DeepLab):
    """DeepLab v3 (Chen et al. 2017, "Rethinking Atrous Convolution"): ASPP with image pooling.

    Args:
        num_classes: K, without void.
        backbone: `resnet50`, or any other backbone by name.
        output_stride: 8, 16 or 32: input size over feature size. 8 is finer and about 3 times the work.
        atrous_rates: Dilations of the 3x3 branches; by output stride (6, 12, 18) at 16 and (12, 24, 36) at
            8 if null.
        multi_grid: Factors of the dilations of the three blocks of a ResNet's last stage, such as (1, 2, 4);
            null for none. As in the paper (section 3.2.1) they multiply the stage's rate: 2, 4, 8 at stride 16,
            4, 8, 16 at stride 8, the first block included.
        aspp_channels: Channels of each ASPP branch and of the head.
        auxiliary_weight: Weight of the loss of a second head on the map before the deepest, in training
            only; torchvision takes 0.5; 0 for none.
        dropout: Probability after the projection of the ASPP.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of
            a stage alike, for weights trained so.
        pretrained: Start from ImageNet weights.
        weights: Start from these weights instead, a path or URL; see `load_weights`.

    Raises:
        ValueError: For fewer than 1 class, another output stride, an unknown backbone, multi_grid on another
            than a ResNet, or weights that do not fit.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        output_stride: int = 16,
        atrous_rates: Sequence[int] | None = None,
        multi_grid: Sequence[int] | None = None,
        aspp_channels: int = 256,
        auxiliary_weight: float = 0.0,
        dropout: float = 0.5,
        dilation: DilationRule = "torchvision",
        pretrained: bool = True,
        weights: str | None = None,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone, output_stride=output_stride, pretrained=pretrained and weights is None, dilation=dilation
        )
        if multi_grid is not None:
            _apply_multi_grid(features, multi_grid)
        rates = DEFAULT_ATROUS_RATES[output_stride] if atrous_rates is None else atrous_rates
        head = nn.Sequential(
            ASPPConcat(features.out_channels, rates, out_channels=aspp_channels, dropout=dropout),
            ConvNormReLU(aspp_channels, aspp_channels, kernel_size=3),
            nn.Conv2d(aspp_channels, num_classes, 1),
        )
        super().__init__(features, head, num_classes=num_classes, auxiliary_weight=auxiliary_weight)
        start_from(self, weights)


class DeepLabV3Plus(DeepLab):
    """DeepLab v3+ (Chen et al. 2018): the ASPP of v3, and a decoder that looks at the map of stride 4.

    Args:
        num_classes: K, without void.
        backbone: `resnet50`, or any other backbone with a map of stride 4 by name.
        output_stride: 8, 16 or 32: input size over feature size. 8 is finer and about 3 times the work.
        atrous_rates: Dilations of the 3x3 branches; by output stride (6, 12, 18) at 16 and (12, 24, 36) at
            8 if null.
        aspp_channels: Channels of each ASPP branch and of the decoder.
        separable: Depthwise separable convolutions in ASPP and decoder: a tenth of their work.
        dropout: Probability after the projection of the ASPP.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of
            a stage alike, for weights trained so.
        pretrained: Start from ImageNet weights.
        weights: Start from these weights instead, a path or URL; see `load_weights`.

    Raises:
        ValueError: For fewer than 1 class, another output stride, an unknown backbone or one without a map
            of stride 4, or weights that do not fit.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        output_stride: int = 16,
        atrous_rates: Sequence[int] | None = None,
        aspp_channels: int = 256,
        separable: bool = False,
        dropout: float = 0.5,
        dilation: DilationRule = "torchvision",
        pretrained: bool = True,
        weights: str | None = None,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone, output_stride=output_stride, pretrained=pretrained and weights is None, dilation=dilation
        )
        rates = DEFAULT_ATROUS_RATES[output_stride] if atrous_rates is None else atrous_rates
        head = _Decoder(
            ASPPConcat(features.out_channels, rates, out_channels=aspp_channels, dropout=dropout, separable=separable),
            low_channels=features.channels[features.low_level_index],
            channels=aspp_channels,
            num_classes=num_classes,
            separable=separable,
        )
        super().__init__(features, head, num_classes=num_classes)
        start_from(self, weights)

    def decode(self, features: list[Tensor]) -> Tensor:
        """The backbone's maps -> scores (B, K, H/4, W/4)."""
        return self.head(features[self.backbone.low_level_index], features[-1])  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """Section 3.1 of the v3+ paper: low-level features to 48 channels, concatenated, two 3x3, the score."""

    def __init__(
        self, aspp: ASPPConcat, *, low_channels: int, channels: int, num_classes: int, separable: bool
    ) -> None:
        super().__init__()
        self.aspp = aspp
        self.reduce = ConvNormReLU(low_channels, LOW_LEVEL_CHANNELS, kernel_size=1)
        self.refine = nn.Sequential(
            *(
                SeparableConv(width, channels) if separable else ConvNormReLU(width, channels, kernel_size=3)
                for width in (channels + LOW_LEVEL_CHANNELS, channels)
            )
        )
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, low: Tensor, deep: Tensor) -> Tensor:
        """low: (B, C_low, H/4, W/4); deep: (B, C, H/s, W/s) -> scores (B, K, H/4, W/4)."""
        context = resize(self.aspp(deep), (low.shape[-2], low.shape[-1]))  # (B, channels, H/4, W/4)
        x = torch.cat([context, self.reduce(low)], dim=1)  # (B, channels + 48, H/4, W/4)
        return self.classify(self.refine(x))  # type: ignore[no-any-return]


def _fcn_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """A 3x3 to a quarter of the channels and a score layer (torchvision's auxiliary head)."""
    return nn.Sequential(
        ConvNormReLU(in_channels, in_channels // 4, kernel_size=3),
        nn.Dropout(0.1),
        nn.Conv2d(in_channels // 4, num_classes, 1),
    )


def _apply_multi_grid(backbone: Backbone, multi_grid: Sequence[int]) -> None:
    stage = getattr(getattr(backbone, "net", None), "layer4", None)
    if not isinstance(stage, nn.Sequential) or len(stage) != len(multi_grid) or min(multi_grid) < 1:
        raise UserError(
            f"multi_grid {list(multi_grid)} needs a ResNet with as many blocks in its last stage: take resnet50 and "
            "three factors of at least 1, or set it to null."
        )
    rate = max(1, 32 // backbone.strides[-1])  # the stage's own stride, and those before it, made up for
    for block, factor in zip(stage, multi_grid, strict=True):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (rate * factor,) * 2


def _fuse(per_scale: list[Tensor], scales: Sequence[float]) -> Tensor:
    """Take the maximum of each class's logits over the scales, at the size of the largest map."""
    largest = per_scale[scales.index(max(scales))]
    size = (largest.shape[-2], largest.shape[-1])
    return torch.stack([resize(logits, size) for logits in per_scale]).amax(dim=0)


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    # As max(1, int(length * scale)), which an export would take for a constant.
    height, width = (torch.sym_max(1, torch.sym_int(length * scale)) for length in size)
    return height, width  # type: ignore[return-value]


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}.")
