"""Run `deeplab export`: write a checkpoint as one file that runs without this package."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deeplab_lightning.checkpoints import gaps, network_problem, read_checkpoint, saved_split
from deeplab_lightning.commands.parsers import export_parser
from deeplab_lightning.data.datasets import ImageFolderDataset
from deeplab_lightning.data.image_format import PLAIN, ImageFormat
from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.export import InferenceModel, compare, trace
from deeplab_lightning.export.formats import (
    quietly,
    run_onnx,
    run_openvino,
    run_program,
    write_onnx,
    write_openvino,
    write_program,
)
from deeplab_lightning.export.quantization import MAX_IMAGES, agreement, prepared, quantize
from deeplab_lightning.files import check_output_file, make_folder, naming_errors
from deeplab_lightning.inference.exported import is_exported
from deeplab_lightning.module import SegmentationModule

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_FORMATS = {  # name of a file, and the functions that write and load it
    "onnx": ("model.onnx", write_onnx, run_onnx),
    "openvino": ("model.xml", write_openvino, run_openvino),
    "torch_export": ("model.pt2", write_program, run_program),
}


def export(args: list[str]) -> None:
    """Write the network of a checkpoint, including what its images go through before, as a file.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the checkpoint is damaged, or does not describe its network.
        RuntimeError: If a package is missing, the network cannot be traced, or the file gives other results.
    """
    given = export_parser().parse_args(args)
    output = Path(given.output)
    check_output_file("--output", output)
    kind = _format(given.format, output)
    _require(kind)
    if given.int8 is not None and kind != "onnx":
        raise UserError(f"--int8 writes ONNX files, got --output {given.output}.")
    if is_exported(given.ckpt_path):
        raise UserError(f"{given.ckpt_path} was exported already; give the checkpoint that it was made from.")
    checkpoint = read_checkpoint(given.ckpt_path)
    module = _load(checkpoint, Path(given.ckpt_path), trust=given.trust)
    dataset = None if given.int8 is None else _calibration_images(given.int8, module)
    model = InferenceModel(
        module,
        has_preprocessing=given.preprocess == "graph",
        has_argmax=given.argmax,
    )
    make_folder(output.parent)
    with (
        naming_errors(output),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch,
    ):
        name, write, load = _FORMATS[kind]
        file = Path(scratch) / name
        write(trace(model), {**model.metadata(), "split": json.dumps(saved_split(checkpoint))}, file)
        difference = compare(model, load(file))
        if dataset is not None:
            difference = _quantize(model, file, dataset)
        if kind == "openvino":
            file.with_suffix(".bin").replace(output.with_suffix(".bin"))
        file.replace(output)
    print(f"Written to {output}, {output.stat().st_size / 1e6:.1f} MB; {difference}.")


def _format(given: str | None, output: Path) -> str:
    """Return the format of a file, which its ending says, since those who open it go by the ending.

    Raises:
        ValueError: If the ending is of no format, or of another than the one that is given.
    """
    endings = {Path(name).suffix: kind for kind, (name, *_) in _FORMATS.items()}
    found = endings.get(output.suffix.lower())
    if found is None or given not in {None, found}:
        wanted = ", ".join(f"{ending} ({kind})" for ending, kind in endings.items() if given in {None, kind})
        raise UserError(f"--output must end with {wanted}, got {output}.")
    return found


def _calibration_images(folder: str, module: SegmentationModule) -> ImageFolderDataset:
    """Choose images of a folder evenly.

    Raises:
        FileNotFoundError: If it does not exist.
        DataError: If it holds no image.
    """
    given = module.net.preprocess.image_format
    dataset = ImageFolderDataset([folder], PLAIN if given is None else ImageFormat(**given))
    step = max(1, -(-len(dataset) // MAX_IMAGES))
    dataset.names, dataset.paths = dataset.names[::step], dataset.paths[::step]
    return dataset


def _quantize(model: InferenceModel, file: Path, dataset: ImageFolderDataset) -> str:
    """Replace an ONNX file by one of 8 bits, and return how far its labels are those of the network."""
    inputs = (prepared(model, dataset.read_image(index)) for index in range(len(dataset)))
    quantized = file.with_name("quantized.onnx")
    quantize(file, quantized, inputs)
    quantized.replace(file)
    inputs = (prepared(model, dataset.read_image(index)) for index in range(len(dataset)))
    share = agreement(model, run_onnx(file), inputs)
    return f"in 8 bits, with the labels of the network on {share:.2%} of the pixels of {len(dataset)} images"


def _load(checkpoint: dict[str, Any], path: Path, *, trust: bool) -> SegmentationModule:
    """Build the module of a checkpoint on the CPU."""
    if problem := network_problem(checkpoint, trust=trust):
        raise UserError(f"{path} {problem}; or use a checkpoint that describes it.")
    for text in gaps(checkpoint).values():
        print(f"Note: {path} {text}.", flush=True)
    with quietly():
        return SegmentationModule.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, trust=trust, postprocess=None
        )


def _require(format: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        RuntimeError: If one is missing.
    """
    missing = [package for package in _PACKAGES.get(format, ()) if find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--format {format} needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or in a checkout "
            "`pip install .[export,openvino]`. --format torch_export needs no further package."
        )
