"""Compute backbone and head of a network by OpenVINO or ONNX Runtime instead of PyTorch, on a CPU."""

import copy
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.export.formats import quietly, silent_openvino
from deeplab_lightning.export.tracing import traceable
from deeplab_lightning.models.deeplab import DeepLab

EngineName = Literal["torch", "openvino", "onnx"]
Precision = Literal["fp32", "bf16"]
PRECISIONS: dict[str, Precision] = {"32-true": "fp32", "bf16-mixed": "bf16", "bf16-true": "bf16"}
"""Precision of the engine for each `trainer.precision` that one can compute in."""
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}  # of the largest logit; a wrong conversion is off by more
_PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}
_EXTRA = {"openvino": "openvino", "onnx": "export"}
_PRODUCT = {"openvino": ("OpenVINO", "openvino"), "onnx": ("ONNX Runtime", "onnxruntime")}


class _Compiled(NamedTuple):
    """Hold a function of normalised images (B, C, H, W) float32 that returns logits (B, K, h, w), and its precision."""

    run: Callable[[Tensor], Tensor]
    precision: str


def check_engine(engine: str, device: torch.device, precision: str = "32-true") -> None:
    """Check that an engine can compute here, before anything is read or built for it.

    Args:
        engine: `torch`, `openvino` or `onnx`.
        device: Device of the computation.
        precision: The trainer's.

    Raises:
        ValueError: If the engine is unknown, or cannot compute on the device or in the precision.
        RuntimeError: If a package is missing.
    """
    if engine not in {"torch", *_PACKAGES}:
        raise UserError(f"--engine must be torch, {' or '.join(_PACKAGES)}, got {engine!r}.")
    if engine == "torch":
        return
    if device.type != "cpu":
        raise UserError(
            f"--engine {engine} computes on the CPU alone, got the device {device}: add --trainer.accelerator cpu (in "
            'Python: device="cpu"), or leave --engine out.'
        )
    if precision not in PRECISIONS:
        raise UserError(
            f"--engine {engine} takes trainer.precision {', '.join(PRECISIONS)}, got {precision}: add "
            "--trainer.precision 32-true, or leave --engine out."
        )
    missing = [package for package in _PACKAGES[engine] if find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--engine {engine} needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or in a checkout `pip "
            f"install .[{_EXTRA[engine]}]`. --engine torch needs no further package."
        )


class EngineNet(DeepLab):
    """Segment images as a network does, with backbone and head computed by an engine.

    Images of any number and size are prepared, resized and fused over `scales` as in the network. The result is
    compared with the network's on images of two sizes before it is used. Images with fewer than `min_size` rows or
    columns, of which the deepest map would have a single sample, are left to PyTorch.

    Args:
        net: Network on the CPU, which is set to evaluation mode.
        engine: `openvino`, or `onnx` for ONNX Runtime.
        precision: `fp32`, or `bf16` if the engine and the processor can; else it is fp32.

    Attributes:
        net: The network.
        precision: What the engine computes in.
        min_size: In pixels.

    Raises:
        ValueError: If the network overrides `forward` or `coarse_logits`.
        RuntimeError: If the engine cannot compute the network, or computes something else.
    """

    def __init__(self, net: DeepLab, engine: EngineName, precision: Precision = "fp32") -> None:
        kind = type(net)
        if kind.forward is not DeepLab.forward or kind.coarse_logits is not DeepLab.coarse_logits:
            raise UserError(
                f"--engine {engine}: {kind.__name__} computes its logits in a way of its own; leave --engine out."
            )
        super().__init__(net.backbone, net.head, num_classes=net.num_classes, scales=net.scales)
        self.class_names, self.palette = net.class_names, net.palette
        self.preprocess = copy.deepcopy(net.preprocess)
        self.preprocess.channels_last = False  # as the engines take images
        self.net, self.engine, self.min_size = net, engine, 2 * net.backbone.strides[-1]
        self.eval()
        part = traceable(_OneScale(net)).eval().float().to(memory_format=torch.contiguous_format)
        compile = _compile_openvino if engine == "openvino" else _compile_onnx
        try:
            with quietly(), torch.no_grad(), torch.autocast("cpu", enabled=False):
                self._compiled = compile(part, self._examples()[0], precision)
                difference = max(_difference(self._compiled.run(x), part(x)) for x in self._examples())
        except Exception as error:  # the engines raise errors of many classes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UnavailableError(
                f"--engine {engine} cannot compute this {kind.__name__} ({reason}); leave --engine out."
            ) from error
        if not difference <= _TOLERANCE[self.precision]:
            raise UnavailableError(
                f"--engine {engine} computes something else than this {kind.__name__}: off by {difference:.2g} of the "
                f"largest logit, {_TOLERANCE[self.precision]:g} are allowed; leave --engine out."
            )

    @property
    def precision(self) -> str:
        """Return the precision in which the engine computes, `fp32` or `bf16`."""
        return self._compiled.precision

    def encode(self, images: Tensor) -> list[Tensor]:
        """Compute the logits (B, K, h, w) of one scale of normalised images (B, C, H, W), as the only feature map."""
        if min(images.shape[-2:]) < self.min_size:
            return [self.net.decode(self.net.encode(images))]
        return [self._compiled.run(images.detach().float())]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return the logits that `encode` has computed."""
        return features[-1]

    def describe(self) -> dict[str, str]:
        """Return what computes, for a record."""
        product, package = _PRODUCT[self.engine]
        return {"name": product, "version": version(package), "precision": self.precision}

    def _examples(self) -> list[Tensor]:
        """Draw normalised images of two sizes, the same in each call."""
        generator, least, channels = torch.Generator().manual_seed(0), self.min_size, self.in_channels
        shapes = [(2, channels, least + 33, least + 66), (1, channels, 2 * least, least)]
        return [torch.randn(shape, generator=generator) for shape in shapes]


class _OneScale(nn.Module):
    """Compute the logits (B, K, h, w) of one scale: what an engine computes of a network."""

    def __init__(self, net: DeepLab) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.decode(self.net.encode(images))


def _compile_openvino(part: nn.Module, example: Tensor, precision: Precision) -> _Compiled:
    openvino = silent_openvino()
    model = openvino.convert_model(part, example_input=example, input=[-1, example.shape[1], -1, -1])
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        },
    )
    used: Any = compiled.get_property("INFERENCE_PRECISION_HINT")  # f32 on a processor without bf16
    return _Compiled(
        lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0]),
        "bf16" if used == openvino.Type.bf16 else "fp32",
    )


def _compile_onnx(part: nn.Module, example: Tensor, precision: Precision) -> _Compiled:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # By TorchScript: the exporter with `dynamo=True` takes 9 to 40 times as long, and the result is checked anyway.
        torch.onnx.export(
            part,
            (example,),
            file,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}},
            opset_version=18,
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return _Compiled(
        lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0]),
        "fp32",  # its kernels for CPUs have no bf16
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Compute the largest difference as a share of the largest logit; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
