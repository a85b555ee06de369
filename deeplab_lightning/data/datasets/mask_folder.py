"""Read image and mask folders such as CamVid, PASCAL VOC and Cityscapes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from deeplab_lightning.data.cache import content_key
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets.base import (
    SegmentationDataset,
    UnknownMaskValuesError,
    size_problem,
    to_tensor,
)
from deeplab_lightning.data.images import IMAGE_SUFFIXES, image_size, read_mask
from deeplab_lightning.data.problems import OnError, Problem
from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.files import read_lines


class MaskFolderDataset(SegmentationDataset):
    """Read images from one folder and index or palette masks from another.

    The mask of an image has the same relative path, with `image_suffix` replaced by `mask_suffix`.
    Subfolders are searched.

    Args:
        root: Folder that the other paths are relative to.
        images: Folder of the images.
        masks: Folder of the masks.
        classes: Class names, colours, raw ids in the mask files and ids to ignore.
        list_file: Text file that selects images. A line holds an image's path relative to `images`, with or
            without its suffix (VOC), or an image and a mask path relative to `root` (CamVid's lists). If
            null, every image in the folder is used.
        image_suffix: End of the image names, which `mask_suffix` replaces in the mask names, such as
            `_leftImg8bit.png`. If null, any image suffix.
        mask_suffix: End of the mask names, such as `.png` or `_gtFine_labelIds.png`.
        on_error: `raise` stops at faulty files, `skip` leaves them out and lists them once.

    Raises:
        FileNotFoundError: If a folder or the list file does not exist.
        DataError: If there is no image. With `on_error: raise` also for images without mask, sizes that
            differ, and files that are not images.
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
        self.root, self.images, self.masks = Path(root), Path(root) / images, Path(root) / masks
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise MissingFileError(
                    f"no such folder: {folder.absolute()}. Set data.dataset.init_args.root, images and masks."
                )
        self.image_suffix, self.mask_suffix = image_suffix, mask_suffix
        pairs = self._listed(Path(root) / list_file) if list_file else self._found()
        rows = sorted(pairs)
        if not rows:
            raise DataError(
                f"{self.images.absolute()}: no image found with a name that ends in "
                f"{image_suffix or ', '.join(IMAGE_SUFFIXES)}. Check images, image_suffix and list_file."
            )
        self.names = [name for name, _, _ in rows]
        self.paths = [image for _, image, _ in rows]
        self.mask_paths = [mask for _, _, mask in rows]
        self.report(list(self._header_problems()))

    @property
    def source(self) -> str:
        """Return the image folder."""
        return str(self.images)

    def read_mask(self, index: int) -> Tensor:
        """Read the mask of image `index` and encode its raw ids: (H, W) uint8 train ids.

        Raises:
            FileNotFoundError: If the mask file does not exist.
            ValueError: If it cannot be decoded, is a colour image, or holds values that are not in the class
                table.
        """
        mask, unknown = self.classes.encode(read_mask(self.mask_paths[index]))
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
        """Describe masks without image."""
        used = {path.name for path in self.mask_paths}
        extra = [path for path in self.masks.rglob(f"*{self.mask_suffix}") if path.name not in used]
        return [f"{len(extra)} masks have no image, such as {extra[0]}."] if extra else []

    def _keep(self, indices: Sequence[int]) -> None:
        super()._keep(indices)
        self.mask_paths = [self.mask_paths[i] for i in indices]

    def _stem(self, name: str) -> str:
        """Remove the image suffix from a name."""
        if self.image_suffix is not None:
            return name.removesuffix(self.image_suffix)
        return str(Path(name).with_suffix("")) if Path(name).suffix.lower() in IMAGE_SUFFIXES else name

    def _found(self) -> Iterator[tuple[str, Path, Path]]:
        """Yield (name, image file, mask file) for all images in the folder."""
        for path in self.images.rglob("*"):
            name = path.relative_to(self.images).as_posix()
            is_image = name.endswith(self.image_suffix) if self.image_suffix else path.suffix.lower() in IMAGE_SUFFIXES
            if is_image and path.is_file():
                yield name, path, self.masks / f"{self._stem(name)}{self.mask_suffix}"

    def _listed(self, list_file: Path) -> Iterator[tuple[str, Path, Path]]:
        """Yield (name, image file, mask file) for all images in the list file."""
        if not list_file.is_file():
            raise MissingFileError(f"no such list file: {list_file.absolute()}")
        for number, line in enumerate(read_lines(list_file), start=1):
            columns = [column for column in line.replace("\t", " ").split(" ") if column]
            if len(columns) == 1:
                image = self._with_suffix(columns[0])
                name = image.relative_to(self.images).as_posix()
                yield name, image, self.masks / f"{self._stem(name)}{self.mask_suffix}"
            elif len(columns) == 2:
                image, mask = (self.root / column.lstrip("/") for column in columns)
                yield columns[0].lstrip("/"), image, mask
            elif columns:
                raise DataError(
                    f"{list_file}, line {number}: has {len(columns)} columns. "
                    "A line must hold an image path, or an image path and a mask path."
                )

    def _with_suffix(self, name: str) -> Path:
        """Find the file of a list's entry: as written, or with an image suffix added."""
        for suffix in ("", *((self.image_suffix,) if self.image_suffix else IMAGE_SUFFIXES)):
            if (path := self.images / f"{name}{suffix}").is_file():
                return path
        return self.images / f"{name}{self.image_suffix or '.jpg'}"

    def _header_problems(self) -> Iterator[Problem]:
        """Find missing files, damaged headers and different sizes. Mask values and pixels are checked by a scan."""
        for name, image, mask in zip(self.names, self.paths, self.mask_paths, strict=True):
            if not image.is_file():
                yield Problem(str(image), "no such image", "Add the file, or remove it from the list.", (name,))
            elif not mask.is_file():
                yield Problem(
                    str(image),
                    f"its mask {mask} does not exist",
                    "Add it, or check masks and mask_suffix.",
                    (name,),
                )
            else:
                try:
                    sizes = image_size(image), image_size(mask)
                except ValueError as error:
                    yield Problem.from_error(error, "Replace the file.", name)
                    continue
                if sizes[0] != sizes[1]:
                    yield size_problem(name, image, sizes[0], f"its mask {mask} is", sizes[1])
