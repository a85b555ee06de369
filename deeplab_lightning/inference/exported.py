"""Use a file of `deeplab export` as the network of a prediction or an evaluation."""

import json
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.fold_split import SPLIT_KEYS
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError
from deeplab_lightning.export.formats import Opened, open_onnx, open_openvino, open_program
from deeplab_lightning.inference import Views
from deeplab_lightning.models.backbone import Backbone
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.module import SegmentationModule

_OPENERS = {".onnx": open_onnx, ".pt2": open_program, ".xml": open_openvino}
_NEEDED_PACKAGES = {".onnx": ("onnxruntime", "export"), ".xml": ("openvino", "openvino")}  # package, our extra
_NEEDED = ("classes", "palette", "mean", "std", "max_size", "input", "output")
_SURE = 100.0  # logit of the label of a file that returns labels; the softmax of the others is 0
_vouched: set[Path] = set()  # archives whose code the user trusts, in this process


def is_exported(path: str | Path) -> bool:
    """Check by its name whether a file is one of `deeplab export` instead of a checkpoint."""
    return Path(path).suffix.lower() in _OPENERS


def trust_file(path: str | Path) -> None:
    """Allow this process to load an archive of `torch.export`, which may run code that lies in it."""
    _vouched.add(Path(path).resolve())


class ExportedFile(NamedTuple):
    """Hold an exported file and what it says of its images and classes.

    Attributes:
        path: The file.
        opened: Its function, metadata and fixed sizes.
        classes: Class names and colours.
    """

    path: Path
    opened: Opened
    classes: ClassTable

    @property
    def takes_pixels(self) -> bool:
        """Check whether the graph shrinks and normalises uint8 images itself."""
        return " uint8 " in self.opened.metadata["input"]

    @property
    def returns_labels(self) -> bool:
        """Check whether the graph returns labels instead of logits."""
        return self.opened.metadata["output"].startswith("labels")

    @property
    def min_size(self) -> int:
        """Return the smallest height and width in pixels."""
        found = re.search(r"at least (\d+)", self.opened.metadata["input"])
        return int(found[1]) if found else 1

    def value(self, key: str) -> Any:
        """Return an entry of the metadata that is written as JSON; None if it is missing."""
        return json.loads(self.opened.metadata.get(key, "null"))

    @property
    def max_size(self) -> int | None:
        """Return the longer side to which images are shrunk before they enter the graph; None for no limit.

        Labels cannot be enlarged well, so a graph that returns them and can shrink gets the images as they are.
        """
        own: int | None = self.value("max_size")
        return None if self.takes_pixels and self.returns_labels else own

    @property
    def split(self) -> dict[str, Any] | None:
        """Return the fold that the network held out and the settings of its split.

        Empty if there were no folds; None if the file does not say it, as those of earlier versions.
        """
        own: dict[str, Any] | None = self.value("split")
        return own

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation by which images are normalised before they enter the graph, on the scale of 0-1."""
        mean, std = self.value("mean"), self.value("std")
        if self.takes_pixels:  # which stay 0-255
            return (0.0,) * len(mean), (1 / 255,) * len(std)
        return tuple(mean), tuple(std)


def read_exported(path: str | Path) -> ExportedFile:
    """Open a file of `deeplab export`.

    Args:
        path: An ONNX file, the graph (.xml) of OpenVINO's two files, or an archive of `torch.export` that
            `trust_file` was called for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or was not written by `deeplab export`.
        RuntimeError: If onnxruntime or openvino is missing.
    """
    file = Path(path).absolute()
    if not file.is_file():
        raise MissingFileError(f"no such exported file: {file}")
    suffix = file.suffix.lower()
    package, extra = _NEEDED_PACKAGES.get(suffix, (None, None))
    if package is not None and find_spec(package) is None:
        raise UnavailableError(
            f"{path} needs {package}: `pip install {package}`, or in a checkout `pip install .[{extra}]`."
        )
    if suffix == ".xml" and not file.with_suffix(".bin").is_file():
        raise MissingFileError(
            f"{path} holds a graph without weights: {file.with_suffix('.bin').name} must be beside it."
        )
    if suffix == ".pt2" and file.resolve() not in _vouched:
        raise UserError(
            f"{path}: an archive of torch.export may run code that lies in it when it is loaded. If you trust it, use "
            "--trust, in Python trust=True; an ONNX file runs none."
        )
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> ExportedFile:
    try:
        opened = _OPENERS[file.suffix.lower()](file)
    except Exception as error:  # the libraries raise errors of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file} cannot be loaded; it is damaged, cut off or of another format ({reason}).") from error
    if missing := [key for key in _NEEDED if key not in opened.metadata]:
        raise UserError(
            f"{file} was not written by `deeplab export`: its metadata lack {', '.join(missing)}. Export the "
            "checkpoint by `deeplab export`."
        )
    try:
        classes = ClassTable(json.loads(opened.metadata["classes"]), colors=json.loads(opened.metadata["palette"]))
        exported = ExportedFile(file, opened, classes)
        exported.statistics(), exported.value("max_size"), exported.value("image_format")
        if exported.split and not set(SPLIT_KEYS) <= set(exported.split):
            raise ValueError("split")
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} has damaged metadata ({error}). Export the checkpoint again.") from error
    return exported


class ExportedNet(DeepLab):
    """Segment images by a file of `deeplab export`, which is computed on the CPU.

    Args:
        num_classes: Number of classes K of the data.
        file: The ONNX file, the .xml file of OpenVINO, or an archive of `torch.export`.
        in_channels: Channels of the images.

    Attributes:
        file: The file and what it says of itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be used, or has other classes or channels than the data.
    """

    def __init__(self, num_classes: int, *, file: str, in_channels: int = 3) -> None:
        exported = read_exported(file)
        found, channels = exported.classes.num_classes, len(exported.value("mean"))
        if found != num_classes:
            raise UserError(f"{file} finds {found} classes, but the data have {num_classes}.")
        if channels != in_channels:
            raise UserError(
                f"{file} takes images of {channels} channels, but those of the data have {in_channels}: set "
                "data.image_format as in the training."
            )
        super().__init__(_Graph(exported), nn.Identity(), num_classes=num_classes)
        self.file = exported
        self.class_names = list(exported.classes.names)
        self.palette = [list(color) for color in exported.classes.colors or ()]
        self.preprocess.max_size = exported.max_size
        self.preprocess.image_format = exported.value("image_format")


class _Graph(Backbone):
    """Compute the logits (B, K, H, W) of prepared images as the only feature map."""

    def __init__(self, file: ExportedFile) -> None:
        super().__init__()
        self.file = file
        self.channels, self.strides = [file.classes.num_classes], [1]
        self.mean, self.std = file.statistics()
        self.in_channels = len(self.mean)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the logits of images (B, C, H, W); smaller ones than the graph takes are continued at their edges."""
        height, width = images.shape[-2:]
        rest = [wanted - length for wanted, length in zip(self._size(height, width), (height, width), strict=True)]
        padded = F.pad(images.detach().float().cpu(), (0, rest[1], 0, rest[0]), mode="replicate")
        pixels = padded.round().clamp(0, 255).to(torch.uint8) if self.file.takes_pixels else padded
        batch = self.file.opened.size[0] or len(pixels)
        found = torch.cat([self._run(part, batch) for part in pixels.split(batch)])
        if self.file.returns_labels:
            found = F.one_hot(found.long(), self.channels[0]).movedim(-1, 1) * _SURE
        return [found[..., :height, :width].float().to(images.device)]

    def _size(self, height: int, width: int) -> list[int]:
        """Return the height and width of what enters the graph."""
        sizes = []
        for length, fixed in zip((height, width), self.file.opened.size[1:], strict=True):
            if fixed is not None and length > fixed:
                rows, columns = self.file.opened.size[1:]
                raise UserError(
                    f"{self.file.path} takes images of at most {rows} x {columns} pixels, got {height} x {width}: "
                    "predict in tiles of at most that size, such as --tile 256."
                )
            sizes.append(fixed or max(length, self.file.min_size))
        return sizes

    def _run(self, images: Tensor, batch: int) -> Tensor:
        """Run the graph on images; the last ones may be fewer than a graph with a fixed batch takes."""
        spare = batch - len(images)
        filled = torch.cat([images, images[:1].expand(spare, *images.shape[1:])]) if spare else images
        with torch.no_grad():
            return self.file.opened.run(filled.contiguous())[: len(images)]


def refuse_impossible(
    net: nn.Module,
    *,
    views: Views = Views(),  # noqa: B008
    is_averaged: bool = False,
    is_tiled: bool = False,
    engine: str = "torch",
) -> None:
    """Refuse what an exported file cannot do; a network of a checkpoint can do all of it.

    Args:
        net: The network.
        views: Views of each image that are averaged.
        is_averaged: Whether probabilities are averaged or written.
        is_tiled: Whether large images are processed in tiles.
        engine: What is to compute the network.

    Raises:
        UserError: If it cannot.
    """
    if not isinstance(net, ExportedNet):
        return
    file = net.file
    if engine != "torch":
        _refuse(file, f"it is computed as it is, and not by --engine {engine}; leave --engine out")
    if file.returns_labels and (is_averaged or views != Views()):
        _refuse(file, "it returns labels, and this needs probabilities; export it without --argmax")
    max_size = file.value("max_size")
    if file.max_size != max_size and is_tiled:
        _refuse(file, f"it shrinks whole images to {max_size} pixels and returns labels; leave --tile out")
    if file.takes_pixels and max_size is not None and max(views.scales) > 1:
        _refuse(
            file,
            f"it shrinks images to {max_size} pixels, so views of scales above 1 would show nothing more; export it "
            "with --preprocess metadata",
        )


def _refuse(file: ExportedFile, reason: str) -> NoReturn:
    raise UserError(f"{file.path.name}: {reason}.")


def exported_module(path: str | Path, *, trust: bool = False) -> SegmentationModule:
    """Build a module around a file of `deeplab export`.

    Args:
        path: The file.
        trust: Whether an archive of `torch.export` may be loaded, which runs code that lies in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be used.
    """
    if trust:
        trust_file(path)
    file = read_exported(path)
    net = ExportedNet(file.classes.num_classes, file=str(path), in_channels=len(file.value("mean")))
    return SegmentationModule(net, classes=file.classes)


def read_module(path: str | Path, *, trust: bool = False) -> SegmentationModule:
    """Load the module of a checkpoint, or of a file of `deeplab export`, on the CPU.

    Args:
        path: The checkpoint or the exported file.
        trust: Whether a checkpoint may name classes of any package, and an archive of `torch.export` be loaded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be used.
    """
    if is_exported(path):
        return exported_module(path, trust=trust)
    return SegmentationModule.load_from_checkpoint(path, map_location="cpu", trust=trust)
