"""Export a trained network as one file that runs without this package."""

import json
import math

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import deeplab_lightning
from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.export.formats import AXES, Runner, quietly
from deeplab_lightning.export.tracing import needs_formulas, traceable
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.resizing import resize, shrunk_size

_TOLERANCE = 1e-4  # of the largest logit; other libraries sum in another order and differ by about 1e-6


class InferenceModel(nn.Module):
    """Compute the outputs of an exported file: the network, with optional preprocessing and arg-max.

    Args:
        module: Trained module.
        has_preprocessing: Whether images are uint8 RGB in 0-255 of any size, which the graph shrinks to the evaluation
            size and normalises; else they are floats that went through this already.
        has_argmax: Whether outputs are labels; else they are logits.

    Raises:
        ValueError: If the evaluation size is too small for the network.
    """

    def __init__(self, module: SegmentationModule, *, has_preprocessing: bool, has_argmax: bool) -> None:
        super().__init__()
        self.net, self.classes = module.net, module.classes
        self.has_preprocessing, self.has_argmax = has_preprocessing, has_argmax
        self.needs_formulas = needs_formulas(self.net)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", module.net.preprocess.mean.clone())
        self.register_buffer("std", module.net.preprocess.std.clone())
        self.max_size: int | None = module.net.preprocess.max_size
        if self.max_size is not None and self.max_size < self.min_size:
            raise UserError(
                f"the evaluation size (data.eval_transforms.init_args.max_size) is {self.max_size} pixels, but an "
                f"exported file of this network needs at least {self.min_size}."
            )
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, K, H, W) float or labels (B, H, W) uint8.

        Args:
            images: (B, C, H, W), uint8 or normalised float.
        """
        logits = self.logits(images)
        return logits.argmax(dim=1).to(torch.uint8) if self.has_argmax else logits

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, K, H, W) float, whatever `forward` returns."""
        size = (images.shape[-2], images.shape[-1])
        if self.has_preprocessing:
            images = (self._shrunk(images.float()) - self.mean) / self.std
        logits = self.net(images)
        assert isinstance(logits, Tensor)
        return resize(logits, size) if self.is_shrinking else logits

    @property
    def is_shrinking(self) -> bool:
        """Check whether the graph shrinks images to the evaluation size."""
        return self.has_preprocessing and self.max_size is not None

    def _shrunk(self, pixels: Tensor) -> Tensor:
        """Shrink (B, 3, H, W) pixels in 0-255 to the evaluation size.

        As two matrix products, which every runtime has, and which leave smaller images as they are. The values are
        rounded after each, as PyTorch and Pillow do for uint8 images.
        """
        if self.max_size is None:
            return pixels
        size = (pixels.shape[-2], pixels.shape[-1])
        height, width = shrunk_size(size, self.max_size)
        if torch.compiler.is_exporting() and not self.needs_formulas:
            # The network's formulas of sizes over these formulas would make the trace several times slower.
            height, width = (self._known_size(length, self.max_size) for length in (height, width))
        rows, columns = _shrinking(size[0], height, pixels), _shrinking(size[1], width, pixels)
        return (rows @ (pixels @ columns.T).round()).round()  # (B, 3, h, w)

    def _known_size(self, length: int, limit: int) -> int:
        """Return a length, at most `limit`, that the traced graph knows only when it runs."""
        known = torch.scalar_tensor(length, dtype=torch.int64).item()
        torch._check(known >= self.min_size)
        torch._check(known <= limit)
        return known  # type: ignore[return-value]

    @property
    def min_size(self) -> int:
        """Return the smallest height and width in pixels.

        With it, the deepest map of the smallest scale has two samples along each side.
        """
        return int(2 * self.net.backbone.strides[-1] / min(*self.net.scales, 1.0))

    def example_images(self, batch: int, height: int, width: int) -> Tensor:
        """Draw images of patches and noise in the format of `forward`, the same in each call."""
        generator = torch.Generator().manual_seed(height * width)
        patches = torch.rand(batch, self.net.in_channels, 5, 7, generator=generator) * 200
        noise = torch.rand(batch, self.net.in_channels, height, width, generator=generator) * 55
        pixels = resize(patches, (height, width)) + noise
        return pixels.to(torch.uint8) if self.has_preprocessing else (pixels - self.mean) / self.std

    def metadata(self) -> dict[str, str]:
        """Return the description of the file's inputs, outputs and classes; lists and `max_size` as JSON."""
        channels = self.net.in_channels
        kind = "RGB" if channels == 3 else f"of {channels} channels"
        pixels = f"uint8 {kind}, 0-255" if self.has_preprocessing else f"float32 {kind}, (pixel / 255 - mean) / std"
        limit = f"the longer side to at most {self.max_size} pixels, bilinear and antialiased"
        size = f"H and W at least {self.min_size}"
        if self.max_size is not None:
            size += f"; the graph shrinks {limit}" if self.has_preprocessing else f"; shrink images first, {limit}"
        output = "labels: (B, H, W) uint8, index into classes" if self.has_argmax else "logits: (B, K, H, W) float32"
        net, scale = type(self.net), 255.0
        return {
            "classes": json.dumps(list(self.classes.names)),
            "palette": json.dumps([list(color) for color in self.classes.colors or ()]),
            "mean": json.dumps([round(float(v) / scale, 6) for v in self.mean.flatten()]),
            "std": json.dumps([round(float(v) / scale, 6) for v in self.std.flatten()]),
            "max_size": json.dumps(self.max_size),
            "image_format": json.dumps(self.net.preprocess.image_format),
            "input": f"images: (B, {channels}, H, W) {pixels}; {size}",
            "output": output,
            "network": f"{net.__module__}.{net.__qualname__}",
            "producer": f"deeplab_lightning {deeplab_lightning.__version__}",
        }


def _shrinking(length: int, new_length: int, like: Tensor) -> Tensor:
    """Build the matrix that shrinks an axis bilinearly and antialiased.

    Args:
        length: Length of the axis, n.
        new_length: Length afterwards, m; for the same length the matrix is the identity.
        like: Tensor of the dtype and on the device of the result.

    Returns:
        (m, n), each row with the sum 1.
    """
    scale = length / new_length
    positions, centres = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5 for n in (length, new_length))
    distances = (positions - centres[:, None] * scale).abs() / scale  # (m, n), in new pixels
    weights = (1 - distances).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


def trace(model: InferenceModel) -> ExportedProgram:
    """Trace the graph of a model for any batch size, height and width.

    Raises:
        RuntimeError: If the network has steps that cannot be traced, or that depend on the size.
    """
    least = model.min_size
    shapes = {i: Dim(AXES[i], min=1 if i == 0 else least) for i in (0, 2, 3)}
    example = model.example_images(2, least + 33, least + 66)
    try:
        with quietly():
            # Deferred, since some conditions, such as that no map is empty, cannot be proved for all sizes at once.
            program = torch.export.export(
                traceable(model),
                (example,),
                dynamic_shapes=(shapes,),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export has no error class of its own
        name = type(model.net).__name__
        raise UnavailableError(f"this {name} cannot be exported for all sizes: {str(error).strip()[:600]}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of the machine that exports
    return program


@torch.no_grad()
def compare(model: InferenceModel, exported: Runner) -> str:
    """Compare an exported file with its model, on images of three sizes, and of one beyond the evaluation size.

    The batches hold one or two images, and one size is odd. Logits may differ by rounding. A label is right if no other
    class has a logit that is higher by more than that. Beyond the evaluation size, some pixels are rounded to the other
    integer: there the mean difference counts, and else the largest.

    Args:
        model: Model that was exported.
        exported: Function that runs the exported file.

    Returns:
        The largest difference, as a sentence.

    Raises:
        RuntimeError: If the difference is larger than rounding explains.
    """
    least, worst = model.min_size, 0.0
    shapes = [(1, least, least + 32), (2, least + 65, least + 31), (1, 2 * least + 32, 2 * least)]
    if model.is_shrinking:
        assert model.max_size is not None
        shapes[1:1] = [(1, model.max_size + 33, model.max_size + 1)]
    for index, shape in enumerate(shapes):
        images = model.example_images(*shape)
        expected = model.logits(images)
        if not expected.isfinite().all():
            raise UnavailableError(
                "the network's logits are not finite: export a checkpoint from before they diverged."
            )
        found = exported(images)
        is_shrunk = model.is_shrinking and index == 1
        difference = _difference(found, expected, is_label=model.has_argmax, is_mean=is_shrunk)
        worst = max(worst, difference)
        if not difference <= _TOLERANCE:
            size = " x ".join(map(str, shape[1:]))
            raise UnavailableError(
                f"the exported file computes something else than the network: for a batch of {shape[0]} with "
                f"{size} pixels it is off by {difference:.2g} of the largest logit, {_TOLERANCE:g} are allowed. "
                "Nothing was written."
            )
    return f"at most {worst:.1g} of the largest logit away from the network, on {len(shapes)} sizes"


def _difference(found: Tensor, expected: Tensor, *, is_label: bool, is_mean: bool) -> float:
    """Compute the largest error of logits, or the largest distance of labels' logits from the highest logit.

    Args:
        found: Logits (B, K, H, W) float or labels (B, H, W) uint8.
        expected: Logits (B, K, H, W) float.
        is_label: Whether `found` holds labels.
        is_mean: Whether to compute the mean over pixels and classes instead of the largest.

    Returns:
        A fraction of the largest logit; infinite if shape or dtype differ, or a label is no class.
    """
    shape = (expected.shape[0], *expected.shape[2:]) if is_label else expected.shape
    if found.shape != shape or found.dtype != (torch.uint8 if is_label else expected.dtype):
        return math.inf
    if is_label:
        if int(found.max()) >= expected.shape[1]:
            return math.inf
        chosen = expected.gather(1, found.long().unsqueeze(1))  # (B, 1, H, W)
        distance = expected.amax(dim=1, keepdim=True) - chosen
    else:
        distance = (found - expected).abs()
    return float((distance.mean() if is_mean else distance.max()) / expected.abs().max().clamp_min(1e-30))
