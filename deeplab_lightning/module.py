"""Train and evaluate a network in a LightningModule."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from deeplab_lightning import kernels
from deeplab_lightning.data.batch import Batch, Unreadable, loader_error
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.errors import UserError
from deeplab_lightning.evaluation import EvaluatedModule
from deeplab_lightning.labels import Found, Postprocess, Wanted, find_image, label_images
from deeplab_lightning.losses import CrossEntropyLoss, check_number_of_weights
from deeplab_lightning.models.deeplab import DeepLab, TrainingLogits
from deeplab_lightning.models.modes import in_evaluation
from deeplab_lightning.models.saving import uncompiled
from deeplab_lightning.models.weights import compare_classes
from deeplab_lightning.optimizers import (
    OptimizerFactory,
    batch_size_factor,
    build_optimizer,
    default_optimizer,
    parameter_groups,
)
from deeplab_lightning.schedules import Interval, PolyLR, SchedulerFactory, schedule_config
from deeplab_lightning.sync_batchnorm import keep_activations


class SegmentationModule(EvaluatedModule):
    """Train and evaluate a DeepLab.

    Images arrive as uint8 and are normalised on the device. Metrics are computed from one confusion matrix over the
    whole set, see `deeplab_lightning.metrics`. `predict` finds the labels of images, as `deeplab predict` does.

    Args:
        net: Network; its `preprocess` normalises the images.
        loss: Module of (logits (B, K, H, W), mask (B, H, W) int64) -> scalar that ignores 255; cross-entropy if null.
        optimizer: Function of the parameter groups; its learning rate is the backbone's. SGD with rate 0.01, momentum
            0.9 and weight decay 1e-4 if null.
        lr_scheduler: Schedule of the learning rates: a class of torch.optim.lr_scheduler or timm.scheduler, PolyLR,
            SequentialSchedule or ChainedSchedule. A length that it takes and that is not given is that of the training
            (total_steps, T_max, t_initial, total_iters of PolynomialLR). ReduceLROnPlateau waits for val/miou;
            Lightning's class of this name takes another `monitor`. Constant rates if null.
        classes: Class table of the data; numbered names if null.
        head_lr_multiplier: Learning rate of the head's weights, as a multiple of the backbone's. The default is for
            SGD; AdamW needs less, such as 2.
        head_bias_lr_multiplier: Learning rate of the head's biases, likewise.
        backbone_lr_decay: Learning rate of each stage of the backbone, as a multiple of the next stage's, such as 0.8;
            1 trains all stages alike.
        base_batch_size: Images per optimiser step that the optimiser's rate is meant for, over all devices and
            accumulated batches; the rates of a training with more or fewer are scaled linearly. No scaling if null.
        lr_interval: When the schedule is stepped: `step` or `epoch`. If null, per epoch as its documentation says; per
            step, if its length is that of the training or it is a PolyLR, OneCycleLR or CyclicLR. Schedules of timm
            follow their `t_in_epochs`, which the interval sets.
        postprocess: Function of images (B, 3, H, W) uint8 and logits (B, K, H, W) that returns labels (B, H, W) or
            probabilities (B, K, H, W), such as `DenseCRF`. Test and prediction use it, but not validation, which
            chooses the checkpoint. The class of the highest logit if null.
        channels_last: Keep tensors in channels-last memory, faster on GPUs with tensor cores and up to 4 times on CPUs.
        cpu_kernels: Use the package's own kernels if the trainer computes on a CPU; false leaves everything to PyTorch,
            whose depthwise gradients are wrong there in bf16. See `deeplab_lightning.kernels`.

    Raises:
        ValueError: If net and classes differ in the number of classes, or the loss ignores another value than 255.
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
        backbone_lr_decay: float = 1.0,
        base_batch_size: int | None = None,
        lr_interval: Interval | None = None,
        postprocess: Postprocess | None = None,
        channels_last: bool = True,
        cpu_kernels: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(uncompiled(net), DeepLab):
            raise UserError(
                f"net must be a DeepLab or a subclass, got {type(net).__name__}: a network of another kind takes the "
                "place of decode or coarse_logits in a subclass of DeepLab."
            )
        if not isinstance(loss, nn.Module | None):
            raise UserError(
                f"loss must be an nn.Module or None, got {loss!r}: call the function in a module's forward."
            )
        self.classes = classes or ClassTable([f"class_{i}" for i in range(net.num_classes)])
        if self.classes.num_classes != net.num_classes:
            found = f"the network has {net.num_classes} classes, the class table {self.classes.num_classes}"
            raise UserError(f"{found}: build the network with num_classes={self.classes.num_classes}.")
        if classes is not None:
            compare_classes(net, classes.names)
        self.loss = loss or CrossEntropyLoss()
        check_number_of_weights(self.loss, self.classes.names)
        void = self.classes.ignore_index
        for part in self.loss.modules():
            if (ignored := getattr(part, "ignore_index", void)) != void:
                raise UserError(f"the loss ignores {ignored}, but void is {void}: set ignore_index.")
        self.optimizer_factory, self.scheduler_factory = optimizer or default_optimizer, lr_scheduler
        self.lr_interval = lr_interval
        self.head_lr_multiplier, self.head_bias_lr_multiplier = head_lr_multiplier, head_bias_lr_multiplier
        self.backbone_lr_decay, self.base_batch_size = backbone_lr_decay, base_batch_size
        self.postprocess = postprocess
        self.wanted = Wanted()
        self.found: dict[str, Found] = {}
        """What `predict_step` found last in each image: labels, and what was wanted besides them."""
        self.channels_last = channels_last
        self.net = net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.net.preprocess.channels_last = channels_last
        self.net.class_names = list(self.classes.names)
        self.net.palette = [list(color) for color in self.classes.colors or ()]
        self._set_up_evaluation(net.num_classes)
        self.cpu_kernels, self.door = cpu_kernels, kernels.Door()

    def setup(self, stage: str) -> None:
        """Adopt the evaluation size of the data, and open the door to the CPU kernels if the trainer uses a CPU."""
        super().setup(stage)
        keep_activations(self.trainer.strategy)
        self.door = kernels.open_door(self.net, self.trainer.strategy.root_device, is_wanted=self.cpu_kernels)

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute the network's output for images (B, C, H, W) uint8 or normalised float: logits (B, K, H, W)."""
        return self.net(images)

    def coarse_logits(self, images: Tensor) -> Tensor | TrainingLogits:
        """Compute the network's output before the resize to the images' size: logits (B, K, h, w)."""
        return self.net.coarse_logits(self.net.preprocess(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) uint8 to float of zero mean and unit deviation; return float images unchanged."""
        return self.net.preprocess.normalize(images) if images.dtype == torch.uint8 else images

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Find the class of each pixel, as `deeplab predict` does for image files.

        Args:
            images: (B, C, H, W) or (C, H, W) uint8, of any H and W; RGB if C is 3.

        Returns:
            (B, H, W) or (H, W) uint8 train ids.
        """
        with in_evaluation(self):
            return label_images(self, images, door=self.door, postprocess=self.postprocess)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute and log the loss of one batch."""
        if not isinstance(batch, Batch):
            raise loader_error(batch)
        loss, _ = self.compute_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch.image), on_step=True, prog_bar=True)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", torch.as_tensor(rate))  # a float would be copied to the device, which waits for it
        return loss

    def predict_step(self, batches: Batch | list[Batch | Unreadable], batch_idx: int) -> list[tuple[str, Tensor]]:
        """Return name and (h, w) uint8 train ids of each image that can be read, at the size of its file.

        `found` holds what else is wanted of them.
        """
        self.found.clear()
        predictions = []
        for batch in [batches] if isinstance(batches, Batch) else batches:
            if isinstance(batch, Unreadable):
                continue
            if not isinstance(batch, Batch):
                raise loader_error(batch)
            is_tiled = self._is_tiled(batch.image)
            logits = None if is_tiled else self._logits(batch.image)  # (B, K, h, w)
            for index, (name, size) in enumerate(zip(batch.names, batch.sizes, strict=True)):
                image, own_logits = (
                    batch.image[index : index + 1],
                    None if logits is None else logits[index : index + 1],
                )
                found = find_image(
                    self.net, own_logits, image, size, door=self.door, postprocess=self.postprocess, wanted=self.wanted
                )
                found.labels = self._filtered(found.labels[None])[0].cpu()
                self.found[name] = found
                predictions.append((name, found.labels))
        return predictions

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of one batch with its auxiliary losses, and its logits (B, K, h, w)."""
        assert batch.mask is not None
        output = TrainingLogits.of(self.door.logits(self, batch.image, self.loss))
        return self._total_loss(output, batch.mask.long(), is_void=not any(batch.count_pixels())), output.logits

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser over groups with their multipliers."""
        groups = parameter_groups(
            self.net,
            head_lr_multiplier=self.head_lr_multiplier,
            head_bias_lr_multiplier=self.head_bias_lr_multiplier,
            backbone_lr_decay=self.backbone_lr_decay,
            loss=self.loss if self.trains_loss else None,
        )
        optimizer = build_optimizer(self.optimizer_factory, groups)
        factor = batch_size_factor(self.base_batch_size, self._trainer)
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_multiplier"] * factor
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser, and the schedule."""
        optimizer = self.build_optimizer()
        if self.scheduler_factory is None:
            return optimizer
        schedule = schedule_config(self.scheduler_factory, optimizer, self.trainer, interval=self.lr_interval)
        return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[return-value]
