"""Load trained networks in Python, and predict pictures."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deeplab_lightning import kernels
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets.image_folder import ImageFolderDataset
from deeplab_lightning.data.image_format import PLAIN, ImageFormat
from deeplab_lightning.data.images import LARGE_PIXELS, MAX_PIXELS, read_image
from deeplab_lightning.drawing import overlay, palette_image, viewable
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.files import write_atomically
from deeplab_lightning.inference import Ensemble, View, Views
from deeplab_lightning.inference.engines import EngineName, EngineNet, check_engine
from deeplab_lightning.inference.exported import read_module, refuse_impossible
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.inference.tiles import Tiled, Tiles
from deeplab_lightning.kernels import Door
from deeplab_lightning.labels import find_in_tiles
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.resizing import resize
from deeplab_lightning.runs import ExperimentFolder

Picture = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor
_WHAT_PICTURES_ARE = "a picture must be a path, a PIL image, a NumPy array or a tensor"


class Prediction:
    """Hold what a model finds in a picture; a notebook shows it.

    Attributes:
        image: (H, W, C) uint8.
        mask: (H, W) uint8 train ids.
        probabilities: (K, H, W) float32, which sum to 1 over the classes; None if they were not asked for.
        classes: The class table.
    """

    def __init__(
        self,
        image: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        probabilities: npt.NDArray[np.float32] | None,
        classes: ClassTable,
    ) -> None:
        self.image, self.mask, self.probabilities, self.classes = image, mask, probabilities, classes

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Blend the colours of the classes into the picture."""
        return Image.fromarray(overlay(viewable(self.image), self.mask, self.classes, opacity=opacity))

    def save(self, path: str | Path) -> None:
        """Write the mask as a palette PNG, as `deeplab predict` does.

        Raises:
            ValueError: If the path does not end in `.png`.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"masks are saved as .png, which changes no label; got {path}.")
        image = palette_image(self.mask, self.classes)
        write_atomically(Path(path), lambda file: image.save(file, format="PNG"))

    def shares(self) -> dict[str, float]:
        """Return the share of the pixels of each class that was found."""
        counts = np.bincount(self.mask.reshape(-1), minlength=self.classes.num_classes)
        return {name: count / self.mask.size for name, count in zip(self.classes.names, counts, strict=True) if count}

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items())
        return f"Prediction of {self.mask.shape[0]}x{self.mask.shape[1]} pixels: {found}"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.overlay().save(file, format="PNG")
        return file.getvalue()


class Model:
    """Predict pictures with one or several trained networks. `load` makes it.

    Attributes:
        classes: The class table.
        net: The networks and views whose probabilities are averaged.
    """

    def __init__(
        self, modules: Sequence[SegmentationModule], views: Views, device: torch.device, engine: EngineName = "torch"
    ) -> None:
        self.classes = modules[0].classes
        nets: list[DeepLab] = [module.net.to(device).eval() for module in modules]
        if device.type == "cpu" and all(module.cpu_kernels for module in modules):
            for net in nets:
                kernels.speed_up(net)
        if engine != "torch":
            nets = [EngineNet(net, engine) for net in nets]
        self.net, self.device = Ensemble(nets, views), device
        given = nets[0].preprocess.image_format
        self.image_format = PLAIN if given is None else ImageFormat(**given)

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        min_area: int | Mapping[str, int] | None = None,
        probabilities: bool = True,
    ) -> Any:
        """Find the classes of the pixels of pictures, at their own size.

        Args:
            pictures: A file, a PIL image, an array (H, W, C) or (H, W) or a tensor (C, H, W) of uint8; a list of
                them; or a folder or `.txt` list of files, as for `deeplab predict --images`.
            tile: Height and width in pixels of the tiles in which larger pictures are predicted, a multiple of 32;
                whole pictures if None. See `Tiled`.
            overlap: Pixels that neighbouring tiles share; an eighth of the tile if None.
            min_area: Pixels of the smallest region that is kept, or a mapping from class names to it; see
                `RegionFilter`. The probabilities stay as they are.
            probabilities: Whether to keep the probabilities, K floats per pixel. Without them, a picture in tiles takes
                the memory of a tile besides its own.

        Returns:
            A `Prediction`, or for a list a list of them, or for a folder a dictionary by the pictures' keys.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a picture cannot be read, or has other channels, or tile, overlap or min_area cannot be used.
        """
        with _names_of_python():
            tiles = Tiles.parse(tile, overlap)
            regions = RegionFilter.parse(min_area, self.classes.names)
        find = partial(self._one, tiles=tiles, regions=regions, keeps_probabilities=probabilities)
        if isinstance(pictures, str | Path):
            path = Path(pictures)
            if path.is_dir() or path.suffix.lower() == ".txt":
                found = ImageFolderDataset([str(path)], self.image_format)
                return {name: find(file) for name, file in zip(found.names, found.paths, strict=True)}
        if isinstance(pictures, str | Path | Image.Image | np.ndarray | Tensor):
            return find(pictures)
        if not isinstance(pictures, Iterable):
            raise UserError(f"{_WHAT_PICTURES_ARE}, or a list of them, got {type(pictures).__name__}.")
        return [find(picture) for picture in pictures]

    @torch.no_grad()
    def probabilities(self, image: Tensor, *, tiles: Tiles | None = None) -> Tensor:
        """Compute the probabilities (K, H, W) float32 of one image (C, H, W) uint8, on the model's device."""
        net = self.net if tiles is None else self._tiled(tiles)
        return self._at_own_size(image, lambda shrunk: net(shrunk).exp())

    @property
    def num_networks(self) -> int:
        """Return the number of networks that are averaged."""
        return len(self.net.nets)

    @torch.no_grad()
    def of_view(self, image: Tensor, view: View, *, tiles: Tiles | None = None) -> Tensor:
        """Compute the mean probabilities (K, H, W) float32 of one view of an image (C, H, W) uint8, or of its tiles."""

        def compute(part: Tensor) -> Tensor:
            return self.net.of_view(part, view)

        tiled = None if tiles is None else self._tiled(tiles)
        return self._at_own_size(
            image, lambda x: compute(x) if tiled is None or tiled.is_whole(x) else tiled.assembled(x, compute).exp()
        )

    def _tiled(self, tiles: Tiles) -> Tiled:
        """Return the networks in tiles.

        Raises:
            UserError: If they were evaluated at different sizes, so that one tile would have to be of several.
        """
        nets: Any = self.net.nets
        sizes = {net.preprocess.max_size for net in nets}
        if len(sizes) > 1:
            raise UserError(
                f"networks that were evaluated at different max_size ({', '.join(sorted(map(str, sizes)))}) cannot be "
                "averaged in tiles; predict whole pictures, or average networks of one size."
            )
        return Tiled(self.net, tiles)

    def _at_own_size(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute (K, H, W) of an image at its own size by a function of the shrunk images (1, C, h, w)."""
        found = compute(self.net.preprocess.shrink(image[None]).to(self.device))
        size = (image.shape[-2], image.shape[-1])
        return (found if found.shape[-2:] == size else resize(found, size))[0]

    @torch.no_grad()
    def _one(
        self, picture: Picture, *, tiles: Tiles | None, regions: RegionFilter | None, keeps_probabilities: bool
    ) -> Prediction:
        image = self._pixels(picture, LARGE_PIXELS if tiles else MAX_PIXELS)
        size = (image.shape[-2], image.shape[-1])
        pixels = image.permute(1, 2, 0).numpy()
        shrunk = self.net.preprocess.shrink(image[None]).to(self.device)
        net = self.net if tiles is None else self._tiled(tiles)
        if isinstance(net, Tiled) and not net.is_whole(shrunk) and not keeps_probabilities:
            mask = find_in_tiles(net, shrunk, size, door=Door())[0].cpu().numpy()
            return Prediction(pixels, mask if regions is None else regions.filtered(mask), None, self.classes)
        values = self.probabilities(image, tiles=tiles).cpu().numpy()
        mask = values.argmax(axis=0).astype(np.uint8)
        mask = mask if regions is None else regions.filtered(mask)
        return Prediction(pixels, mask, values if keeps_probabilities else None, self.classes)

    def read(self, path: Path) -> Tensor:
        """Read an image file as the networks were trained on: (C, H, W) uint8."""
        return read_image(path, self.image_format)

    def _pixels(self, picture: Picture, max_pixels: int) -> Tensor:
        """Return a picture as (C, H, W) uint8."""
        here = Path("the picture")
        if isinstance(picture, str | Path):
            return read_image(Path(picture), self.image_format, max_pixels=max_pixels)
        if isinstance(picture, Tensor):
            if picture.dtype != torch.uint8 or picture.ndim != 3 or len(picture) != self.image_format.channels:
                raise UserError(
                    f"a tensor must be ({self.image_format.channels}, H, W) uint8, got {tuple(picture.shape)} "
                    f"{picture.dtype}."
                )
            return picture.cpu()
        if isinstance(picture, Image.Image):
            array = self.image_format.from_pillow(ImageOps.exif_transpose(picture), here)
        else:
            array = self.image_format.from_array(_checked_array(picture, self.image_format), here)
        return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def _checked_array(picture: Any, image_format: ImageFormat) -> npt.NDArray[Any]:
    """Return an array without an alpha channel that RGB has no use for, as Pillow's images lose it.

    Raises:
        UserError: If it is no array, or its values are neither uint8 nor of the range that the network was trained on.
    """
    if not isinstance(picture, np.ndarray):
        raise UserError(f"{_WHAT_PICTURES_ARE}, got {type(picture).__name__}.")
    if image_format.value_range is None and picture.dtype not in (np.uint8, np.bool_):
        raise UserError(
            f"an array must be uint8 of 0 to 255, as the network was trained on, got {picture.dtype}: convert it, as "
            "by (255 * picture).astype(np.uint8) if its values are 0 to 1."
        )
    has_alpha = picture.ndim == 3 and picture.shape[-1] == 4 and image_format.channels == 3
    return picture[..., :3] if has_alpha else picture


def load(
    source: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    tta: str | None = None,
    engine: EngineName = "torch",
    trust: bool = False,
) -> Model:
    """Load a trained network, or several whose probabilities are averaged.

    Args:
        source: A checkpoint or a file of `deeplab export`, a list of them, or the folder of a run or of a K-fold
            experiment, of which the best checkpoints are taken.
        device: Device to compute on; if None a GPU, if there is one and the engine is torch, else the CPU.
        tta: Views of each picture that are averaged: `flip`, `scales=[0.75,1,1.25]`, or both with a comma.
        engine: What computes the networks: `torch`, or on the CPU, in fp32, `openvino` or `onnx`, see `EngineNet`.
        trust: Whether the checkpoints may name classes of any package, see `SegmentationModule.load_from_checkpoint`,
            and archives of `torch.export` be loaded, which runs code that lies in them.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If a checkpoint cannot be used, they differ in their classes, or the engine cannot compute here.
        RuntimeError: If the engine's package is missing, or it cannot compute a network.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    paths = [path for entry in given for path in _checkpoints(Path(entry))]
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() and engine == "torch" else "cpu"))
    check_engine(engine, chosen)
    if not paths:
        raise UserError("an ensemble needs at least one network.")
    with _names_of_python():
        views = Views.parse(tta)
    modules = [read_module(path, trust=trust) for path in paths]
    for module in modules:
        refuse_impossible(module.net, views=views, is_averaged=len(modules) > 1, engine=engine)
    return Model(modules, views, chosen, engine)


@contextmanager
def _names_of_python() -> Iterator[None]:
    """Name arguments in errors as Python has them: `tile` instead of `--tile`."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--(\w+)", r"\1", str(error))) from error


def _checkpoints(path: Path) -> list[Path]:
    """Return a checkpoint itself, or the best ones of the runs in a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not path.is_dir():
        return [path]
    files = ExperimentFolder(path)
    found = [run.best for part in (files.seeds() or [files]) for run in part.runs() if run.best.is_file()]
    if not found:
        raise MissingFileError(f"no finished run with a best.ckpt in {path.absolute()}.")
    return found
