"""Compute the statistics of BatchNorm over the batches of all processes."""

import torch
from lightning.pytorch.plugins import LayerSync, TorchSyncBatchNorm
from lightning.pytorch.strategies import Strategy
from timm.layers import convert_sync_batchnorm
from torch import nn

from deeplab_lightning.errors import UserError


def keep_activations(strategy: Strategy) -> None:
    """Let a strategy that would convert BatchNorm layers by PyTorch's function use `TimmSyncBatchNorm` instead."""
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()  # type: ignore[attr-defined]


class TimmSyncBatchNorm(LayerSync):
    """Replace BatchNorm layers by synchronised ones for a training on several GPUs, activations included.

    The activations of timm's EfficientNets, MobileNets, RegNets, DenseNets and others are part of their BatchNorm
    layers. `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which Lightning's `sync_batchnorm=True` uses, drops them.
    A `SegmentationModule` is converted by this class wherever `sync_batchnorm` is true; for other modules, write
    `Trainer(plugins=[TimmSyncBatchNorm()])` and leave `sync_batchnorm` at False.
    """

    def __init__(self) -> None:
        self._originals: dict[str, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers of a model in place; they share their parameters with the originals.

        Args:
            model: The LightningModule.

        Raises:
            ValueError: If processes train on CPUs, where PyTorch has no SyncBatchNorm.
        """
        device = getattr(model, "device", None)
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if device is not None and device.type == "cpu" and is_distributed:
            raise UserError(
                "sync_batchnorm needs GPUs, but the training is on CPUs: set trainer.sync_batchnorm: false."
            )
        modules = model.named_modules(remove_duplicate=False)
        self._originals = {name: m for name, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original layers back in place, with the parameters and statistics of the trained ones.

        Args:
            model: The LightningModule that `apply` returned.
        """
        for name, original in self._originals.items():
            trained = model.get_submodule(name)
            for key, parameter in trained.named_parameters(recurse=False):
                setattr(original, key, parameter)
            for key, buffer in trained.named_buffers(recurse=False):
                setattr(original, key, buffer)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, original.train(trained.training))
        self._originals = {}
        return model
