"""`deeplab export`: a checkpoint as one file that runs without this package."""

import argparse
import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import deeplab_lightning
from deeplab_lightning.models.tracing import traceable
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.resizing import resize

Runner = Callable[[Tensor], Tensor]
"""(B, 3, H, W) -> scores (B, K, H, W) or labels (B, H, W)."""
FORMATS = ("onnx", "torch_export")
METADATA_FILE = "metadata.json"
"""Among the extra files of a `torch.export` archive."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18  # of 2022: the first whose Resize and Pad need no conversion, and read by every runtime since
_AXES = ("batch", "channels", "height", "width")
_TOLERANCE = 1e-4  # of the largest score; other libraries sum in another order, and differ by about 1e-6


def export(args: list[str]) -> None:
    """Write a checkpoint's network, with the normalisation of its pictures inside, as one file.

    The file takes any batch size, height and width, and names classes, colours, mean and standard deviation in
    its metadata. It is loaded again and compared with the network before it gets its name.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint does not say what network it holds.
        RuntimeError: If a package is missing, the network cannot be traced, or the file computes something else.
    """
    options = argparse.ArgumentParser(prog="deeplab export", description=export.__doc__)
    options.add_argument("--ckpt_path", required=True, help="checkpoint of a training; its data need not be here")
    options.add_argument("--format", choices=FORMATS, default="onnx", help="onnx, or an archive of torch.export")
    options.add_argument("--output", required=True, help="file to write, such as model.onnx or model.pt2")
    options.add_argument("--argmax", action="store_true", help="give (B, H, W) uint8 labels instead of scores")
    options.add_argument(
        "--no_preprocessing", action="store_true", help="take normalised floats instead of uint8 RGB in 0-255"
    )
    given = options.parse_args(args)
    if given.format == "onnx":
        _require_onnx()
    model = InferenceModel(
        _load(Path(given.ckpt_path)), has_preprocessing=not given.no_preprocessing, has_argmax=given.argmax
    )
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        file = Path(scratch) / ("model.onnx" if given.format == "onnx" else "model.pt2")
        write, load = (write_onnx, run_onnx) if given.format == "onnx" else (write_program, run_program)
        write(trace(model), model.metadata(), file)
        difference = compare(model, load(file))
        file.replace(output)
    print(f"Written to {output}, {output.stat().st_size / 1e6:.1f} MB; {difference}.")


class InferenceModel(nn.Module):
    """What an exported file computes: normalisation, network, and the class of the highest score, as wanted.

    Args:
        module: The trained module.
        has_preprocessing: Take uint8 RGB in 0-255, else floats normalised by the backbone's mean and std.
        has_argmax: Give labels instead of scores.
    """

    def __init__(self, module: SegmentationModule, *, has_preprocessing: bool, has_argmax: bool) -> None:
        super().__init__()
        self.net, self.classes = module.net, module.classes
        self.has_preprocessing, self.has_argmax = has_preprocessing, has_argmax
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", module.pixel_mean.clone())
        self.register_buffer("std", module.pixel_std.clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W), uint8 or normalised float -> (B, K, H, W) float, or (B, H, W) uint8."""
        scores = self.scores(images)
        return scores.argmax(dim=1).to(torch.uint8) if self.has_argmax else scores

    def scores(self, images: Tensor) -> Tensor:
        """As `forward`, but always (B, K, H, W) float."""
        if self.has_preprocessing:
            images = (images.float() - self.mean) / self.std
        scores = self.net(images)
        assert isinstance(scores, Tensor)
        return scores

    @property
    def least_size(self) -> int:
        """Smallest height and width in pixels: the deepest map of the smallest scale has two samples a side."""
        return int(2 * self.net.backbone.strides[-1] / min(*self.net.scales, 1.0))

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Pictures of patches and noise, always the same, as `forward` takes them."""
        generator = torch.Generator().manual_seed(height * width)
        patches = torch.rand(batch, 3, 5, 7, generator=generator) * 200
        noise = torch.rand(batch, 3, height, width, generator=generator) * 55
        pixels = resize(patches, (height, width)) + noise
        return pixels.to(torch.uint8) if self.has_preprocessing else (pixels - self.mean) / self.std

    def metadata(self) -> dict[str, str]:
        """What the file says about itself; lists as JSON."""
        takes = "uint8 RGB, 0-255" if self.has_preprocessing else "float32 RGB, (pixel / 255 - mean) / std"
        gives = "labels: (B, H, W) uint8, index into classes" if self.has_argmax else "logits: (B, K, H, W) float32"
        net, scale = type(self.net), 255.0
        return {
            "classes": json.dumps(list(self.classes.names)),
            "palette": json.dumps([list(color) for color in self.classes.colors or ()]),
            "mean": json.dumps([round(float(v) / scale, 6) for v in self.mean.flatten()]),
            "std": json.dumps([round(float(v) / scale, 6) for v in self.std.flatten()]),
            "input": f"images: (B, 3, H, W) {takes}; H and W at least {self.least_size}",
            "output": gives,
            "network": f"{net.__module__}.{net.__qualname__}",
            "producer": f"deeplab_lightning {deeplab_lightning.__version__}",
        }


def trace(model: InferenceModel) -> ExportedProgram:
    """The graph for any batch size, height and width.

    Raises:
        RuntimeError: If the network has steps that cannot be traced, or depend on the size.
    """
    least = model.least_size
    shapes = {i: Dim(_AXES[i], min=1 if i == 0 else least) for i in (0, 2, 3)}
    example = model.example(2, least + 33, least + 66)
    try:
        with _quietly():
            # Deferred: that a map is not empty, for one, is no question to answer for all sizes at once.
            program = torch.export.export(
                traceable(model),
                (example,),
                dynamic_shapes=(shapes,),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export has no class of its own for what it cannot trace
        name = type(model.net).__name__
        raise RuntimeError(f"this {name} cannot be exported for all sizes: {str(error).strip()[:600]}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_program(program: ExportedProgram, metadata: Mapping[str, str], file: Path) -> None:
    """Write an archive of `torch.export`."""
    with _quietly():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(dict(metadata), indent=1)})


def run_program(file: Path) -> Runner:
    """An archive of `torch.export` as a function."""
    with _quietly():
        module = torch.export.load(file).module()
    return lambda images: module(images)


def write_onnx(program: ExportedProgram, metadata: Mapping[str, str], file: Path) -> None:
    """Write an ONNX file."""
    import onnx

    output = metadata["output"].partition(":")[0]
    with _quietly():
        torch.onnx.export(
            program, (), file, input_names=["images"], output_names=[output], opset_version=_OPSET,
            external_data=False, dynamo=True, verbose=False,
        )  # fmt: skip
    model = onnx.load(file)
    # The tracer's own names of the sizes, such as s34, also stand in sums and products.
    shown = dict(zip((dim.dim_param for dim in _dims(model.graph.input[0])), _AXES, strict=True))
    symbols = re.compile("|".join(rf"\b{name}\b" for name in shown if name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in _dims(value):
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda found: shown[found.group()], dim.dim_param)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, file)


def run_onnx(file: Path) -> Runner:
    """An ONNX file as a function, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def compare(model: InferenceModel, exported: Runner) -> str:
    """Run both on batches of one and two of three sizes, one of them odd.

    Scores may differ by rounding; a label is right where no other class has a score that is higher by more.

    Returns:
        How far they are apart, in words.

    Raises:
        RuntimeError: If they are further apart than rounding explains.
    """
    least, worst = model.least_size, 0.0
    for shape in ((1, least, least + 32), (2, least + 65, least + 31), (1, 2 * least + 32, 2 * least)):
        images = model.example(*shape)
        expected = model.scores(images)
        if not expected.isfinite().all():
            raise RuntimeError("the network gives scores that are not finite, so that there is nothing to export.")
        found = exported(images)
        difference = _difference(found, expected, is_label=model.has_argmax)
        worst = max(worst, difference)
        if not difference <= _TOLERANCE:
            size = " x ".join(map(str, shape[1:]))
            raise RuntimeError(
                f"the exported file computes something else than the network: for a batch of {shape[0]} with "
                f"{size} pixels it is off by {difference:.2g} of the largest score, {_TOLERANCE:g} are allowed. "
                "Nothing was written."
            )
    return f"at most {worst:.1g} of the largest score away from the network, on 3 sizes"


def _difference(found: Tensor, expected: Tensor, *, is_label: bool) -> float:
    """How far scores are off, or the scores of labels below the highest; infinite for another shape or type.

    Args:
        found: (B, K, H, W) float or (B, H, W) uint8.
        expected: (B, K, H, W) float.
        is_label: Which of the two `found` is.

    Returns:
        A share of the largest score.
    """
    shape = (expected.shape[0], *expected.shape[2:]) if is_label else expected.shape
    if found.shape != shape or found.dtype != (torch.uint8 if is_label else expected.dtype):
        return math.inf
    if is_label:
        if int(found.max()) >= expected.shape[1]:
            return math.inf
        own = expected.gather(1, found.long().unsqueeze(1))  # (B, 1, H, W)
        distance = expected.amax(dim=1, keepdim=True) - own
    else:
        distance = (found - expected).abs()
    return float(distance.max() / expected.abs().max().clamp_min(1e-30))


def _load(path: Path) -> SegmentationModule:
    """The module of a checkpoint, on the CPU."""
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path.absolute()}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of `deeplab fit`: {str(error).splitlines()[0]}") from error
    if "hyper_parameters" not in checkpoint:
        raise ValueError(f"{path} does not say what network it holds; take a checkpoint that `deeplab fit` wrote.")
    with _quietly():
        return SegmentationModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def _require_onnx() -> None:
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise RuntimeError(
            f"--format onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or in a checkout "
            "`pip install .[export]`. --format torch_export needs nothing more."
        )


def _dims(value: Any) -> Any:
    """The dimensions of an ONNX value."""
    return value.type.tensor_type.shape.dim


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tracer's and the exporter's hints about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
