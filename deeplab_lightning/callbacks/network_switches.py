"""Compile the network of a training, or let it compute its activations twice to save memory."""

from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.saving import uncompiled

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class CompileNetwork(L.Callback):
    """Compile the backbone and the head in place with `torch.compile`; the names of the weights stay.

    The steps of a training are compiled, at the first step; validation, whose images may have many sizes, is not.

    Args:
        mode: See `torch.compile`.
        backend: See `torch.compile`.
    """

    def __init__(self, *, mode: CompileMode = "default", backend: str = "inductor") -> None:
        if backend not in torch.compiler.list_backends(exclude_tags=()):
            known = ", ".join(torch.compiler.list_backends(exclude_tags=()))
            raise UserError(f"CompileNetwork: backend must be one of {known}, got {backend!r}.")
        self.mode, self.backend = mode, backend

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compile the parts; nothing is computed before the first step."""
        if stage != "fit":
            return
        net = uncompiled(pl_module.net)
        for part in (net.backbone, net.head):
            part.compile(backend=self.backend, mode=None if self.mode == "default" else self.mode)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute without compiled code."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with compiled code."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the process as it was, also after a validation that failed."""
        torch.compiler.set_stance("default")


class GradientCheckpointing(L.Callback):
    """Keep only the inputs of the backbone's blocks for the backward pass, which computes the rest again.

    It takes less memory and one more forward pass of the backbone, with the same gradients (Chen et al. 2016,
    arXiv:1604.06174). The statistics of batch norms are updated
    in both passes, so that they follow the batches faster. For backbones of timm.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Switch it on.

        Raises:
            ValueError: If the backbone has no such switch.
        """
        if stage != "fit":
            return
        backbone = uncompiled(pl_module.net).backbone
        switch = getattr(getattr(backbone, "net", None), "set_grad_checkpointing", None)
        if switch is None:
            raise UserError(
                f"GradientCheckpointing: {type(backbone).__name__} cannot do it; take a backbone of timm, such as "
                "resnet50 or tf_efficientnet_b3."
            )
        switch(True)
        rank_zero_info("Gradient checkpointing: the backbone's activations are computed again in the backward pass.")
