"""Count the parameters and multiply-adds of a network."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

COST_SIZE = 512  # pixels


def network_cost(net: nn.Module) -> dict[str, float]:
    """Count the parameters of a network, and its multiply-adds on one image of 512x512.

    Returns:
        `mega_parameters` in millions and `giga_macs` in 10^9.
    """
    shadow = copy.deepcopy(net).to("meta", torch.float32).eval()  # computes shapes only
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(torch.empty(1, getattr(net, "in_channels", 3), COST_SIZE, COST_SIZE, device="meta"))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return {"mega_parameters": round(parameters / 1e6, 3), "giga_macs": round(counter.get_total_flops() / 2e9, 3)}
