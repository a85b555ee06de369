"""BatchNorm folded into the convolutions before it, for inference."""

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeplab_lightning.models.followers import Pair, followers

_Net = TypeVar("_Net", bound=nn.Module)


def norms_to_fold(net: nn.Module) -> list[Pair]:
    """Names of the convolutions and of the norms that they can take over.

    Which norm follows which convolution is seen from the tensors that pass between them, so that it works for
    any backbone; see `followers`.

    Args:
        net: Called with (B, 3, H, W) float.
    """
    return followers(net, lambda module: isinstance(module, nn.BatchNorm2d) and module.running_mean is not None)


def fold_batch_norms(net: _Net, pairs: Sequence[Pair] | None = None) -> _Net:
    """A copy of a network for inference, in which convolutions do the work of the norms that follow them.

    In evaluation a norm is one factor and one offset per channel, which a convolution before it can take over:
    the same outputs to rounding, and a pass over every map less.

    Args:
        net: Called with (B, 3, H, W) float.
        pairs: `norms_to_fold(net)`, found now if None.

    Returns:
        The copy, in evaluation mode. Norms that follow no convolution stay as they are.
    """
    folded = copy.deepcopy(net).eval()
    for conv_name, norm_name in norms_to_fold(folded) if pairs is None else pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(conv, norm)  # a copy of the convolution, of its own class
        after = applied_after(norm)
        folded.set_submodule(conv_name, fused)
        folded.set_submodule(norm_name, nn.Sequential(*after) if len(after) != 1 else after[0])
    return folded


def applied_after(norm: nn.BatchNorm2d) -> list[nn.Module]:
    """What a norm applies when it has normalised: timm's have an activation of their own."""
    return [child for child in norm.children() if not isinstance(child, nn.Identity)]
