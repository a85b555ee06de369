"""Quantise an exported ONNX file to 8-bit integers, with the ranges that its maps have on real images."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.export import InferenceModel
from deeplab_lightning.export.formats import Runner, quietly

MAX_IMAGES = 64
"""Number of images from which on more of them hardly change a range."""
_LEAST_AGREEMENT = 0.95
_LAYERS = ["Conv", "Relu", "Clip", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"]


def prepared(model: InferenceModel, image: Tensor) -> Tensor:
    """Prepare an image (C, H, W) uint8 for the graph of a model: (1, C, h, w) in the format of its `forward`.

    Images smaller than the graph takes are repeated.
    """
    preprocess = model.net.preprocess
    shrunk = image[None] if model.has_preprocessing else preprocess.shrink(image[None])
    times = [-(-model.min_size // length) for length in shrunk.shape[-2:]]
    full = shrunk.repeat(1, 1, *times)
    return full if model.has_preprocessing else preprocess.normalize(full).contiguous()


def quantize(file: Path, output: Path, images: Iterable[Tensor]) -> None:
    """Write an ONNX file whose convolutions compute with integers of 8 bits: weights per channel, maps unsigned.

    Args:
        file: ONNX file in floats.
        output: File to write, with the metadata of the other.
        images: Inputs of the graph (1, C, H, W), whose maps set the ranges.

    Raises:
        RuntimeError: If onnxruntime cannot quantise the graph.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.rest, None)
            return None if found is None else {"images": found.numpy()}

    try:
        with quietly(), _without_hints():
            quantize_static(
                file, output, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=_LAYERS, per_channel=True,
                nodes_to_exclude=_before_network(file),
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )  # fmt: skip
    except Exception as error:  # onnxruntime raises errors of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UnavailableError(f"this network cannot be quantised ({reason}); leave --int8 out.") from error


def _before_network(file: Path) -> list[str]:
    """Return the nodes that depend on no convolution: what a graph does to images and sizes, which stays in floats."""
    import onnx

    reached: set[str] = set()
    others = []
    for node in onnx.load(file).graph.node:  # in an order in which each comes after what it depends on
        if node.op_type == "Conv" or not reached.isdisjoint(node.input):
            reached.update(node.output)
        else:
            others.append(node.name)
    return others


@contextmanager
def _without_hints() -> Iterator[None]:
    """Silence what the quantiser logs as a warning: that other tools could simplify the graph first."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@torch.no_grad()
def agreement(model: InferenceModel, exported: Runner, images: Iterable[Tensor]) -> float:
    """Compute the share of pixels to which a quantised file gives the label of the network.

    Args:
        model: Model that was exported.
        exported: Function that runs the quantised file.
        images: Inputs of the graph (1, C, H, W).

    Raises:
        RuntimeError: If it is so small that the file computes something else.
    """
    same, count = 0, 0
    for image in images:
        expected, found = model.logits(image).argmax(dim=1), exported(image)
        labels = found if model.has_argmax else found.argmax(dim=1)
        same, count = same + int((labels == expected).sum()), count + expected.numel()
    share = same / count
    if share < _LEAST_AGREEMENT:
        raise UnavailableError(
            f"in 8 bits the network finds the same labels on {share:.1%} of the pixels only, {_LEAST_AGREEMENT:.0%} "
            "are needed. Give images like those of the training by --int8, or leave it out. Nothing was written."
        )
    return share
