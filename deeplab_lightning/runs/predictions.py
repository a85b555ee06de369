"""Name and write the files of predicted images and of suspected labels."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from deeplab_lightning.errors import UserError
from deeplab_lightning.files import write_text
from deeplab_lightning.tables import csv_text, read_csv

_MAX_NAME = 250  # bytes of a file's name without suffix; file systems allow 255 with it


class PredictionFolder:
    """Name the files of predicted images.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.masks, self.overlays = self.path / "masks", self.path / "overlays"
        self.confidences, self.arrays = self.path / "confidence", self.path / "probabilities"
        self.table = self.path / "predictions.csv"
        """Mask and overlay of each image key; written first, so that it marks a folder of ours."""

    def mask(self, stem: str | Path) -> Path:
        """Return the path of a palette PNG, from its path without suffix relative to `masks/`."""
        return self.masks / f"{stem}.png"

    def overlay(self, stem: str | Path) -> Path:
        """Return the path of an overlay, from its path without suffix relative to `overlays/`."""
        return self.overlays / f"{stem}.jpg"

    def overlay_video(self, stem: str | Path) -> Path:
        """Return the path of the overlays of a video, from the folder of its frames relative to `overlays/`."""
        return self.overlays / f"{stem}.mp4"

    def confidence(self, stem: str | Path) -> Path:
        """Return the path of a grey PNG of confidences, from its path without suffix relative to `confidence/`."""
        return self.confidences / f"{stem}.png"

    def probabilities(self, stem: str | Path) -> Path:
        """Return the path of an archive of probabilities, likewise relative to `probabilities/`."""
        return self.arrays / f"{stem}.npz"

    def own_file(self, name: str, option: str) -> Path:
        """Return the path of a further file of the predictions.

        Args:
            name: Its path relative to the folder.
            option: Name of the option that it comes from.

        Raises:
            ValueError: If it is outside the folder, among its masks and other files, or exists.
        """
        own, path = {self.table, self.masks, self.overlays, self.confidences, self.arrays}, self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or own & {path, *path.parents} or path == self.path:
            raise UserError(
                f"{option} must be a new file name in the folder of the predictions, such as {option.strip('-')}-1, "
                f"got {name!r}."
            )
        if path.exists():
            raise UserError(f"{option}: {path} exists. Choose another name.")
        return path

    def begin(self, stems: Mapping[str, str], kinds: Sequence[str] = ("mask", "overlay")) -> None:
        """Write the table of the files that will be written.

        Args:
            stems: Path without suffix of each image key, see `prediction_stems`.
            kinds: What is written of each image: `mask`, `overlay`, `confidence`, `probabilities`.

        Raises:
            ValueError: If the folder holds masks or others that no prediction wrote, such as the user's own masks.
        """
        for folder in (self.masks, self.overlays, self.confidences, self.arrays):
            if not self.table.is_file() and folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder} holds files that no prediction wrote. Choose another folder for the output.")
        rows = [
            [name, *(getattr(self, kind)(stem).relative_to(self.path).as_posix() for kind in kinds)]
            for name, stem in stems.items()
        ]
        write_text(self.table, csv_text([["image", *kinds], *rows]))

    def read_masks(self) -> dict[str, Path] | None:
        """Read the path of the mask of each image key; None for a folder of an earlier version.

        Raises:
            DataError: If the table is damaged.
        """
        if not self.table.is_file():
            return None
        return {row["image"]: self.path / row["mask"] for row in read_csv(self.table, ("image", "mask"))}


class SuspectsFolder:
    """Name the files of `deeplab suspects`.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.table, self.images_table = self.path / "suspects.csv", self.path / "suspect_images.csv"
        """The suspected regions, and all images by the highest score of their regions."""
        self.coco = self.path / "suspects.json"
        """The proposed labels of the regions, for annotation tools."""
        self.page = self.path / "suspects.html"


def prediction_stems(names: Sequence[str]) -> dict[str, str]:
    """Map image keys to the paths of their predictions without suffix, relative to the folder of the predictions.

    The path of a key is its own without suffix and without what leads out of the folder. Keys that would share files,
    also where case does not count, keep their suffix, and those that still would get a number made from the key. So
    does a name that is longer than a file system allows.

    Args:
        names: Keys of all images that are predicted together.
    """
    plain = {
        name: _inside(str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else "") for name in names
    }
    suffixed = {name: _inside(name) for name in names}
    counts = Counter(stem.casefold() for stem in plain.values())
    stems = {name: stem if counts[stem.casefold()] == 1 else suffixed[name] for name, stem in plain.items()}
    # A file of one key may also be the folder of another one.
    folders = {str(parent).casefold() for stem in stems.values() for parent in PurePosixPath(stem).parents}
    counts = Counter(stem.casefold() for stem in stems.values())
    for name, stem in stems.items():
        is_folder = any(f"{stem}{suffix}".casefold() in folders for suffix in (".png", ".jpg", ".npz"))
        is_long = any(len(part.encode()) > _MAX_NAME for part in PurePosixPath(stem).parts)
        if counts[stem.casefold()] > 1 or is_folder or is_long:
            stems[name] = _numbered(stem, name)
    return stems


def _inside(key: str) -> str:
    """Return a relative path without the parts that lead out of a folder."""
    parts = [part for part in PurePosixPath(key.replace("\0", "")).parts if part not in {"/", "//", "..", "."}]
    return "/".join(parts) or "image"


def _numbered(stem: str, name: str) -> str:
    """Shorten the parts of a path where needed, and end it with a number made from the key."""
    number = hashlib.sha256(name.encode()).hexdigest()[:12]
    parts = [part.encode()[: _MAX_NAME - len(number) - 1].decode(errors="ignore") for part in stem.split("/")]
    return f"{'/'.join(parts)}-{number}"


def refuse_output_among_images(output: Any, images: Any) -> None:
    """Refuse to write predictions into a folder of images, where the next prediction would take them for images.

    Args:
        output: Folder to write to; None if it is not chosen yet.
        images: Path of the images, or a list of paths; None if the configuration names no images.

    Raises:
        ValueError: If the folder is one of the images' or lies in it, or its masks would replace the images.
    """
    if output is None:
        return
    folder = Path(output).resolve()
    for path in images if isinstance(images, list | tuple) else [images]:
        if path is None or not Path(path).is_dir():
            continue
        if folder.is_relative_to(Path(path).resolve()):
            raise UserError(
                f"predictions in {output} would lie in the folder of the images, {path}, where the next prediction "
                "would take the masks for images. Choose an --output outside."
            )
        own = PredictionFolder(folder)
        written = (own.masks, own.overlays, own.confidences, own.arrays)
        if any(Path(path).resolve().is_relative_to(part) for part in written):
            raise UserError(f"predictions in {output} would replace the images in {path}. Choose another --output.")
