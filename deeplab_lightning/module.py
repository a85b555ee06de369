"""Network, loss and optimiser as a LightningModule."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from deeplab_lightning import kernels
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.errors import UserError
from deeplab_lightning.labels import Postprocess, find_labels
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.metrics.boundary import BoundaryCounts
from deeplab_lightning.metrics.confusion import ConfusionMatrix, per_image_confusion
from deeplab_lightning.metrics.iou import class_iou, summarize
from deeplab_lightning.models.deeplab import DeepLab, TrainingLogits
from deeplab_lightning.models.saving import NO_PRETRAINED
from deeplab_lightning.optimizers import (
    OptimizerFactory,
    PolyLR,
    SchedulerFactory,
    default_optimizer,
    parameter_groups,
)

CLASSES_KEY = "classes"
"""Key of the class table in a checkpoint, as plain lists."""


class SegmentationModule(L.LightningModule):
    """Trains and evaluates a DeepLab.

    Images arrive as uint8 and are normalised on the device with the backbone's mean and std. Metrics come from one
    confusion matrix over the whole set, see `deeplab_lightning.metrics`.

    Args:
        net: The network; it holds its backbone's mean and std and its number of classes.
        loss: Module of (logits (B, K, H, W), mask (B, H, W) int64) -> scalar that ignores 255;
            `CrossEntropyLoss()` if null.
        optimizer: Called with the parameter groups; its learning rate is the backbone's. SGD with rate
            0.01, momentum 0.9 and weight decay 1e-4 if null.
        lr_scheduler: Called with the optimiser and the number of optimiser steps of the whole training;
            stepped once per step. Constant rate if null.
        classes: Class table of the data; numbered names if null.
        head_lr_multiplier: Learning rate of the head's weights over the backbone's.
        head_bias_lr_multiplier: Learning rate of the head's biases over the backbone's.
        postprocess: Turns logits into labels in test and prediction, such as `DenseCRF`: called with images
            (B, 3, H, W) uint8 and their logits (B, K, H, W), it returns labels (B, H, W) or probabilities
            (B, K, H, W). Validation, which chooses the checkpoint, does without it. The class of the highest
            logit if null.
        channels_last: Keep tensors in channels-last memory, faster on GPUs with tensor cores and up to
            4 times on CPUs.
        cpu_kernels: Use the package's own kernels where the trainer computes on a CPU; false leaves everything to
            PyTorch, whose depthwise gradients are wrong there in bf16. See `deeplab_lightning.kernels`.

    Raises:
        ValueError: If network and class table differ in the number of classes, or the loss ignores
            another value than 255.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        net: DeepLab,
        loss: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = PolyLR,
        *,
        classes: ClassTable | None = None,
        head_lr_multiplier: float = 10.0,
        head_bias_lr_multiplier: float = 20.0,
        postprocess: Postprocess | None = None,
        channels_last: bool = True,
        cpu_kernels: bool = True,
    ) -> None:
        super().__init__()
        self.classes = classes or ClassTable([f"class_{i}" for i in range(net.num_classes)])
        if self.classes.num_classes != net.num_classes:
            raise UserError(f"the network has {net.num_classes} classes, the class table {self.classes.num_classes}.")
        self.loss = loss or CrossEntropyLoss()
        ignored = getattr(self.loss, "ignore_index", self.classes.ignore_index)
        if ignored != self.classes.ignore_index:
            raise UserError(f"the loss ignores {ignored}, but void is {self.classes.ignore_index}: set ignore_index.")
        self.optimizer_factory, self.scheduler_factory = optimizer or default_optimizer, lr_scheduler
        self.head_lr_multiplier, self.head_bias_lr_multiplier = head_lr_multiplier, head_bias_lr_multiplier
        self.postprocess = postprocess
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.register_buffer("pixel_mean", _per_channel(net.backbone.mean), persistent=False)
        self.register_buffer("pixel_std", _per_channel(net.backbone.std), persistent=False)
        self.confusion = nn.ModuleDict({stage: ConfusionMatrix(net.num_classes) for stage in ("val", "test")})
        self.boundary = BoundaryCounts(net.num_classes)  # in test only: validation runs after every epoch
        self.per_image: list[tuple[str, Tensor]] = []
        """Name and (K, K) counts of each image that this process evaluated last."""
        self.cpu_kernels, self.door = cpu_kernels, kernels.Door()
        self.config: dict[str, Any] | None = None
        """The resolved configuration, set by the command line and stored in checkpoints."""

    def setup(self, stage: str) -> None:
        """Open the door to the CPU kernels, if the trainer computes on a CPU."""
        device = self.trainer.strategy.root_device
        self.door = kernels.open_door(self.net, device, is_wanted=self.cpu_kernels)

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute logits (B, K, H, W) float of images (B, 3, H, W), uint8 or normalised float.

        In training, further outputs come with them if the network has any.
        """
        return self.net(self.normalize(images))  # type: ignore[no-any-return]

    def coarse_logits(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute what `forward` does before the resize to the images' size: logits (B, K, h, w)."""
        return self.net.coarse_logits(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Convert (B, 3, H, W) uint8 RGB to float of zero mean and unit deviation; float stays as it is."""
        if images.dtype != torch.uint8:
            return images
        scaled = (images.float() - self.pixel_mean) / self.pixel_std
        dtype = next(self.net.parameters()).dtype  # not float32 with precision bf16-true
        return scaled.to(dtype).contiguous(memory_format=self.memory_format)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch."""
        loss, _ = self.compute_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch.image), on_step=True, prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Count the pixels of one loader batch, which holds a batch per image size."""
        self._evaluate(batches, "val")

    def test_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Count the pixels of one loader batch."""
        self._evaluate(batches, "test")

    def predict_step(self, batches: list[Batch], batch_idx: int) -> list[tuple[str, Tensor]]:
        """Return name and (h, w) uint8 train ids of each image, at the size of its file."""
        predictions = []
        for batch in batches:
            logits = self.door.logits(self, batch.image)  # (B, K, h, w)
            for index, (name, size) in enumerate(zip(batch.names, batch.sizes, strict=True)):
                image, own = batch.image[index : index + 1], logits[index : index + 1]
                labels = find_labels(own, image, size, door=self.door, postprocess=self.postprocess)
                predictions.append((name, labels[0].cpu()))
        return predictions

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch, further outputs included, and its logits (B, K, h, w)."""
        assert batch.mask is not None
        mask = batch.mask.long()
        output = self.door.logits(self, batch.image, self.loss)
        logits, auxiliary = (output, []) if isinstance(output, Tensor) else output
        if not (mask != self.classes.ignore_index).any():
            return logits.sum() * 0.0, logits  # many losses fail, or give nan, if no pixel counts
        further = [weight * self.loss(other, mask) for weight, other in auxiliary]
        return self.loss(logits, mask) + sum(further), logits

    def on_validation_epoch_start(self) -> None:
        """Forget the images of the previous epoch."""
        self.per_image.clear()

    def on_test_epoch_start(self) -> None:
        """Forget the images of the previous epoch."""
        self.per_image.clear()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test set."""
        self.log("test/boundary_iou", self.boundary.compute().nanmean())
        self.boundary.reset()
        self._log_metrics("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build parameter groups with their multipliers, and the schedule over the trainer's number of steps."""
        groups = parameter_groups(
            self.net,
            head_lr_multiplier=self.head_lr_multiplier,
            head_bias_lr_multiplier=self.head_bias_lr_multiplier,
        )
        optimizer = self.optimizer_factory(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_multiplier"]
        if self.scheduler_factory is None:
            return optimizer
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise UserError("a schedule needs an end: set trainer.max_epochs or max_steps, or lr_scheduler to null.")
        scheduler = self.scheduler_factory(optimizer, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store class table and configuration as plain values, from which `load_from_checkpoint` rebuilds the module.

        The stored configuration says `pretrained: false` and `weights: null`: the checkpoint holds all
        weights, so loading it asks no hub.
        """
        checkpoint[CLASSES_KEY] = self.classes.to_dict()
        if self.config is not None:
            checkpoint["config"] = self.config
            checkpoint["hparams_name"] = "kwargs"
            checkpoint["hyper_parameters"] = self._rebuilding_arguments(self.config["model"])

    def _rebuilding_arguments(self, model: dict[str, Any]) -> dict[str, Any]:
        init_args = {**model["net"].get("init_args", {}), "num_classes": self.net.num_classes}
        init_args |= {key: value for key, value in NO_PRETRAINED.items() if key in init_args}
        arguments = {**model, "net": {**model["net"], "init_args": init_args}, "classes": self.classes.to_dict()}
        return {**arguments, "_instantiator": "lightning.pytorch.cli.instantiate_module"}

    def _evaluate(self, batches: list[Batch], stage: str) -> None:
        for batch in batches:
            assert batch.mask is not None
            loss, logits = self.compute_loss(batch)
            size = (batch.mask.shape[-2], batch.mask.shape[-1])
            postprocess = self.postprocess if stage == "test" else None
            labels = find_labels(logits, batch.image, size, door=self.door, postprocess=postprocess)
            if stage == "test":
                self.boundary.update(labels, batch.mask)
            matrices = per_image_confusion(labels, batch.mask, self.net.num_classes)  # (B, K, K)
            self.confusion[stage].update(matrices)  # type: ignore[operator]
            self.per_image.extend(zip(batch.names, matrices.cpu(), strict=True))
            # Averaged over images and, at the epoch's end, over processes; no collective in a step.
            self.log(f"{stage}/loss", loss, batch_size=len(batch.image), on_epoch=True, sync_dist=True)

    def _log_metrics(self, stage: str) -> None:
        confusion = self.confusion[stage]
        # torchmetrics turns the matrix of one class into a scalar.
        matrix = confusion.compute().reshape(self.net.num_classes, -1).cpu()  # type: ignore[operator]
        confusion.reset()  # type: ignore[operator]
        figures = summarize(matrix.numpy())
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items() if name != "miou"})
        self.log(f"{stage}/miou", figures["miou"], prog_bar=True)
        per_class = zip(self.classes.names, class_iou(matrix.numpy()).tolist(), strict=True)
        self.log_dict({f"{stage}/iou/{name}": value for name, value in per_class})
        self.last_matrix = matrix


def _per_channel(values: tuple[float, ...]) -> Tensor:
    """Return three fractions of 1 as (1, 3, 1, 1) on the scale of 0-255."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) * 255
