"""Which layer works on what a convolution gives, seen from the tensors that pass between them."""

import copy
from collections import Counter
from collections.abc import Callable

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from deeplab_lightning.models.atrous import AtrousConv2d
from deeplab_lightning.models.depthwise import DepthwiseConv2d, DepthwiseConv2dSame

CONVOLUTIONS = (nn.Conv2d, Conv2dSame, AtrousConv2d, DepthwiseConv2d, DepthwiseConv2dSame)
"""Those that are their weights and nothing more; other classes may do something of their own with them."""
Pair = tuple[str, str]
"""Names of a convolution and of the layer after it."""
PROBE_SIZE = 64  # pixels


@torch.inference_mode(False)  # whose tensors do not count their changes
@torch.no_grad()
def followers(net: nn.Module, is_wanted: Callable[[nn.Module], bool]) -> list[Pair]:
    """Convolutions and layers where each takes what the other gives, and no other layer does.

    What is done to the tensors outside of layers is not seen, except for changes in place.

    Args:
        net: Called with (B, 3, H, W) float.
        is_wanted: Whether a layer is of the kind that is looked for.

    Returns:
        Their names.

    Raises:
        Exception: Whatever the network raises when it is copied, or run on PyTorch's meta device.
    """
    probe = copy.deepcopy(net).to("meta", torch.float32).eval()  # shapes without arithmetic
    makers: dict[int, tuple[str, int]] = {}  # by the id of what a convolution gave: its name, the tensor's version
    alive: list[Tensor] = []  # so that no two have the same id
    flows: Counter[Pair] = Counter()
    calls: Counter[str] = Counter()

    def taken(name: str, inputs: tuple[object, ...]) -> None:
        calls[name] += 1
        for given in inputs:
            if isinstance(given, Tensor) and id(given) in makers:
                maker, version = makers[id(given)]
                # What was added to it in place, the follower would see and the convolution would not.
                flows[maker, name if given._version == version else "changed"] += 1

    def made(name: str, output: Tensor) -> None:
        alive.append(output)
        makers[id(output)] = (name, output._version)

    def passed_on(output: Tensor) -> None:
        makers.pop(id(output), None)  # where a follower works in place, what it gives is the convolution's no more

    for name, module in probe.named_modules():
        if not list(module.children()) or is_wanted(module):
            module.register_forward_pre_hook(lambda _, inputs, name=name: taken(name, inputs))
        if type(module) in CONVOLUTIONS:
            module.register_forward_hook(lambda _, __, output, name=name: made(name, output))
        elif is_wanted(module):
            module.register_forward_hook(lambda _, __, output: passed_on(output))
    probe(torch.empty(1, 3, PROBE_SIZE, PROBE_SIZE, device="meta"))
    uses = Counter(conv for conv, _ in flows.elements())
    return [
        (conv, name)
        for (conv, name), count in flows.items()
        if count == calls[conv] == calls[name] == uses[conv] and is_wanted(net.get_submodule(name))
    ]
