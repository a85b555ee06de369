"""Read image and mask folders such as CamVid, PASCAL VOC and Cityscapes."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor

from deeplab_lightning.data.array_files import ARRAY_SUFFIX, TIFF_SUFFIXES
from deeplab_lightning.data.cache import content_key
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets.base import (
    MaskFacts,
    SegmentationDataset,
    UnknownMaskValuesError,
    count_values,
    size_problem,
    to_tensor,
)
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.images import IMAGE_SUFFIXES, image_size
from deeplab_lightning.data.mask_files import RawMask, read_raw_mask
from deeplab_lightning.data.problems import OnError, Problem
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.files import read_lines

_MAX_COLORS = 5  # in one message
_BLANKS = " \t\r"  # other white space may be part of a name
_ARRAYS = (ARRAY_SUFFIX, *TIFF_SUFFIXES)  # their size is known with the number of channels only: a scan compares it


class MaskFolderDataset(SegmentationDataset):
    """Read images from one folder and masks from another: index or palette files, or colours of the class table.

    The mask of an image has the same relative path, with `image_suffix` replaced by `mask_suffix`; the case of a
    file's suffix does not matter. Subfolders are searched. Files and folders whose names begin with a dot are left out,
    and so is the masks' folder where it lies in the images' folder.

    Args:
        root: Folder that the other paths are relative to.
        images: Folder of the images.
        masks: Folder of the masks.
        classes: Class names, colours, raw ids in the mask files and ids to ignore.
        list_file: Text file that selects images. A line holds an image's path relative to `images`, with or
            without its suffix (VOC), or an image and a mask path relative to `root` (CamVid's lists), with
            a tab or a blank between them. Names may hold blanks. If null, every image in the folder is used.
        image_suffix: End of the image names, which `mask_suffix` replaces in the mask names, such as
            `_leftImg8bit.png`. If null, any image suffix.
        mask_suffix: End of the mask names, such as `.png` or `_gtFine_labelIds.png`.
        on_error: `raise` stops at faulty files, `skip` leaves them out and lists them once.

    Raises:
        FileNotFoundError: If a folder or the list file does not exist.
        DataError: If there is no image, or a line of the list cannot be used or is repeated. With
            `on_error: raise` also for images without mask, two images of one mask, sizes that differ, and files
            that are not images.
    """

    def __init__(
        self,
        root: str,
        images: str,
        *,
        masks: str,
        classes: ClassTable,
        list_file: str | None = None,
        image_suffix: str | None = None,
        mask_suffix: str = ".png",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(on_error)
        self.classes = classes
        self.root = Path(root).expanduser()
        self.images, self.masks = self.root / Path(images).expanduser(), self.root / Path(masks).expanduser()
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                found = f"{folder.absolute()} is a file, not a folder" if folder.exists() else None
                raise MissingFileError(
                    f"{found or f'no such folder: {folder.absolute()}'}. "
                    "Set data.dataset.init_args.root, images and masks."
                )
        self.image_suffix, self.mask_suffix = image_suffix, mask_suffix
        self._image_index = FolderIndex(self.images)
        self._mask_index = self._image_index if self.masks == self.images else FolderIndex(self.masks)
        self.list_file = self.root / Path(list_file).expanduser() if list_file else None
        pairs = self._found() if self.list_file is None else self._listed(self.list_file)
        rows = sorted(pairs)
        if not rows:
            raise DataError(
                f"{self.images.absolute()}: no image found with a name that ends in "
                f"{image_suffix or ', '.join(IMAGE_SUFFIXES)}. Check images, image_suffix and list_file."
            )
        self.names = [name for name, _, _ in rows]
        self.paths = [image for _, image, _ in rows]
        self.mask_paths = [mask for _, _, mask in rows]
        self.report([*self._pairing_problems(), *self._header_problems()])

    @property
    def source(self) -> str:
        """Return the image folder."""
        return str(self.images)

    def read_mask(self, index: int) -> Tensor:
        """Read the mask of image `index` and encode its raw ids: (H, W) uint8 train ids.

        Raises:
            FileNotFoundError: If the mask file does not exist.
            ValueError: If it cannot be decoded, or holds values or colours that are not in the class table.
        """
        return self._encoded(index, read_raw_mask(self.mask_paths[index]))

    def inspect_mask(self, index: int) -> MaskFacts:
        """Read the mask of image `index` with its raw values and its palette."""
        raw = read_raw_mask(self.mask_paths[index])
        mask = self._encoded(index, raw)
        if raw.has_colors:
            return MaskFacts(mask, count_values(mask.numpy()), is_turned=raw.is_turned)
        return MaskFacts(mask, count_values(raw.ids), True, raw.palette, raw.is_turned)

    def _encoded(self, index: int, raw: RawMask) -> Tensor:
        if raw.has_colors:
            mask, colors = self.classes.encode_colors(raw.ids)
            if colors:
                some = ", ".join(map(str, colors[:_MAX_COLORS])) + (", ..." if len(colors) > _MAX_COLORS else "")
                fault = f"holds {len(colors)} colours (R, G, B) that are not in classes.colors: {some}"
                raise UserError(f"{self.mask_paths[index]}: {fault}")
            return to_tensor(mask)
        mask, unknown = self.classes.encode(raw.ids)
        if unknown:
            raise UnknownMaskValuesError(self.mask_paths[index], unknown)
        return to_tensor(mask)

    def fingerprint(self, index: int) -> str:
        """Return a key of the image file, the mask file and the class table."""
        stats = [path.stat() for path in (self.paths[index], self.mask_paths[index])]
        return content_key(
            self.paths[index].absolute(),
            self.mask_paths[index].absolute(),
            *((stat.st_size, stat.st_mtime_ns) for stat in stats),
            self.classes.to_dict(),
        )

    def remarks(self) -> list[str]:
        """Describe masks without image, and files that are left out."""
        used = {*self.mask_paths, *self.paths}
        masks = [n for n in self._mask_index.names if n.lower().endswith(self.mask_suffix.lower())]
        extra = [name for name in masks if self.masks / name not in used]
        lines = []
        if extra and self.list_file is None:  # else their images are those of other lists
            lines.append(f"masks without an image: {len(extra)}, such as {self.masks / extra[0]}.")
        others = [n for n in self._image_index.names if not self._is_image(n) and self.images / n not in used]
        if others and self.list_file is None:
            lines.append(f"files in {self.images} that are no images: {len(others)}, such as {others[0]}; left out.")
        indices = {id(index): index for index in (self._image_index, self._mask_index)}.values()
        if hidden := sum(index.num_hidden for index in indices):
            lines.append(f"files and folders whose names begin with a dot: {hidden}; left out.")
        return lines

    def _keep(self, indices: Sequence[int]) -> None:
        super()._keep(indices)
        self.mask_paths = [self.mask_paths[i] for i in indices]

    def _stem(self, name: str) -> str:
        """Remove the image suffix from a name."""
        if self.image_suffix is not None:
            is_suffixed = name.lower().endswith(self.image_suffix.lower())
            return name[: -len(self.image_suffix)] if is_suffixed else name
        return str(Path(name).with_suffix("")) if Path(name).suffix.lower() in IMAGE_SUFFIXES else name

    def _is_image(self, name: str) -> bool:
        """Check whether a file in the images' folder is an image by its name."""
        if self.image_suffix is not None:
            return name.lower().endswith(self.image_suffix.lower())
        return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES

    def _mask_of(self, name: str) -> Path:
        """Return the path of the mask of an image, which need not exist."""
        mask = f"{self._stem(name)}{self.mask_suffix}"
        return self.masks / (self._mask_index.find(mask) or mask)

    def _found(self) -> Iterator[tuple[str, Path, Path]]:
        """Yield (name, image file, mask file) for all images in the folder."""
        is_nested = self.masks != self.images and self.masks.is_relative_to(self.images)
        inner = f"{self.masks.relative_to(self.images).as_posix()}/" if is_nested else None
        for name in self._image_index.names:
            if self._is_image(name) and not (inner and name.startswith(inner)):
                yield name, self.images / name, self._mask_of(name)

    def _listed(self, list_file: Path) -> Iterator[tuple[str, Path, Path]]:
        """Yield (name, image file, mask file) for all images in the list file."""
        if not list_file.is_file():
            raise MissingFileError(f"no such list file: {list_file.absolute()}")
        lines_of: dict[str, list[int]] = defaultdict(list)
        for number, line in enumerate(read_lines(list_file), start=1):
            if entry := line.strip(_BLANKS):
                name, image, mask = self._entry(entry, f"{list_file}, line {number}")
                lines_of[name].append(number)
                yield name, image, mask
        for name, numbers in lines_of.items():
            if len(numbers) > 1:
                raise DataError(
                    f"{list_file}: lines {', '.join(map(str, numbers))} name the same image, {name}. Keep one of them."
                )

    def _entry(self, entry: str, where: str) -> tuple[str, Path, Path]:
        """Return (name, image file, mask file) of a line; the names may hold blanks.

        Raises:
            DataError: If the line can be read in neither way.
        """
        image = self._with_suffix(entry)
        if image is not None:
            name = image.relative_to(self.images).as_posix()
            return name, image, self._mask_of(name)
        columns = [column for part in entry.split("\t") if (column := part.strip(_BLANKS))]
        splits = [columns] if len(columns) > 1 else [list(pair) for pair in _cut_at_blanks(entry)]
        for split in splits:
            if len(split) == 2 and all((self._from_root(column)).is_file() for column in split):
                return split[0].lstrip("/"), self._from_root(split[0]), self._from_root(split[1])
        if len(splits) == 1 and len(splits[0]) == 2:  # the missing file becomes a problem of its own
            return splits[0][0].lstrip("/"), self._from_root(splits[0][0]), self._from_root(splits[0][1])
        if len(columns) > 2 or len(splits) > 1:
            count = len(columns) if len(columns) > 2 else len(entry.split())
            raise DataError(
                f"{where}: has {count} columns, and no two of its parts are files in {self.root}. "
                "A line must hold an image path, or an image path and a mask path."
            )
        if entry.startswith("/"):
            raise DataError(
                f"{where}: {entry} is an absolute path of another place. Write paths relative to {self.images}."
            )
        image = self.images / f"{entry}{'' if self._is_image(entry) else self.image_suffix or '.jpg'}"
        return image.relative_to(self.images).as_posix(), image, self._mask_of(entry)

    def _from_root(self, name: str) -> Path:
        """Return the path of a name in a list with two columns: below `root`, also if it begins with a slash."""
        return self.root / name.lstrip("/")

    def _with_suffix(self, name: str) -> Path | None:
        """Find the image of a list's entry: as written, or with an image suffix added; None if there is none."""
        if name.startswith("/"):
            if not Path(name).absolute().is_relative_to(self.images.absolute()):
                return None
            name = Path(name).absolute().relative_to(self.images.absolute()).as_posix()
        for suffix in ("", *((self.image_suffix,) if self.image_suffix else IMAGE_SUFFIXES)):
            if (found := self._image_index.find(f"{name}{suffix}")) is not None:
                return self.images / found
        return None

    def _pairing_problems(self) -> Iterator[Problem]:
        """Find images that are their own masks, and images that share a mask: copies, or masks taken for images."""
        images_of: dict[Path, list[int]] = defaultdict(list)
        for index, mask in enumerate(self.mask_paths):
            images_of[mask].append(index)
        for mask, indices in images_of.items():
            names = [self.names[i] for i in indices]
            is_mask = [_is_same_file(self.paths[i], mask) for i in indices]
            if all(is_mask):
                yield Problem(
                    str(mask),
                    "it is an image and its own mask",
                    "Set images and masks to different folders, or image_suffix and mask_suffix to the ends of the "
                    "names in one folder.",
                    tuple(names),
                )
            elif len(indices) < 2:
                continue
            elif any(is_mask):
                found = f"it is the mask of {', '.join(n for n, m in zip(names, is_mask, strict=True) if not m)}"
                yield Problem(
                    str(mask),
                    f"{found} and an image itself, since masks and images are in one folder",
                    "Set image_suffix to the end of the images' names, such as .jpg.",
                    tuple(n for n, m in zip(names, is_mask, strict=True) if m),
                )
            else:
                yield Problem(
                    str(mask),
                    f"it is the mask of {len(names)} images ({', '.join(names[:3])})",
                    "Keep one of them, or set image_suffix.",
                    tuple(names),
                )

    def _header_problems(self) -> Iterator[Problem]:
        """Find missing files, damaged headers and different sizes. Mask values and pixels are checked by a scan."""
        for name, image, mask in zip(self.names, self.paths, self.mask_paths, strict=True):
            if not image.is_file():
                todo = self._image_index.hint(name) or "Add the file, or remove it from the list."
                yield Problem(str(image), "no such image", todo, (name,))
            elif not mask.is_file():
                hint = self._mask_index.hint(mask.relative_to(self.masks).as_posix()) if self._is_below(mask) else ""
                todo = hint or "Add it, or check masks and mask_suffix."
                yield Problem(str(image), f"its mask {mask} does not exist", todo, (name,))
            else:
                try:
                    sizes = image_size(image), image_size(mask)
                except (OSError, ValueError) as error:
                    yield Problem.from_error(error, "Replace the file.", name)
                    continue
                if sizes[0] != sizes[1] and image.suffix.lower() not in _ARRAYS:
                    yield size_problem(name, image, sizes[0], f"its mask {mask} is", sizes[1])

    def _is_below(self, mask: Path) -> bool:
        return mask.is_relative_to(self.masks)


def _is_same_file(image: Path, mask: Path) -> bool:
    """Check whether two paths lead to one file, also by links; False where one does not exist."""
    try:
        return image == mask or image.samefile(mask)
    except OSError:
        return False


def _cut_at_blanks(entry: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to cut a line in two at a run of blanks."""
    for blanks in re.finditer(r" +", entry):
        yield entry[: blanks.start()], entry[blanks.end() :]
