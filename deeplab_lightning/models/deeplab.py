"""Build the DeepLab family from a backbone, a head and a resize to the input's size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.aspp import DEFAULT_ATROUS_RATES, ASPPConcat, ASPPSum, ConvNormReLU, SeparableConv
from deeplab_lightning.models.backbone import Backbone, build_backbone
from deeplab_lightning.models.dilation import DilationRule
from deeplab_lightning.models.modes import in_evaluation
from deeplab_lightning.models.preprocessing import Preprocessing, image_batch
from deeplab_lightning.models.saving import HubFolder
from deeplab_lightning.models.weights import start_from
from deeplab_lightning.resizing import resize, resized_argmax

LOW_LEVEL_CHANNELS = 48  # DeepLab v3+, table 1


class TrainingLogits(NamedTuple):
    """Hold the outputs of a network in training that has auxiliary losses.

    Attributes:
        logits: (B, K, H, W) float, the result.
        auxiliary: Weight of the loss and logits (B, K, H, W) float of each auxiliary output.
    """

    logits: Tensor
    auxiliary: list[tuple[float, Tensor]]

    @classmethod
    def of(cls, output: "Tensor | TrainingLogits") -> "TrainingLogits":
        """Return the outputs of any network, without auxiliary ones if it returned plain logits."""
        return cls(output, []) if isinstance(output, Tensor) else output


class DeepLab(nn.Module, HubFolder):
    """Segment images with a backbone, a head on its deepest map and one bilinear resize.

    A new member of the family is a subclass. A network that was trained, or loaded by `from_pretrained`, knows what its
    images go through and what its outputs mean: `preprocess`, `class_names` and `palette`.

    Args:
        backbone: Feature extractor.
        head: Module of features (B, C, H/s, W/s) that returns logits (B, K, H/s, W/s).
        num_classes: Number of classes K, without void.
        auxiliary_weight: Weight of the loss of a second head on the map before the deepest, in training only; 0 for
            none, 0.5 in torchvision.
        scales: Factors of the input's size at which the image is processed. Their logits are fused by the maximum, and
            in training each has a loss (DeepLab v2, section 4.3, with 0.5, 0.75 and 1).

    Attributes:
        preprocess: Module that prepares uint8 images: it shrinks them to the evaluation size and normalises them.
        class_names: K names; None if unknown.
        palette: K colours (R, G, B) in 0-255; None if unknown.
        in_channels: Channels C of the images.

    Raises:
        ValueError: If num_classes is below 1, auxiliary_weight is negative, a scale is not positive, or the backbone
            does not say what its maps are.
    """

    class_names: list[str] | None = None
    palette: list[list[int]] | None = None

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
        _check_backbone(backbone)
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self.in_channels: int = backbone.in_channels
        self.auxiliary_weight, self.scales = auxiliary_weight, tuple(scales)
        self.auxiliary = _fcn_head(backbone.channels[-2], num_classes) if auxiliary_weight else None
        self.preprocess = Preprocessing(backbone.mean, backbone.std)

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute the logits of images at their size.

        Args:
            images: (B, C, H, W) with any H and W: uint8, which `preprocess` prepares, or float, normalised by the
                backbone's mean and std. C is 3 (RGB) unless the network was built with other `in_channels`.

        Returns:
            Logits (B, K, H, W) float, unnormalised; in training, `TrainingLogits` if the network has an auxiliary head
            or more than one scale.
        """
        prepared = self.preprocess(images)
        sizes = [(x.shape[-2], x.shape[-1]) for x in ((images,) if prepared is images else (prepared, images))]
        output = self.coarse_logits(prepared)
        if isinstance(output, Tensor):
            return _resize_in_turn(output, sizes)
        auxiliary = [(weight, _resize_in_turn(logits, sizes)) for weight, logits in output.auxiliary]
        return TrainingLogits(_resize_in_turn(output.logits, sizes), auxiliary)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Find the class of each pixel, in evaluation mode and without gradients.

        The logits of all classes are never in memory at the images' size if they are large, see `resized_argmax`.

        Args:
            images: (B, C, H, W) or (C, H, W) uint8, of any H and W; RGB if C is 3.

        Returns:
            (B, H, W) or (H, W) uint8 indices into `class_names`.

        Raises:
            ValueError: If the images have another shape or dtype.
        """
        batch = image_batch(images, self.in_channels).to(self.preprocess.mean.device)
        with in_evaluation(self):
            prepared = self.preprocess(batch)
            logits = self.coarse_logits(prepared)
        assert isinstance(logits, Tensor)  # in evaluation
        size, prepared_size = ((x.shape[-2], x.shape[-1]) for x in (batch, prepared))
        if prepared_size != size:
            logits = resize(logits, prepared_size)
        return resized_argmax(logits, size).reshape(*images.shape[:-3], *size)

    def coarse_logits(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute the logits (B, K, H/s, W/s) that `forward` resizes, for normalised images.

        Subclasses that compute logits in another way override this method, not `forward`.
        """
        size = (images.shape[-2], images.shape[-1])
        per_scale, auxiliary = [], []
        for scale in self.scales:
            features = self.encode(images if scale == 1 else resize(images, _scaled(size, scale)))
            per_scale.append(self.decode(features))  # (B, K, H/s, W/s), s of this scale
            if self.training and self.auxiliary is not None:
                auxiliary.append((self.auxiliary_weight, self.auxiliary(features[-2])))
        fused = per_scale[0] if len(per_scale) == 1 else _fuse(per_scale, self.scales)
        if self.training and len(per_scale) > 1:
            auxiliary += [(1.0, logits) for logits in per_scale]
        return TrainingLogits(fused, auxiliary) if auxiliary else fused

    def encode(self, images: Tensor) -> list[Tensor]:
        """Compute the backbone's feature maps (B, C_i, h_i, w_i) of normalised images (B, C, H, W), deepest last."""
        return self.backbone(images)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Compute logits (B, K, h, w) from the backbone's feature maps, before the resize."""
        return self.head(features[-1])


class DeepLabV1(DeepLab):
    """Build DeepLab v1: fc6 as a dilated 3x3, fc7 and a classifier at output stride 8.

    LargeFOV of Chen et al. 2015, arXiv:1412.7062, section 3.1.

    Args:
        num_classes: Number of classes K, without void.
        backbone: Name of the feature extractor, see `build_backbone`.
        atrous_rate: Dilation of fc6; 12 in the paper.
        hidden_channels: Channels of fc6 and fc7.
        dropout: Probability of dropping a channel after fc6 and after fc7.
        pretrained: Start from ImageNet weights.
        weights: Path or URL of weights to start from instead, see `load_weights`.
        in_channels: Channels of the images; the command line takes them from `data.image_format`.

    Raises:
        ValueError: If num_classes is below 1, the backbone is unknown, or the weights do not fit it.
        RuntimeError: If the weights are not on this machine and cannot be downloaded.
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
        in_channels: int = 3,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone, output_stride=8, pretrained=pretrained and weights is None, in_channels=in_channels
        )
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
    """Build DeepLab v2: output stride 8 and an ASPP whose branches are summed.

    Chen et al. 2017, arXiv:1606.00915, section 4.1.2.

    Args:
        num_classes: Number of classes K, without void.
        backbone: Name of the feature extractor, see `build_backbone`.
        share_head: Use one fc7 and one classifier for all branches; false gives each branch its own, with a ReLU after
            fc7, as in the paper.
        atrous_rates: Dilations of the ASPP's 3x3 branches; (6, 12, 18, 24) is the paper's ASPP-L.
        hidden_channels: Channels of fc6 and fc7; null leaves both out, as in the paper's ResNet-101.
        dropout: Probability of dropping a channel after fc6 and after fc7.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of a stage
            alike, for weights that were trained so.
        scales: Factors of the input's size at which the image is processed. Their logits are fused by the maximum, and
            in training each has a loss (DeepLab v2, section 4.3, with 0.5, 0.75 and 1).
        pretrained: Start from ImageNet weights.
        weights: Path or URL of weights to start from instead, see `load_weights`.
        in_channels: Channels of the images; the command line takes them from `data.image_format`.

    Raises:
        ValueError: If num_classes is below 1, the backbone is unknown, or the weights do not fit it.
        RuntimeError: If the weights are not on this machine and cannot be downloaded.
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
        in_channels: int = 3,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone,
            output_stride=8,
            pretrained=pretrained and weights is None,
            dilation=dilation,
            in_channels=in_channels,
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
    """Build DeepLab v3: an ASPP with image pooling, concatenated and projected.

    Chen et al. 2017, "Rethinking Atrous Convolution", arXiv:1706.05587.

    Args:
        num_classes: Number of classes K, without void.
        backbone: Name of the feature extractor, see `build_backbone`.
        output_stride: Input size over feature size, 8, 16 or 32; 8 is finer and about 3 times the work.
        atrous_rates: Dilations of the ASPP's 3x3 branches; if null (12, 24, 36), (6, 12, 18) or (3, 6, 9) at output
            stride 8, 16 or 32.
        multi_grid: Factors of the dilations of the three blocks of a ResNet's last stage, such as (1, 2, 4); null for
            none. As in the paper (section 3.2.1) they multiply the stage's rate: 2, 4, 8 at stride 16, 4, 8, 16 at
            stride 8, the first block included.
        aspp_channels: Channels of each ASPP branch and of the layers after it.
        auxiliary_weight: Weight of the loss of a second head on the map before the deepest, in training only; 0 for
            none, 0.5 in torchvision.
        dropout: Probability of dropping a value after the ASPP's projection.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of a stage
            alike, for weights that were trained so.
        pretrained: Start from ImageNet weights.
        weights: Path or URL of weights to start from instead, see `load_weights`.
        in_channels: Channels of the images; the command line takes them from `data.image_format`.

    Raises:
        ValueError: If num_classes is below 1, output_stride is not 8, 16 or 32, the backbone is unknown, multi_grid is
            given for another backbone than a ResNet, or the weights do not fit.
        RuntimeError: If the weights are not on this machine and cannot be downloaded.
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
        in_channels: int = 3,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone,
            output_stride=output_stride,
            pretrained=pretrained and weights is None,
            dilation=dilation,
            in_channels=in_channels,
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
    """Build DeepLab v3+: the ASPP of v3 and a decoder that adds the backbone's map of stride 4.

    Chen et al. 2018, arXiv:1802.02611.

    Args:
        num_classes: Number of classes K, without void.
        backbone: Name of the feature extractor, see `build_backbone`.
        output_stride: Input size over feature size, 8, 16 or 32; 8 is finer and about 3 times the work.
        atrous_rates: Dilations of the ASPP's 3x3 branches; if null (12, 24, 36), (6, 12, 18) or (3, 6, 9) at output
            stride 8, 16 or 32.
        aspp_channels: Channels of each ASPP branch and of the layers after it.
        separable: Use depthwise separable convolutions in ASPP and decoder, a tenth of their work.
        dropout: Probability of dropping a value after the ASPP's projection.
        dilation: `torchvision` keeps the backbone's pretrained receptive field; `smp` dilates every layer of a stage
            alike, for weights that were trained so.
        pretrained: Start from ImageNet weights.
        weights: Path or URL of weights to start from instead, see `load_weights`.
        in_channels: Channels of the images; the command line takes them from `data.image_format`.

    Raises:
        ValueError: If num_classes is below 1, output_stride is not 8, 16 or 32, the backbone is unknown or has no map
            of stride 4, or the weights do not fit.
        RuntimeError: If the weights are not on this machine and cannot be downloaded.
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
        in_channels: int = 3,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(
            backbone,
            output_stride=output_stride,
            pretrained=pretrained and weights is None,
            dilation=dilation,
            in_channels=in_channels,
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
        """Compute logits (B, K, H/4, W/4) from the backbone's feature maps."""
        return self.head(features[self.backbone.low_level_index], features[-1])


class _Decoder(nn.Module):
    """Concatenate ASPP and 48 low-level channels, and classify them after two 3x3 (v3+, section 3.1)."""

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
        """Compute logits (B, K, H/4, W/4) from maps low (B, C_low, H/4, W/4) and deep (B, C, H/s, W/s)."""
        context = resize(self.aspp(deep), (low.shape[-2], low.shape[-1]))  # (B, channels, H/4, W/4)
        x = torch.cat([context, self.reduce(low)], dim=1)  # (B, channels + 48, H/4, W/4)
        return self.classify(self.refine(x))


def _fcn_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """Build torchvision's auxiliary head: a 3x3 to a quarter of the channels and a classifier."""
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
    rate = max(1, 32 // backbone.strides[-1])  # replaces the strides that were removed, the stage's own included
    for block, factor in zip(stage, multi_grid, strict=True):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (rate * factor,) * 2


def _resize_in_turn(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Resize logits to each size, one after the other."""
    resized = resize(logits, sizes[0])
    for size in sizes[1:]:
        resized = resized if resized.shape[-2:] == size else resize(resized, size)
    return resized


def _fuse(per_scale: list[Tensor], scales: Sequence[float]) -> Tensor:
    """Take the maximum of each class's logits over the scales, at the size of the largest map."""
    largest = per_scale[scales.index(max(scales))]
    size = (largest.shape[-2], largest.shape[-1])
    return torch.stack([resize(logits, size) for logits in per_scale]).amax(dim=0)


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    # As max(1, int(length * scale)), which an export would take for a constant.
    height, width = (torch.sym_max(1, torch.sym_int(length * scale)) for length in size)
    return height, width  # type: ignore[return-value]


def _check_backbone(backbone: nn.Module) -> None:
    """Check that a backbone says what its maps and its images are, as every `Backbone` does."""
    absent = [name for name in ("channels", "strides", "mean", "std", "in_channels") if not hasattr(backbone, name)]
    if absent:
        raise UserError(
            f"the backbone {type(backbone).__name__} has no {', '.join(absent)}. Derive it from "
            "deeplab_lightning.models.Backbone, and set channels and strides, one number for each map that it returns."
        )
    if len(backbone.channels) != len(backbone.strides):  # type: ignore[arg-type]
        raise UserError(
            f"the backbone {type(backbone).__name__} needs one number for each map in channels and strides, got "
            f"{backbone.channels} and {backbone.strides}."
        )


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}.")
