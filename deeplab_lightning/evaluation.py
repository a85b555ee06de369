"""Evaluate a network on validation and test images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deeplab_lightning import kernels
from deeplab_lightning.data.batch import Batch, as_batches
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.inference.calibration import PixelCollector
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.inference.tiles import Tiled
from deeplab_lightning.labels import Postprocess, find_in_tiles, find_labels
from deeplab_lightning.last_validation import may_be_last
from deeplab_lightning.losses.sum import compute_loss
from deeplab_lightning.metrics.boundary import BoundaryCounts
from deeplab_lightning.metrics.calibration import ConfidenceCounts
from deeplab_lightning.metrics.confusion import ConfusionMatrix, per_image_confusion
from deeplab_lightning.metrics.details import image_details
from deeplab_lightning.metrics.iou import FOREGROUND_KEYS, class_iou, foreground_figures, summarize
from deeplab_lightning.metrics.mean import WeightedMean
from deeplab_lightning.metrics.per_image import ImageDetails, ImageMatrices
from deeplab_lightning.models.deeplab import TrainingLogits
from deeplab_lightning.saved_module import SavedModule
from deeplab_lightning.schedules import step_plateaus
from deeplab_lightning.tiled_evaluation import evaluate_parts, is_mean_of_parts


class EvaluatedModule(SavedModule):
    """Count losses, confusions and confidences of evaluated images, and log the figures of the whole set.

    It is a base of `SegmentationModule`, which defines the network and the other parts.
    """

    classes: ClassTable
    door: kernels.Door
    postprocess: Postprocess | None
    region_filter: RegionFilter | None = None
    """Replaces small regions in test and prediction."""
    details: ImageDetails | None = None
    """Contours and objects by size of the images of this process, in the last validation of a training."""
    pixels: PixelCollector | None = None
    """Pixels that a temperature is fitted on, in a `validate` or `test` that is asked for one."""

    def validation_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Evaluate the images of one loader batch, which holds a `Batch` per image size."""
        self._evaluate(batches, "val")

    def test_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Evaluate the images of one loader batch."""
        self._evaluate(batches, "test")

    def on_validation_epoch_start(self) -> None:
        """Discard the counts of the previous evaluation."""
        self.per_image.clear()
        self.details = ImageDetails(self.net.num_classes) if may_be_last(self.trainer) else None

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set, and step schedules that wait for them."""
        self._log_metrics("val")
        step_plateaus(self.trainer)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test set."""
        self.log("test/boundary_iou", self.boundary.compute().nanmean())
        self.boundary.reset()
        self._log_metrics("test")

    def logged_names(self) -> list[str]:
        """Return the names of the figures that a training logs, for what monitors one of them."""
        figures = self._figures(torch.zeros(self.net.num_classes, self.net.num_classes, dtype=torch.int64))
        return ["train/loss", *(f"val/{name}" for name in ("loss", *figures))]

    def _set_up_evaluation(self, num_classes: int) -> None:
        """Make the counts of an evaluation."""
        self.confusion = nn.ModuleDict({stage: ConfusionMatrix(num_classes) for stage in ("val", "test")})
        self.mean_loss = nn.ModuleDict({stage: WeightedMean() for stage in ("val", "test")})
        """Mean over the pixels of the evaluated set."""
        self.boundary = BoundaryCounts(num_classes)  # in test only: validation runs after every epoch
        self.confidences = ConfidenceCounts()  # in `validate` and `test`, likewise
        self.per_image = ImageMatrices(num_classes)
        """Confusion matrices of the images of this process in the last evaluation."""

    def _evaluate(self, batches: list[Batch] | Batch, stage: str) -> None:
        for batch in as_batches(batches):
            assert batch.mask is not None
            postprocess = self.postprocess if stage == "test" else None
            labels = (self._count_parts if self._has_parts(batch) else self._count)(batch, stage, postprocess)
            if stage == "test":
                labels = self._filtered(labels)
                self.boundary.update(labels, batch.mask)
            matrices = per_image_confusion(labels, batch.mask, self.net.num_classes)  # (B, K, K)
            self.confusion[stage].update(matrices)  # type: ignore[operator]
            self.per_image.add(batch.names, matrices)
            if self.details is not None:
                self.details.add(batch.names, image_details(labels, batch.mask, self.net.num_classes))

    def _count(self, batch: Batch, stage: str, postprocess: Postprocess | None) -> Tensor:
        """Count losses and confidences of a batch, and return its labels (B, H, W)."""
        assert batch.mask is not None
        logits = TrainingLogits.of(self._logits(batch.image, self.loss)).logits
        # Image by image, so that the mean over the set depends neither on the batch size nor on the loss.
        for own, mask, count in zip(logits.split(1), batch.mask.long().split(1), batch.count_pixels(), strict=True):
            loss = self._total_loss(TrainingLogits(own, []), mask, is_void=not count)
            self.mean_loss[stage].update(loss, count)  # type: ignore[operator]
        self._count_confidences(batch.names, logits, batch.mask)
        size = (batch.mask.shape[-2], batch.mask.shape[-1])
        return self._labels(logits, batch.image, size, postprocess)

    def _has_parts(self, batch: Batch) -> bool:
        """Check whether the figures of the images can be counted tile by tile."""
        assert batch.mask is not None
        is_same_size = batch.mask.shape[-2:] == batch.image.shape[-2:]
        return self._is_tiled(batch.image) and is_same_size and is_mean_of_parts(self.loss)

    def _count_parts(self, batch: Batch, stage: str, postprocess: Postprocess | None) -> Tensor:
        """Do what `_count` does, tile by tile."""
        assert batch.mask is not None
        net: Any = self.net
        found = []
        parts = zip(batch.names, batch.image.split(1), batch.mask.split(1), batch.count_pixels(), strict=True)
        for name, image, mask, count in parts:
            count_part = partial(self._count_confidences, [name])
            labels, loss = evaluate_parts(net, image, mask, self.loss, count_part)  # type: ignore[arg-type]
            self.mean_loss[stage].update(loss, count)  # type: ignore[operator]
            found.append(labels)
        if postprocess is None:
            return torch.cat(found)
        size = (batch.mask.shape[-2], batch.mask.shape[-1])
        return find_in_tiles(net, batch.image, size, door=self.door, postprocess=postprocess)

    def _count_confidences(self, names: Sequence[str], logits: Tensor, mask: Tensor, share: float = 1.0) -> None:
        """Count the confidences of images, or of a share of each, unless this is a training."""
        if self.trainer.state.fn != "fit":
            self.confidences.update(logits, mask)
            if self.pixels is not None:
                self.pixels.add(names, logits, mask, share=share)

    def _total_loss(self, output: TrainingLogits, mask: Tensor, *, is_void: bool) -> Tensor:
        """Add up the loss and the auxiliary losses; 0 if the mask is void, where many losses fail or return nan."""
        if is_void:  # of all outputs, since DDP expects a gradient of every parameter
            of_loss = (parameter for parameter in self.loss.parameters() if parameter.requires_grad)
            others = [*(logits for _, logits in output.auxiliary), *of_loss]
            return sum((values.sum() * 0.0 for values in others), output.logits.sum() * 0.0)
        auxiliary = [weight * compute_loss(self.loss, logits, mask) for weight, logits in output.auxiliary]
        return sum(auxiliary, compute_loss(self.loss, output.logits, mask))

    def _log_metrics(self, stage: str) -> None:
        confusion = self.confusion[stage]
        # torchmetrics turns the matrix of one class into a scalar.
        matrix = confusion.compute().reshape(self.net.num_classes, -1).cpu()  # type: ignore[operator]
        confusion.reset()  # type: ignore[operator]
        if self.trainer.state.fn != "fit":
            self.log(f"{stage}/ece", self.confidences.compute())
            self.confidences.reset()
        self.log(f"{stage}/loss", self.mean_loss[stage].compute())  # type: ignore[operator]
        self.mean_loss[stage].reset()  # type: ignore[operator]
        for name, value in self._figures(matrix).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "miou")
        self.last_matrix: Tensor = matrix

    def _figures(self, matrix: Tensor) -> dict[str, float]:
        """Compute the figures of a set that are logged besides the loss."""
        per_class = zip(self.classes.names, class_iou(matrix).tolist(), strict=True)
        figures = summarize(matrix) | {f"iou/{name}": iou for name, iou in per_class}
        if self.net.num_classes == 2:
            foreground = foreground_figures(matrix)
            figures |= {f"{key}/{self.classes.names[1]}": foreground[key] for key in FOREGROUND_KEYS}
        return figures

    def _is_tiled(self, images: Tensor) -> bool:
        """Check whether the network processes these images in tiles."""
        return isinstance(self.net, Tiled) and not self.net.is_whole(images)

    def _logits(self, images: Tensor, loss: nn.Module | None = None) -> Any:
        """Compute the logits of images, see `Door.logits`; of those no larger than a tile as without tiles."""
        used: Any = self.net
        if isinstance(used, Tiled) and used.is_whole(images):
            self.net = used.net  # type: ignore[assignment]
        logits = self.door.logits(self, images, loss)
        self.net = used
        return logits

    def _labels(self, logits: Tensor, images: Tensor, size: tuple[int, int], postprocess: Postprocess | None) -> Tensor:
        """Find the labels (B, *size) of images; a postprocess is used within tiles if there are any."""
        if postprocess is None or not self._is_tiled(images):
            return find_labels(logits, images, size, door=self.door, postprocess=postprocess)
        net: Any = self.net
        return find_in_tiles(net, images, size, door=self.door, postprocess=postprocess)

    def _filtered(self, labels: Tensor) -> Tensor:
        """Replace small regions of labels (B, H, W) if that is asked for."""
        return labels if self.region_filter is None else self.region_filter(labels)
