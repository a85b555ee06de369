"""Average the class probabilities of several networks, and of several views of an image."""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.resizing import resize


class View(NamedTuple):
    """Hold one view of an image.

    Attributes:
        scale: Factor of the image's size.
        is_flipped: Whether it is mirrored left to right.
    """

    scale: float = 1.0
    is_flipped: bool = False


class Views(NamedTuple):
    """Hold the views of an image whose probabilities are averaged (test-time augmentation).

    Attributes:
        scales: Factors of the image's size.
        flip: Whether each is also mirrored left to right.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def parse(cls, text: str | None) -> "Views":
        """Read `flip`, `scales=[0.75,1,1.25]` or both with a comma between them; None is the image itself.

        Raises:
            ValueError: If it is something else, or a scale is not positive.
        """
        if text is None:
            return cls()
        text = str(text)
        numbers = re.search(r"scales=\[([^\]]*)\]", text)
        rest = [word.strip() for word in text.replace(numbers[0] if numbers else "", "").split(",") if word.strip()]
        try:
            scales = tuple(float(number) for number in numbers[1].split(",")) if numbers else (1.0,)
        except ValueError:
            scales = ()
        if set(rest) - {"flip"} or not scales or not all(0 < scale <= _MAX_SCALE for scale in scales):
            raise UserError(
                f"--tta must be flip, scales=[0.75,1,1.25] or scales=[...],flip, with scales up to {_MAX_SCALE}, got "
                f"{text!r}."
            )
        return cls(scales, "flip" in rest)

    @property
    def option(self) -> str | None:
        """Return the text that `parse` reads; None for the image itself."""
        scales = f"scales=[{','.join(f'{scale:g}' for scale in self.scales)}]" if self.scales != (1.0,) else ""
        return ",".join(filter(None, [scales, "flip" if self.flip else ""])) or None

    def single(self) -> list[View]:
        """Return the views one by one."""
        return [
            View(scale, is_flipped)
            for scale in self.scales
            for is_flipped in ((False, True) if self.flip else (False,))
        ]

    def __str__(self) -> str:
        scales = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}" if self.scales != (1.0,) else ""
        return " and ".join(filter(None, [scales, "flip" if self.flip else ""]))


_MAX_SCALE = 4


class Ensemble(nn.Module):
    """Average the softmax probabilities of networks over the views of an image, at the image's own size.

    It stands in for a `DeepLab` in evaluation: its output is the logarithm of the mean, whose softmax is the mean
    itself, so labels, losses and the CRF see the averaged probabilities.

    Args:
        nets: Networks of the same classes and channels; each prepares images in its own way.
        views: The views.
        weights: Weight of each network in the mean, positive; equal ones if None.

    Raises:
        ValueError: If there is no network, they differ in classes or channels, or the weights cannot be used.
    """

    def __init__(
        self,
        nets: Sequence[DeepLab],
        views: Views = Views(),  # noqa: B008
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not nets:
            raise UserError("an ensemble needs at least one network.")
        first = nets[0]
        for net in nets[1:]:
            if (net.num_classes, net.class_names, net.in_channels) != (
                first.num_classes,
                first.class_names,
                first.in_channels,
            ):
                raise UserError(
                    f"the networks of an ensemble must have the same classes and channels, got {_described(first)} and "
                    f"{_described(net)}."
                )
            if _values(net) != _values(first):
                raise UserError(
                    "the networks of an ensemble must read images alike, got value_range and nodata "
                    f"{', '.join(map(str, _values(first)))} and {', '.join(map(str, _values(net)))}."
                )
        self.weights = [1.0] * len(nets) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(nets) or not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(
                "--ensemble_weights needs a positive number for --ckpt_path and for each checkpoint of --ensemble, "
                f"{len(nets)} in all, got {list(weights or ())}."
            )
        self.nets, self.views = nn.ModuleList(nets), views
        self.num_classes, self.in_channels = first.num_classes, first.in_channels
        self.preprocess = first.preprocess
        if len({net.preprocess.max_size for net in nets}) > 1:  # each shrinks the whole image itself
            self.preprocess = copy.copy(first.preprocess)
            self.preprocess.max_size = None
        self.class_names, self.palette = first.class_names, first.palette

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logarithm of the mean probabilities (B, K, H, W) of images (B, C, H, W) uint8."""
        total: Tensor | None = None
        for view in self.views.single():
            probabilities = self.of_view(images, view)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total.div_(len(self.views.single())).clamp_min_(torch.finfo(total.dtype).tiny).log_()

    def of_view(self, images: Tensor, view: "View") -> Tensor:
        """Compute the weighted mean of the networks' probabilities (B, K, H, W) for one view of images."""
        size = (images.shape[-2], images.shape[-1])
        total: Tensor | None = None
        for net, weight in zip(self.nets, self.weights, strict=True):
            assert isinstance(net, DeepLab)
            prepared = net.preprocess(images)
            seen = prepared if view.scale == 1 else resize(prepared, _scaled(prepared, view.scale))
            logits = net(seen.flip(-1)).flip(-1) if view.is_flipped else net(seen)
            probabilities = resize(logits.float(), size).softmax(dim=1).mul_(weight)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total.div_(sum(self.weights))

    def describe(self) -> dict[str, Any]:
        """Return what is averaged, for a record."""
        weights = {"weights": self.weights} if len(set(self.weights)) > 1 else {}
        return {"networks": len(self.nets), "scales": list(self.views.scales), "flip": self.views.flip, **weights}


def _scaled(images: Tensor, scale: float) -> tuple[int, int]:
    return max(1, round(images.shape[-2] * scale)), max(1, round(images.shape[-1] * scale))


def _values(net: DeepLab) -> tuple[Any, Any]:
    """Return the range of the values that a network's images are scaled from, and the value of those not measured."""
    image_format = net.preprocess.image_format or {}
    return image_format.get("value_range"), image_format.get("nodata")


def _described(net: DeepLab) -> str:
    names = net.class_names or [f"{net.num_classes} unnamed"]
    return f"the classes {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} on {net.in_channels} channels"
