"""Group the parameters of a network for the optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from torch import nn
from torch.optim import SGD, Optimizer

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.models.stages import stage_numbers
from deeplab_lightning.schedules import PolyLR as PolyLR  # its place in configurations of earlier versions

_ENDS = ("", "_no_decay")  # of the names of groups: weights; biases and normalisation layers
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Function of the parameter groups that returns an optimiser."""


def default_optimizer(params: Iterable[Any]) -> Optimizer:
    """Build DeepLab's SGD with momentum."""
    return SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


def build_optimizer(factory: OptimizerFactory, groups: list[dict[str, Any]]) -> Optimizer:
    """Build an optimiser over groups of parameters.

    Args:
        factory: Function of the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: If it takes no groups, or no parameters of their shapes.
    """
    try:
        optimizer = factory(groups)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"model.optimizer cannot be built over the groups of parameters ({' '.join(str(error).split())}). Take one "
            "that has a learning rate for each group, such as AdamW or SGD, with arguments that it knows."
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    return optimizer


def parameter_groups(
    net: DeepLab,
    *,
    head_lr_multiplier: float,
    head_bias_lr_multiplier: float,
    backbone_lr_decay: float = 1.0,
    loss: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Group the parameters of a network, and of a loss that has some, by learning rate and weight decay.

    The backbone has the base learning rate, and the head's weights and biases have multiples of it: DeepLab v2 (section
    4.1) trains the new layers with 10 times the rate and their biases with 20 times. Biases and normalisation layers
    have no weight decay. Frozen parameters are in their groups too: they get no gradient and do not change, until a
    callback such as one of Lightning's `BaseFinetuning` makes them trainable.

    Args:
        net: Network of a backbone and a head; also compiled, or in a wrapper such as `DataParallel`.
        head_lr_multiplier: Learning rate of the head's weights, as a multiple of the backbone's.
        head_bias_lr_multiplier: Learning rate of the head's biases, as a multiple of the backbone's.
        backbone_lr_decay: Learning rate of each stage of the backbone, as a multiple of the next stage's; the last one
            has the backbone's. 1 trains all stages alike.
        loss: Loss; trainable parameters of its own have the rate of the head's weights, and no weight decay.

    Returns:
        Groups with `params`, `name`, `lr_multiplier` and, where decay is off, `weight_decay: 0`.
    """
    # By identity: torch.compile and wrappers of several devices put a prefix before the names.
    backbone = getattr(net, "module", net).backbone
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    in_norms = {id(p) for m in net.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    last, stages = len(backbone.channels), {} if backbone_lr_decay == 1 else stage_numbers(backbone)
    of_backbone = {f"backbone_stage_{stage}": backbone_lr_decay ** (last - stage) for stage in range(1, last + 1)}
    multipliers = {
        **{
            f"{name}{end}": rate
            for name, rate in (of_backbone if stages else {"backbone": 1.0}).items()
            for end in _ENDS
        },
        "head": head_lr_multiplier,
        "head_norm": head_lr_multiplier,
        "head_bias": head_bias_lr_multiplier,
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in multipliers}
    for name, parameter in net.named_parameters():
        is_norm, is_bias = id(parameter) in in_norms, name.endswith("bias")
        if id(parameter) in in_backbone:
            own = f"backbone_stage_{stages[id(parameter)]}" if stages else "backbone"
            members[own + _ENDS[is_norm or is_bias]].append(parameter)
        elif is_norm:
            members["head_norm"].append(parameter)
        else:
            members["head_bias" if is_bias else "head"].append(parameter)
    groups = []
    for name, parameters in members.items():
        group: dict[str, Any] = {"params": parameters, "name": name, "lr_multiplier": multipliers[name]}
        if name.endswith(("_no_decay", "_norm", "_bias")):
            group["weight_decay"] = 0.0
        if parameters:
            groups.append(group)
    in_net = {id(parameter) for parameter in net.parameters()}
    trained = [parameter for parameter in (loss.parameters() if loss else ()) if parameter.requires_grad]
    if of_loss := [parameter for parameter in trained if id(parameter) not in in_net]:
        groups.append({"params": of_loss, "name": "loss", "lr_multiplier": head_lr_multiplier, "weight_decay": 0.0})
    return groups


def batch_size_factor(base: int | None, trainer: L.Trainer | None) -> float:
    """Compute the factor of learning rates that are meant for another number of images per optimiser step.

    It is the ratio of the numbers (Goyal et al. 2017, section 2.1). A schedule with rates of its own, such as
    OneCycleLR's `max_lr`, is not scaled.

    Args:
        base: Images per step that the rates are meant for; no scaling if None.
        trainer: Trainer with a data module; no scaling without a trainer.

    Raises:
        UserError: If the images per step are unknown.
    """
    if base is None or trainer is None:
        return 1.0
    if (images := images_per_step(trainer)) is None:
        raise UserError("base_batch_size needs a data module with a batch_size, such as SegmentationDataModule.")
    return images / base


def images_per_step(trainer: L.Trainer) -> int | None:
    """Return the images per optimiser step of all processes; None without a data module that has a batch size."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not isinstance(batch_size, int):  # those of users may hold anything
        return None
    return batch_size * max(trainer.accumulate_grad_batches, 1) * trainer.world_size
