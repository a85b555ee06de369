"""Find the parameters of a backbone's stages."""

import torch
from torch import nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.backbone import Backbone

_PROBE_SIZE = 64  # pixels


def stage_parameters(backbone: Backbone, stages: int | None) -> list[nn.Parameter]:
    """Return the parameters that the map of a backbone's stage depends on: those of the stages up to it.

    Args:
        backbone: The backbone.
        stages: Number of the stage, from 1; None for all parameters.

    Raises:
        ValueError: If the backbone has fewer stages.
    """
    parameters = list(backbone.parameters())
    if stages is None:
        return parameters
    if stages > len(backbone.channels):
        raise UserError(f"stages must be at most {len(backbone.channels)}, those of the backbone, got {stages}.")
    trained, trains = {id(p): p.requires_grad for p in parameters}, backbone.training
    images = torch.zeros(1, backbone.in_channels, _PROBE_SIZE, _PROBE_SIZE, device=parameters[0].device)
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        feature = backbone.eval()(images.to(parameters[0].dtype))[stages - 1]
        gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    for parameter in parameters:
        parameter.requires_grad_(trained[id(parameter)])
    backbone.train(trains)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def stage_numbers(backbone: Backbone) -> dict[int, int]:
    """Return the number of the first stage, from 1, that each parameter belongs to, by the parameter's `id`.

    Parameters that no feature map depends on belong to the last stage.
    """
    last = len(backbone.channels)
    numbers: dict[int, int] = {}
    for stage in range(1, last + 1):
        for parameter in stage_parameters(backbone, stage):
            numbers.setdefault(id(parameter), stage)
    return {id(parameter): numbers.get(id(parameter), last) for parameter in backbone.parameters()}
