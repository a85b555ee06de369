"""BatchNorm folded into the convolutions before it, for inference."""

import copy
from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_PROBE_SIZE = 64  # pixels
_Net = TypeVar("_Net", bound=nn.Module)


def fold_batch_norms(net: _Net) -> _Net:
    """A copy of a network for inference, in which convolutions do the work of the norms that follow them.

    In evaluation a norm is one factor and one offset per channel, which a convolution before it can take over:
    the same outputs to rounding, and a pass over every map less. Which norm follows which convolution is
    seen from the tensors that pass between them, so that it works for any backbone.

    Args:
        net: Called with (B, 3, H, W) float.

    Returns:
        The copy, in evaluation mode. Norms that follow no convolution stay as they are, and so do all norms
        of a network whose forward pass cannot run on PyTorch's meta device.
    """
    folded = copy.deepcopy(net).eval()
    for conv_name, norm_name in _pairs(folded):
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(conv, norm)  # a copy of the convolution, of its own class
        # timm's norms apply an activation too.
        after = [child for child in norm.children() if not isinstance(child, nn.Identity)]
        _replace(folded, conv_name, fused)
        _replace(folded, norm_name, nn.Sequential(*after) if len(after) != 1 else after[0])
    return folded


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of norms, where each takes what the other gives and nothing else."""
    probe = copy.deepcopy(net).to("meta", torch.float32)  # shapes without arithmetic
    makers: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that no two have the same id
    flows: Counter[tuple[str, str]] = Counter()
    calls: Counter[str] = Counter()

    def taken(name: str, inputs: tuple[object, ...]) -> None:
        calls[name] += 1
        flows.update((makers[id(given)][0], name) for given in inputs if id(given) in makers)

    def made(name: str, output: Tensor) -> None:
        makers[id(output)] = (name, output)

    for name, module in probe.named_modules():
        if not list(module.children()) or isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: taken(name, inputs))
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output, name=name: made(name, output))
    try:
        with torch.no_grad():
            probe(torch.empty(1, 3, _PROBE_SIZE, _PROBE_SIZE, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return []
    uses = Counter(conv for conv, _ in flows.elements())
    return [
        (conv, norm)
        for (conv, norm), count in flows.items()
        if count == calls[conv] == calls[norm] == uses[conv] and _is_foldable(net.get_submodule(norm))
    ]


def _is_foldable(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
