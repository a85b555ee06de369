"""Write exported files in each format, and run them for comparison."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

Runner = Callable[[Tensor], Tensor]
"""Function of images (B, 3, H, W) that returns logits (B, K, H, W) or labels (B, H, W)."""
METADATA_FILE = "metadata.json"
"""Name of the metadata among the extra files of a `torch.export` archive."""
AXES = ("batch", "channels", "height", "width")
Size = tuple[int | None, int | None, int | None]
"""Batch size, height and width that a graph is fixed to; None for those that it takes any of."""
_SECTION = "framework"
"""Where OpenVINO's reader of ONNX files puts their metadata, in its own files."""
_OPSET = 18  # of 2022, the first whose Resize and Pad need no conversion; every runtime since then reads it


class Opened(NamedTuple):
    """Hold an exported file.

    Attributes:
        run: Computes its outputs.
        metadata: What the file says of itself; empty in a file of another program.
        size: What its graph is fixed to.
    """

    run: Runner
    metadata: dict[str, str]
    size: Size


def write_program(program: ExportedProgram, metadata: Mapping[str, str], file: Path) -> None:
    """Write an archive of `torch.export`."""
    with quietly():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(dict(metadata), indent=1)})


def open_program(file: Path) -> Opened:
    """Load an archive of `torch.export`, which may run code that lies in it."""
    extra = {METADATA_FILE: ""}
    with quietly():
        module = torch.export.load(file, extra_files=extra).module()
    return Opened(lambda images: module(images), json.loads(extra[METADATA_FILE] or "{}"), (None, None, None))


def run_program(file: Path) -> Runner:
    """Load an archive of `torch.export` as a function."""
    return open_program(file).run


def write_onnx(program: ExportedProgram, metadata: Mapping[str, str], file: Path) -> None:
    """Write an ONNX file."""
    import onnx

    output = metadata["output"].partition(":")[0]
    with quietly():
        torch.onnx.export(
            program, (), file, input_names=["images"], output_names=[output], opset_version=_OPSET,
            external_data=False, dynamo=True, verbose=False,
        )  # fmt: skip
    model = onnx.load(file)
    # The tracer's own names of the sizes, such as s34, also occur in sums and products.
    axis_of = dict(zip((dim.dim_param for dim in _dims(model.graph.input[0])), AXES, strict=True))
    symbols = re.compile("|".join(rf"\b{name}\b" for name in axis_of if name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in _dims(value):
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda found: axis_of[found.group()], dim.dim_param)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, file)


def open_onnx(file: Path) -> Opened:
    """Load an ONNX file, which onnxruntime computes on the CPU with the threads of PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    sizes = [length if isinstance(length, int) else None for length in entry.shape]
    return Opened(
        lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0]),
        dict(session.get_modelmeta().custom_metadata_map),
        (sizes[0], *sizes[-2:]) if len(sizes) == len(AXES) else (None, None, None),  # type: ignore[arg-type]
    )


def run_onnx(file: Path) -> Runner:
    """Load an ONNX file as a function, which onnxruntime computes on the CPU."""
    return open_onnx(file).run


def write_openvino(program: ExportedProgram, metadata: Mapping[str, str], file: Path) -> None:
    """Write OpenVINO's two files, the graph (.xml) and beside it the weights (.bin) in float32.

    By way of ONNX: OpenVINO's reader of PyTorch's traces takes 50 times as long, and not those that shrink images.
    """
    openvino = silent_openvino()
    source = file.with_suffix(".onnx")
    write_onnx(program, metadata, source)
    model = openvino.convert_model(source)
    for key, value in metadata.items():
        model.set_rt_info(value, [_SECTION, key])
    openvino.save_model(model, file, compress_to_fp16=False)
    source.unlink()


def open_openvino(file: Path) -> Opened:
    """Load a graph (.xml) with the weights beside it, which OpenVINO computes in float32 on the CPU.

    Files that OpenVINO's own converter makes of an exported ONNX file have its metadata too.
    """
    openvino = silent_openvino()
    model = openvino.Core().read_model(file)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    found = model.get_rt_info([_SECTION]).value if model.has_rt_info([_SECTION]) else {}
    sizes = [dim.get_length() if dim.is_static else None for dim in model.inputs[0].partial_shape]
    return Opened(
        lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0]),
        {key: str(value) for key, value in found.items()},
        (sizes[0], *sizes[-2:]) if len(sizes) == len(AXES) else (None, None, None),  # type: ignore[arg-type]
    )


def run_openvino(file: Path) -> Runner:
    """Load OpenVINO's files as a function."""
    return open_openvino(file).run


def silent_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Else each import writes to the user's home and reports to Google Analytics, without being asked.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _dims(value: Any) -> Any:
    """Return the dimensions of an ONNX value."""
    return value.type.tensor_type.shape.dim


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings and log messages of the tracer and the exporter."""
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
