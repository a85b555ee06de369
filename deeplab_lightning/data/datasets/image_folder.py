"""Read images without masks, for predict."""

import copy
import mimetypes
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.image_format import PLAIN, ImageFormat
from deeplab_lightning.data.images import IMAGE_SUFFIXES, MAX_PIXELS, image_size, planar, read_image
from deeplab_lightning.data.problems import Problem, data_error
from deeplab_lightning.data.video import VIDEO_SUFFIXES, Video
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.files import read_lines


class ImageFolderDataset(Dataset[Sample]):
    """Read images from folders, list files and single files, sorted by name.

    Args:
        sources: Folders (searched with their subfolders), image files, videos, whose frames are images, and `.txt`
            files with one image path per line, relative to the text file's folder, or a path and the image's key with
            a tab between them.
        image_format: Channels and values of the images.
        max_pixels: Largest number of pixels of an image that is read.

    Files and folders whose names begin with a dot are left out of folders, and images of other kinds with a warning. An
    image that cannot be read raises an error when it is asked for, so that the others can be predicted. Videos are
    taken where they are named themselves, and a file that is named itself must be of one of these kinds.

    Attributes:
        names: Keys of the images; those of a video's frames are the video's name and their number.
        paths: Their files; those of frames lie in the video's path.
        videos: The videos by their paths.

    Raises:
        FileNotFoundError: If a source does not exist.
        DataError: If no image was found.
        ValueError: If a source is a file of another kind, a video cannot be read, or the images have other channels
            than its frames.
        RuntimeError: If the package that reads videos is missing.
    """

    def __init__(
        self, sources: Sequence[str], image_format: ImageFormat = PLAIN, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.image_format, self.max_pixels = image_format, max_pixels
        found: dict[str, Path] = {}
        self.videos: dict[Path, Video] = {}
        for source in map(Path, sources):
            if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
                self.videos[source] = Video(source)
                count = self.videos[source].num_frames
                own = {f"{source.stem}/{name}": source / name for name in map("{:06d}.png".format, range(count))}
            else:
                own = _images(source)
            for name, path in own.items():
                key = name if found.get(name, path) == path else path.as_posix()
                found[key] = path
        if not found:
            raise data_error(
                [
                    Problem(
                        ", ".join(map(str, sources)) or "no source",
                        f"no image found ({', '.join(IMAGE_SUFFIXES)})",
                        "Give folders of images, image files, videos or .txt lists.",
                    )
                ]
            )
        self.names = sorted(found)
        self.paths = [found[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def read_image(self, index: int) -> Tensor:
        """Read image `index` as (C, H, W) uint8."""
        path = self.paths[index]
        if (video := self.videos.get(path.parent)) is not None:
            pixels = self.image_format.from_array(video.frame(int(path.stem)), video.path)
            return planar(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
        return read_image(path, self.image_format, max_pixels=self.max_pixels)

    def reopened(self) -> "ImageFolderDataset":
        """Return the same images with readers of the videos that have places of their own."""
        other = copy.copy(self)
        other.videos = {path: video.fresh() for path, video in self.videos.items()}
        return other

    def __getitem__(self, index: int) -> Sample:
        image = self.read_image(index)
        return Sample(tv_tensors.Image(image), None, self.names[index], (image.shape[1], image.shape[2]))


def check_source(source: Path) -> None:
    """Refuse what no images can be read from, without looking into folders and lists.

    Args:
        source: A folder, a list file, a video or an image, which may have any suffix.

    Raises:
        FileNotFoundError: If it does not exist.
        UserError: If it is a file of another kind.
    """
    if source.is_dir():
        return
    if not source.is_file():
        raise MissingFileError(f"no such image, folder or list: {source.absolute()}")
    if source.suffix.lower() in {".txt", *IMAGE_SUFFIXES, *VIDEO_SUFFIXES}:
        return
    try:
        image_size(source)
    except ValueError as error:
        raise UserError(
            f"{source}: is no image. Give a folder, an image ({', '.join(IMAGE_SUFFIXES)}), a video "
            f"({', '.join(VIDEO_SUFFIXES)}) or a .txt list of images."
        ) from error


def _images(source: Path) -> dict[str, Path]:
    """Map names to the image files of one folder, list file or image file."""
    check_source(source)
    if source.is_dir():
        files = FolderIndex(source).names
        names = [name for name in files if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        _warn_of_other_kinds(source, sorted(set(files) - set(names)))
        return {name: source / name for name in names}
    if source.suffix.lower() == ".txt":
        entries = (_entry(line, source.parent) for line in read_lines(source) if line.strip())
        return dict(entries)
    return {source.name: source}


def _warn_of_other_kinds(folder: Path, names: Sequence[str]) -> None:
    """Warn of images and videos in a folder that are left out, by the kinds that their suffixes mean."""
    kinds = Counter(
        PurePosixPath(name).suffix.lower()
        for name in names
        if (mimetypes.guess_type(name)[0] or "").startswith(("image/", "video/"))
    )
    if kinds:
        counts = ", ".join(f"{number} {suffix}" for suffix, number in kinds.items())
        warnings.warn(
            f"{folder}: files of other kinds are left out ({counts}). Images are read as {', '.join(IMAGE_SUFFIXES)}, "
            "videos where they are named themselves.",
            stacklevel=2,
        )


def _entry(line: str, folder: Path) -> tuple[str, Path]:
    """Return key and file of a line: a path, or a path and a key with a tab between them."""
    path, tab, key = line.strip().rpartition("\t")
    if tab and not (folder / line.strip()).is_file():
        return key, folder / path.strip()
    return line.strip().lstrip("/"), folder / line.strip()
