"""Apply faster CPU kernels to an unchanged network, through one door that is open or closed.

With the door open, on a CPU:

- depthwise convolutions use gradients that oneDNN computes fast and, in bfloat16, correctly (`depthwise`);
- convolutions of large dilation run as matrix products on processors with AMX (`taps`);
- cross-entropy resizes logits and compares them with the mask tile by tile (`tiles`).

With the door closed (`model.cpu_kernels: false`, or the environment variable `DEEPLAB_CPU_KERNELS=0`) every path is
stock PyTorch. `tests/benchmarks/README.md` holds the time that each kernel saves.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from deeplab_lightning.kernels.depthwise import use_depthwise_kernels
from deeplab_lightning.kernels.taps import use_tap_convolutions
from deeplab_lightning.resizing import resized_argmax

SWITCH = "DEEPLAB_CPU_KERNELS"
"""Environment variable; 0 closes the door in every process that inherits it."""


def speed_up(net: nn.Module) -> None:
    """Replace convolutions of a network by layers that are faster on a CPU, in place.

    Names, parameters and, to rounding, outputs stay as they are. On other devices the layers compute what PyTorch's do.
    With `DEEPLAB_CPU_KERNELS=0` nothing is replaced.

    Args:
        net: Any network; its hooks, `compile` and state dict keep working.
    """
    if is_enabled():
        use_depthwise_kernels(net)
        use_tap_convolutions(net)


def is_enabled() -> bool:
    """Check whether the environment leaves the door open."""
    return os.environ.get(SWITCH, "1").lower() not in {"0", "false", "off", "no"}


class Door:
    """Compute a module's logits and labels, and leave the resize of logits to the loss or the arg-max where possible.

    Args:
        is_open: Whether the loss may resize logits in tiles.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open

    def logits(self, module: Any, images: Tensor, loss: nn.Module | None = None) -> Any:
        """Compute the logits of a batch, at full size or before a resize that can follow in tiles.

        Logits have full size if the module, the network or the loss overrides `forward`, and if module or network has
        hooks or is compiled.

        Args:
            module: A `SegmentationModule`.
            images: (B, 3, H, W) uint8.
            loss: The loss that receives the logits; None if only the arg-max does.

        Returns:
            The output of `module(images)`, or the same with logits (B, K, h, w).
        """
        is_tiled = loss is None or self.is_open or getattr(loss, "band_rows", None) is not None
        takes_coarse = loss is None or _is_declared_with_forward(type(loss), "takes_coarse_logits")
        if is_tiled and takes_coarse and _has_coarse_logits(module) and _has_coarse_logits(module.net):
            return module.coarse_logits(images)
        return module(images)

    def labels(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Find the class with the highest logit of each pixel.

        Args:
            logits: (B, K, h, w) float, K at most 255.
            size: (H, W) of the labels.

        Returns:
            (B, H, W) uint8.
        """
        return resized_argmax(logits, size)


def open_door(net: nn.Module, device: torch.device, *, is_wanted: bool) -> Door:
    """Open the door for a network on a CPU, and apply `speed_up` to the network.

    Args:
        net: The network; unchanged if the door stays closed.
        device: Device of the computation.
        is_wanted: The module's `cpu_kernels`.

    Returns:
        A door that is open on a CPU, unless `is_wanted` or the environment closes it.
    """
    is_open = is_wanted and device.type == "cpu" and is_enabled()
    if is_open:
        speed_up(net)
    return Door(is_open=is_open)


def _has_coarse_logits(module: nn.Module) -> bool:
    """Check whether a call of the module computes `coarse_logits` and a resize, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    is_plain_call = not any(hooks) and getattr(module, "_compiled_call_impl", None) is None
    return is_plain_call and _is_declared_with_forward(type(module), "coarse_logits")


def _is_declared_with_forward(kind: type, name: str) -> bool:
    """Check whether the class that defines `forward` also defines a name, since a subclass may override `forward`."""
    owner = next((c for c in kind.__mro__ if "forward" in vars(c)), kind)
    return bool(vars(owner).get(name, False))
