"""Run `deeplab export`: write a checkpoint as one file that runs without this package."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

from deeplab_lightning.checkpoints import gaps, network_problem, read_checkpoint
from deeplab_lightning.commands.parsers import export_parser
from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.export import InferenceModel, compare, trace
from deeplab_lightning.export.formats import quietly, run_onnx, run_program, write_onnx, write_program
from deeplab_lightning.files import naming_errors
from deeplab_lightning.module import SegmentationModule

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(args: list[str]) -> None:
    """Write the network of a checkpoint, including what its images go through before, as one file.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the checkpoint is damaged, or does not describe its network.
        RuntimeError: If a package is missing, the network cannot be traced, or the file gives other results.
    """
    given = export_parser().parse_args(args)
    if given.format == "onnx":
        _require_onnx()
    model = InferenceModel(
        _load(Path(given.ckpt_path), trust=given.trust),
        has_preprocessing=given.preprocess == "graph",
        has_argmax=given.argmax,
    )
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming_errors(output),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch,
    ):
        file = Path(scratch) / ("model.onnx" if given.format == "onnx" else "model.pt2")
        write, load = (write_onnx, run_onnx) if given.format == "onnx" else (write_program, run_program)
        write(trace(model), model.metadata(), file)
        difference = compare(model, load(file))
        file.replace(output)
    print(f"Written to {output}, {output.stat().st_size / 1e6:.1f} MB; {difference}.")


def _load(path: Path, *, trust: bool) -> SegmentationModule:
    """Build the module of a checkpoint on the CPU."""
    checkpoint = read_checkpoint(path)
    if problem := network_problem(checkpoint, trust=trust):
        raise UserError(f"{path} {problem}; or use a checkpoint that describes it.")
    for text in gaps(checkpoint).values():
        print(f"Note: {path} {text}.", flush=True)
    with quietly():
        return SegmentationModule.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, trust=trust, postprocess=None
        )


def _require_onnx() -> None:
    """Check that the packages of the ONNX format are installed.

    Raises:
        RuntimeError: If one is missing.
    """
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--format onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or in a checkout "
            "`pip install .[export]`. --format torch_export needs no further package."
        )
