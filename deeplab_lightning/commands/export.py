"""`deeplab export`: a checkpoint as one file that runs without this package."""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch

from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError
from deeplab_lightning.export import InferenceModel, compare, trace
from deeplab_lightning.export.formats import quietly, run_onnx, run_program, write_onnx, write_program
from deeplab_lightning.module import SegmentationModule

FORMATS = ("onnx", "torch_export")
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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


def _load(path: Path) -> SegmentationModule:
    """The module of a checkpoint, on the CPU."""
    if not path.is_file():
        raise MissingFileError(f"no such checkpoint: {path.absolute()}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no checkpoint of `deeplab fit`: {str(error).splitlines()[0]}") from error
    if "hyper_parameters" not in checkpoint:
        raise UserError(f"{path} does not say what network it holds; take a checkpoint that `deeplab fit` wrote.")
    with quietly():
        return SegmentationModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def _require_onnx() -> None:
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--format onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or in a checkout "
            "`pip install .[export]`. --format torch_export needs nothing more."
        )
