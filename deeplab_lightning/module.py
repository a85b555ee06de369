"""Network, loss and optimiser as a LightningModule."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deeplab_lightning.batch import Batch
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.metrics import BoundaryCounts, ConfusionMatrix, image_matrices, iou_by_name, summarize
from deeplab_lightning.models.deeplab import DeepLab, TrainingLogits
from deeplab_lightning.models.evaluation import EvaluationCopies
from deeplab_lightning.models.hub import RESTORED_ARGUMENTS
from deeplab_lightning.optimizers import PolyLR, parameter_groups
from deeplab_lightning.resizing import resize, resized_labels

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
CLASSES_KEY = "classes"
"""Where a checkpoint holds the class table, as plain lists."""
Postprocess = nn.Module | Callable[..., Any]
"""(images (B, 3, H, W) uint8, logits (B, K, H, W)) -> labels (B, H, W) or probabilities (B, K, H, W)."""


def default_optimizer(params: Iterable[Any]) -> Optimizer:
    """DeepLab's SGD with momentum."""
    return SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


class SegmentationModule(L.LightningModule):
    """Trains and evaluates a DeepLab.

    Pictures come as uint8 and are normalised on the device with the backbone's own mean and std. Metrics
    are those of one confusion matrix over the whole set, see `deeplab_lightning.metrics`.

    Args:
        net: The network; it names its backbone's mean and std and its number of classes.
        loss: Module of (logits (B, K, H, W), mask (B, H, W) int64) -> scalar, that ignores 255;
            `CrossEntropyLoss()` if null.
        optimizer: Called with the parameter groups; its learning rate is the backbone's. SGD with rate
            0.01, momentum 0.9 and weight decay 1e-4 if null.
        lr_scheduler: Called with the optimiser and the number of optimiser steps of the whole training;
            stepped once per step. Constant rate if null.
        classes: Class table of the data; numbered names if null.
        head_lr_multiplier: Learning rate of the head's weights over the backbone's.
        head_bias_lr_multiplier: Learning rate of the head's biases over the backbone's.
        postprocess: What becomes of the logits in test and prediction, such as `DenseCRF`: called with the
            pictures, (B, 3, H, W) uint8, and their logits (B, K, H, W), it gives labels (B, H, W) or
            probabilities (B, K, H, W). Validation, which chooses the checkpoint, leaves it out. The
            highest logit's class if null.
        channels_last: Keep tensors in channels-last memory, faster on GPUs with tensor cores and up to
            4 times on CPUs.

    Raises:
        ValueError: If network and class table differ in the number of classes, or the loss ignores
            another value than 255.
    """

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
    ) -> None:
        super().__init__()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.classes = classes or ClassTable([f"class_{i}" for i in range(net.num_classes)])
        if self.classes.num_classes != net.num_classes:
            raise ValueError(f"the network has {net.num_classes} classes, the class table {self.classes.num_classes}.")
        self.loss = loss or CrossEntropyLoss()
        ignored = getattr(self.loss, "ignore_index", self.classes.ignore_index)
        if ignored != self.classes.ignore_index:
            raise ValueError(f"the loss ignores {ignored}, but void is {self.classes.ignore_index}: set ignore_index.")
        self.optimizer_factory, self.scheduler_factory = optimizer or default_optimizer, lr_scheduler
        self.head_lr_multiplier, self.head_bias_lr_multiplier = head_lr_multiplier, head_bias_lr_multiplier
        self.postprocess = postprocess
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.register_buffer("pixel_mean", _per_channel(net.backbone.mean), persistent=False)
        self.register_buffer("pixel_std", _per_channel(net.backbone.std), persistent=False)
        self.confusion = nn.ModuleDict({stage: ConfusionMatrix(net.num_classes) for stage in ("val", "test")})
        self.boundary = BoundaryCounts(net.num_classes)  # of test; validation, after every epoch, is to be quick
        self.image_matrices: list[tuple[str, Tensor]] = []
        """Name and (K, K) counts of each picture that this process evaluated last."""
        self._copies: EvaluationCopies | None = None
        self._evaluated: tuple[DeepLab] | None = None  # in a tuple: its weights are no part of the module's
        self.config: dict[str, Any] | None = None
        """The resolved configuration, set by the command line and stored in checkpoints."""

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        """images: (B, 3, H, W), uint8 or normalised float -> logits (B, K, H, W) float; in training with further
        outputs, if the network has them."""
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        return self._net_in_use()(images)  # type: ignore[no-any-return]

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> float, zero mean and unit deviation by the backbone's statistics."""
        scaled = (images.float() - self.pixel_mean) / self.pixel_std
        dtype = next(self.net.parameters()).dtype  # not float32 with precision bf16-true
        return scaled.to(dtype).contiguous(memory_format=self.memory_format)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss, _ = self._shared_step(batch)
        self.log("train/loss", loss, batch_size=len(batch.image), on_step=True, prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Count one loader batch, picture sizes apart."""
        self._evaluate(batches, "val")

    def test_step(self, batches: list[Batch], batch_idx: int) -> None:
        """As `validation_step`."""
        self._evaluate(batches, "test")

    def predict_step(self, batches: list[Batch], batch_idx: int) -> list[tuple[str, Tensor]]:
        """Name and (h, w) uint8 train ids of each picture, at the size of its file."""
        predictions = []
        for batch in batches:
            scores = self.scores(batch.image)  # (B, K, h, w)
            assert isinstance(scores, Tensor)
            shown = (batch.image.shape[-2], batch.image.shape[-1])
            for index, (name, size) in enumerate(zip(batch.names, batch.sizes, strict=True)):
                own = scores[index : index + 1]
                if self.postprocess is None:
                    labels = resized_labels(own if size == shown else resize(own.float(), shown), size)
                else:
                    labels = self._postprocessed(batch.image[index : index + 1], own, size)
                predictions.append((name, labels[0].cpu()))
        return predictions

    def on_validation_epoch_start(self) -> None:
        """Forget the pictures of the epoch before; take the weights of now."""
        self.image_matrices.clear()
        self._copy_for_evaluation()

    def on_test_epoch_start(self) -> None:
        """As `on_validation_epoch_start`."""
        self.on_validation_epoch_start()

    def on_predict_epoch_start(self) -> None:
        """As `on_validation_epoch_start`."""
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole validation set."""
        self._evaluated = None
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole test set."""
        self._evaluated = None
        self.log("test/boundary_iou", self.boundary.compute().nanmean())
        self.boundary.reset()
        self._log_metrics("test")

    def on_predict_epoch_end(self) -> None:
        """Forget the copy."""
        self._evaluated = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Parameter groups with their multipliers; the schedule over the trainer's real number of steps."""
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
            raise ValueError("a schedule needs an end: set trainer.max_epochs or max_steps, or lr_scheduler to null.")
        scheduler = self.scheduler_factory(optimizer, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the module: class table and configuration, as plain values.

        The stored configuration says `pretrained: false` and `weights: null`: the checkpoint holds all
        weights, so that loading it asks no hub.
        """
        checkpoint[CLASSES_KEY] = self.classes.to_dict()
        if self.config is not None:
            checkpoint["config"] = self.config
            checkpoint["hparams_name"] = "kwargs"
            checkpoint["hyper_parameters"] = self._rebuilding_arguments()

    def _rebuilding_arguments(self) -> dict[str, Any]:
        assert self.config is not None
        arguments: dict[str, Any] = dict(self.config["model"])
        net = dict(arguments["net"])
        init_args = {**net.get("init_args", {}), "num_classes": self.net.num_classes}
        init_args |= {key: value for key, value in RESTORED_ARGUMENTS.items() if key in init_args}
        arguments["net"] = {**net, "init_args": init_args}
        arguments["classes"] = self.classes.to_dict()
        return {**arguments, "_instantiator": "lightning.pytorch.cli.instantiate_module"}

    def _copy_for_evaluation(self) -> None:
        """Take a quicker copy of the weights of now, on a CPU. Elsewhere it was not measured, and would take memory."""
        if not all(p.dtype == torch.float32 and p.device.type == "cpu" for p in self.net.parameters()):
            self._evaluated = None
            return
        self._copies = self._copies or EvaluationCopies(self.net)
        copy = self._copies.make(self.net)
        self._evaluated = None if copy is None else (copy,)

    def _net_in_use(self) -> DeepLab:
        if self.training or self._evaluated is None:
            return self.net
        trainer = self._trainer  # after an evaluation that was interrupted, the copy is of the past
        is_evaluating = trainer is None or trainer.evaluating or trainer.predicting
        return self._evaluated[0] if is_evaluating else self.net

    def scores(self, images: Tensor) -> Tensor | TrainingLogits:
        """As `forward`, but before the resize to the input's size: (B, K, h, w)."""
        if type(self.net).forward is not DeepLab.forward:
            return self(images)  # type: ignore[no-any-return]
        return self._net_in_use().scores(self.normalize(images) if images.dtype == torch.uint8 else images)

    def _output(self, images: Tensor) -> Tensor | TrainingLogits:
        """Logits at the full size, or scores before the resize where the loss goes through them a tile at a time."""
        # A subclass may count on logits at the full size, or have a way of its own to them.
        if not isinstance(self.loss, CrossEntropyLoss) or type(self.loss).forward is not CrossEntropyLoss.forward:
            return self(images)  # type: ignore[no-any-return]
        # On a GPU tiles save memory; whether they save time was not measured.
        has_tiles = self.loss.band_rows is not None or images.device.type == "cpu"
        is_plain = type(self).forward is SegmentationModule.forward
        return self.scores(images) if has_tiles and is_plain else self(images)  # type: ignore[no-any-return]

    def _shared_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of one batch, further outputs included, and its logits (B, K, H, W), or its scores before the resize."""
        assert batch.mask is not None
        mask = batch.mask.long()
        output = self._output(batch.image)
        if not isinstance(self.loss, CrossEntropyLoss) and not (mask != self.classes.ignore_index).any():
            logits = output if isinstance(output, Tensor) else output.logits
            return logits.sum() * 0.0, logits  # other losses fail, or give nan, where nothing counts
        if isinstance(output, Tensor):
            return self.loss(output, mask), output
        further = [weight * self.loss(logits, mask) for weight, logits in output.auxiliary]
        return self.loss(output.logits, mask) + sum(further), output.logits

    def _evaluate(self, batches: list[Batch], stage: str) -> None:
        for batch in batches:
            loss, scores = self._shared_step(batch)
            assert batch.mask is not None
            size = (batch.mask.shape[-2], batch.mask.shape[-1])
            if self.postprocess is None or stage == "val":
                labels = resized_labels(scores, size)  # (B, H, W)
            else:
                labels = self._postprocessed(batch.image, scores, size)
            if stage == "test":
                self.boundary.update(labels, batch.mask)
            matrices = image_matrices(labels, batch.mask, self.net.num_classes)  # (B, K, K)
            self.confusion[stage].update(matrices)  # type: ignore[operator]
            self.image_matrices.extend(zip(batch.names, matrices.cpu(), strict=True))
            # Averaged over pictures and, at the epoch's end, over processes; no collective in a step.
            self.log(f"{stage}/loss", loss, batch_size=len(batch.image), on_epoch=True, sync_dist=True)

    def _postprocessed(self, images: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """What `postprocess` makes of (B, 3, H, W) uint8 and (B, K, h, w), as (B, *size) uint8."""
        assert self.postprocess is not None
        result: Tensor = self.postprocess(images, resize(scores.float(), (images.shape[-2], images.shape[-1])))
        if result.is_floating_point() and result.ndim == 4:
            return resized_labels(result, size)
        if result.is_floating_point() or result.ndim != 3:
            raise ValueError(
                "postprocess must give integer labels (B, H, W) or probabilities (B, K, H, W), got "
                f"{tuple(result.shape)} {result.dtype}."
            )
        return F.interpolate(result[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.uint8)

    def _log_metrics(self, stage: str) -> None:
        confusion = self.confusion[stage]
        # torchmetrics makes a scalar of one class.
        matrix = confusion.compute().reshape(self.net.num_classes, -1)  # type: ignore[operator]
        confusion.reset()  # type: ignore[operator]
        figures = summarize(matrix)
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items() if name != "miou"})
        self.log(f"{stage}/miou", figures["miou"], prog_bar=True)
        per_class = iou_by_name(matrix, self.classes.names)
        self.log_dict({f"{stage}/iou/{name}": value for name, value in per_class.items()})
        self.last_matrix = matrix


def _per_channel(values: tuple[float, ...]) -> Tensor:
    """Three fractions of 1 as (1, 3, 1, 1) on the scale of 0-255."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) * 255
