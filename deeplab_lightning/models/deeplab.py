"""The DeepLab family: backbone -> head -> resize to the input's size."""

from collections.abc import Sequence

from torch import Tensor, nn

from deeplab_lightning.bands import resize
from deeplab_lightning.models.aspp import DEFAULT_ATROUS_RATES, ASPPConcat, ASPPSum, ConvNormReLU
from deeplab_lightning.models.backbone import Backbone, build_backbone


class DeepLab(nn.Module):
    """A backbone, a head on its deepest map, and one bilinear resize. Subclass it for a new member.

    Args:
        backbone: The feature extractor.
        head: (B, C, H/s, W/s) -> (B, K, H/s, W/s).
        num_classes: K.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) float, normalised by the backbone's mean and std, any H and W.

        Returns:
            logits: (B, K, H, W) float, unnormalised.
        """
        return resize(self.scores(images), (images.shape[-2], images.shape[-1]))

    def scores(self, images: Tensor) -> Tensor:
        """As `forward`, before the resize: (B, K, H/s, W/s). A subclass with another path overrides this."""
        features = self.backbone(images)[-1]  # (B, C, H/s, W/s)
        return self.head(features)  # type: ignore[no-any-return]


class DeepLabV2(DeepLab):
    """DeepLab v2 (Chen et al. 2017): output stride 8 and ASPP in the sum form.

    Args:
        num_classes: K, without void.
        backbone: `vgg16`, or any other backbone by name, at output stride 8.
        share_head: One fc7 and one score layer for all branches; false gives each branch its own, with a
            ReLU after fc7, as in the paper.
        atrous_rates: Dilations of the branches; (6, 12, 18, 24) is the paper's ASPP-L.
        hidden_channels: Channels of fc6 and fc7.
        dropout: Probability of dropping a channel after fc6 and fc7.
        pretrained: Start from ImageNet weights.

    Raises:
        ValueError: For fewer than 1 class or an unknown backbone.
        RuntimeError: If the pretrained weights cannot be had.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        share_head: bool = True,
        atrous_rates: Sequence[int] = (6, 12, 18, 24),
        hidden_channels: int = 1024,
        dropout: float = 0.5,
        pretrained: bool = True,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(backbone, output_stride=8, pretrained=pretrained)
        head = ASPPSum(
            features.out_channels,
            num_classes,
            atrous_rates=atrous_rates,
            hidden_channels=hidden_channels,
            dropout=dropout,
            share_head=share_head,
        )
        super().__init__(features, head, num_classes=num_classes)


class DeepLabV3(DeepLab):
    """DeepLab v3 (Chen et al. 2017, "Rethinking Atrous Convolution"): ASPP with image pooling.

    Args:
        num_classes: K, without void.
        backbone: `resnet50`, or any other backbone by name.
        output_stride: 8, 16 or 32: input size over feature size. 8 is finer and about 3 times the work.
        atrous_rates: Dilations of the 3x3 branches; by output stride (6, 12, 18) at 16 and (12, 24, 36) at
            8 if null.
        aspp_channels: Channels of each ASPP branch and of the head.
        dropout: Probability after the projection of the ASPP.
        pretrained: Start from ImageNet weights.

    Raises:
        ValueError: For fewer than 1 class, another output stride, or an unknown backbone.
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
        dropout: float = 0.5,
        pretrained: bool = True,
    ) -> None:
        _check_num_classes(num_classes)
        features = build_backbone(backbone, output_stride=output_stride, pretrained=pretrained)
        rates = DEFAULT_ATROUS_RATES[output_stride] if atrous_rates is None else atrous_rates
        head = nn.Sequential(
            ASPPConcat(features.out_channels, rates, out_channels=aspp_channels, dropout=dropout),
            ConvNormReLU(aspp_channels, aspp_channels, kernel_size=3),
            nn.Conv2d(aspp_channels, num_classes, 1),
        )
        super().__init__(features, head, num_classes=num_classes)


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
