"""Build atrous spatial pyramid pooling (ASPP), in the sum form of DeepLab v2 and the concat form of v3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEFAULT_ATROUS_RATES = {  # output stride -> rates (Chen et al. 2017, DeepLab v3, section 3.3)
    8: (12, 24, 36),
    16: (6, 12, 18),
    32: (3, 6, 9),  # the same field of view; the paper has no output stride above 16
}


class ConvNormReLU(nn.Sequential):
    """Apply a convolution without bias that keeps the map's size, BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SeparableConv(nn.Sequential):
    """Apply a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU (DeepLab v3+, section 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            *ConvNormReLU(in_channels, out_channels, kernel_size=1),
        )


class ImagePooling(nn.Module):
    """Project the mean over the whole map and expand it to the map's size (ParseNet; DeepLab v3, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Pool features (B, C, h, w) to (B, out_channels, h, w)."""
        pooled = self.project(F.adaptive_avg_pool2d(features, 1))  # (B, out_channels, 1, 1)
        pooled = F.relu(self._normalise(pooled))
        return pooled.expand(-1, -1, *features.shape[-2:])

    def _normalise(self, pooled: Tensor) -> Tensor:
        # With a batch of one, there is one value per channel and no variance: the running statistics are used instead.
        # SyncBatchNorm also counts the values of other processes, and is left alone.
        has_one_value = self.training and len(pooled) == 1 and not isinstance(self.norm, nn.SyncBatchNorm)
        if not has_one_value:
            return self.norm(pooled)
        norm = self.norm
        return F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


class ASPPConcat(nn.Module):
    """Concatenate and project a 1x1 convolution, a dilated 3x3 per rate and image pooling (DeepLab v3).

    Args:
        in_channels: Channels of the backbone's map.
        atrous_rates: Dilations of the 3x3 branches, one or more.
        out_channels: Channels of each branch and of the result.
        dropout: Probability of dropping a value after the projection.
        separable: Use depthwise separable instead of full 3x3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        *,
        out_channels: int = 256,
        dropout: float = 0.5,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormReLU(in_channels, out_channels, kernel_size=1)])
        self.branches += [
            SeparableConv(in_channels, out_channels, dilation=rate)
            if separable
            else ConvNormReLU(in_channels, out_channels, kernel_size=3, dilation=rate)
            for rate in atrous_rates
        ]
        self.branches.append(ImagePooling(in_channels, out_channels))
        self.project = ConvNormReLU(len(self.branches) * out_channels, out_channels, kernel_size=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Compute (B, out_channels, h, w) from features (B, C, h, w)."""
        x = torch.cat([branch(features) for branch in self.branches], dim=1)  # (B, branches * out_channels, h, w)
        return self.dropout(self.project(x))


class ASPPSum(nn.Module):
    """Sum the logits of one branch per rate: a dilated 3x3 (fc6), a 1x1 (fc7) and a classifier (DeepLab v2).

    This is ASPP-L of Chen et al. 2017, section 4.1.2 and figure 7.

    Args:
        in_channels: Channels of the backbone's map.
        num_classes: Number of classes K, without void.
        atrous_rates: Dilations of the 3x3 branches, one or more.
        hidden_channels: Channels of fc6 and fc7; None leaves both out, so that each dilated 3x3 is a classifier (the
            paper's ResNet-101).
        dropout: Probability of dropping a channel after fc6 and after fc7.
        share_head: Use one fc7, without ReLU, and one classifier for all branches; else each branch has its own, with
            the paper's ReLU after fc7.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        atrous_rates: Sequence[int],
        hidden_channels: int | None = 1024,
        dropout: float = 0.5,
        share_head: bool = True,
    ) -> None:
        super().__init__()
        self.has_linear_head = share_head and hidden_channels is not None
        classifiers: list[nn.Module]
        if hidden_channels is None:
            classifiers = [nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in atrous_rates]
            self.branches = nn.ModuleList(classifiers)
            self.heads = nn.ModuleList([nn.Identity()])
        else:
            self.branches = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(in_channels, hidden_channels, 3, padding=rate, dilation=rate),
                    nn.ReLU(inplace=True),
                    nn.Dropout2d(dropout),
                )
                for rate in atrous_rates
            )
            num_heads = 1 if share_head else len(self.branches)
            self.heads = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(hidden_channels, hidden_channels, 1),
                    nn.Identity() if share_head else nn.ReLU(inplace=True),
                    nn.Dropout2d(dropout),
                    nn.Conv2d(hidden_channels, num_classes, 1),
                )
                for _ in range(num_heads)
            )
            classifiers = [head[-1] for head in self.heads]  # type: ignore[index]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for classifier in classifiers:
            nn.init.normal_(classifier.weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits (B, K, h, w) from features (B, C, h, w)."""
        if self.has_linear_head and not self.training:
            return self._logits_of_sum(features)
        heads = list(self.heads) * (len(self.branches) if len(self.heads) == 1 else 1)
        logits = [head(branch(features)) for branch, head in zip(self.branches, heads, strict=True)]
        return torch.stack(logits).sum(dim=0)

    def _logits_of_sum(self, features: Tensor) -> Tensor:
        """Apply a shared head once, to the sum of the branches.

        Without dropout it is linear: the biases count once per branch.
        """
        num_branches = len(self.branches)
        x = self.branches[0](features)
        for branch in self.branches[1:]:
            x = x + branch(features)  # (B, hidden, h, w)
        for layer in self.heads[0]:  # type: ignore[attr-defined]
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                x = F.conv2d(x, layer.weight, num_branches * layer.bias)
        return x
