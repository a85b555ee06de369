"""Run `deeplab masks`: turn the CSV file of a competition back into masks."""

import tempfile
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from deeplab_lightning.commands.parsers import masks_parser
from deeplab_lightning.data.classes import MAX_CLASSES, ClassTable
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.images import IMAGE_SUFFIXES, MAX_PIXELS, image_size
from deeplab_lightning.data.transforms import resize_mask
from deeplab_lightning.drawing import palette_image
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.files import naming_errors, write_atomically
from deeplab_lightning.inference.csv_masks import Size, decode_csv


def masks(args: list[str]) -> None:
    """Decode all masks of a CSV file, and write them as palette PNGs if every row can be used.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        DataError: If a row cannot be decoded, or its image is not in the folder.
        ValueError: If the size is too large, or the output folder is not empty.
    """
    given = masks_parser().parse_args(args)
    source, output, size = given.csv, given.output, tuple(given.size) if given.size else None
    if not source.is_file():
        raise MissingFileError(f"no such file: {source.absolute()}")
    if size is not None and (min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
        raise UserError(f"--size must be a height and a width of at least 1 pixel, got {size[0]} {size[1]}.")
    if given.images is not None and not given.images.is_dir():
        raise MissingFileError(f"no such folder: {given.images.absolute()}. --images takes a folder of images.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not empty; give a new folder.")
    images = None if given.images is None else _Images(source, given.images)
    output.parent.mkdir(parents=True, exist_ok=True)
    with naming_errors(output), tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "masks"
        folder.mkdir()
        count = _write(source, folder, size, images)
        folder.replace(output)
    print(f"{count} masks written to {output}")
    if images is not None and (rest := images.without_mask()):
        print(f"{len(rest)} images of {images.folder} have no row in {source}, such as {rest[0]}.")


class _Images:
    """Find the images that rows name, and their sizes.

    Args:
        source: The CSV file, for messages.
        folder: Folder of the images.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder, self._index = source, folder, FolderIndex(folder)
        self._found: dict[str, str] = {}

    def size_of(self, line: int, name: str) -> Size:
        """Return the size of an image.

        Raises:
            DataError: If it is not in the folder, or cannot be read.
        """
        names = [name, *(f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)]
        found = next(filter(None, map(self._index.find, names)), None)
        if found is None:
            hint = self._index.hint(name)
            raise DataError(f"{self.source}, line {line}: no image {name} in {self.folder}. {hint}".strip())
        self._found[name] = found
        try:
            return image_size(self.folder / found)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.source}, line {line}: {error}") from error

    def without_mask(self) -> list[str]:
        """Return the images that no row has named."""
        used = set(self._found.values())
        return [n for n in self._index.names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES and n not in used]


def _write(source: Path, folder: Path, size: Size | None, images: _Images | None) -> int:
    """Write the masks of a CSV file below a folder, and return their number."""
    classes = ClassTable([f"class_{train_id}" for train_id in range(MAX_CLASSES)])  # for the colours
    line_of: dict[PurePosixPath, int] = {}
    size_of = (lambda line, name: None) if images is None else images.size_of
    for line, name, mask in decode_csv(source, size=size, size_of=size_of):
        path = _mask_path(source, line, name)
        if (other := line_of.setdefault(path, line)) != line:
            raise DataError(f"{source}, line {line}: {name} would have the mask {path}, as the image of line {other}.")
        wanted = mask.shape if images is None else images.size_of(line, name)
        full = mask if wanted == mask.shape else resize_mask(torch.from_numpy(mask), wanted).numpy()
        write_atomically(folder / path, partial(palette_image(full, classes).save, format="PNG"))
    if not line_of:
        raise DataError(f"{source} holds no image.")
    return len(line_of)


def _mask_path(source: Path, line: int, name: str) -> PurePosixPath:
    """Return the relative path of the mask of an image, the same as that of the image in its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
        raise DataError(f"{source}, line {line}: {name!r} is no relative path of an image.")
    is_suffixed = path.suffix.lower() in IMAGE_SUFFIXES
    return path.with_suffix(".png") if is_suffixed else path.with_name(f"{path.name}.png")
