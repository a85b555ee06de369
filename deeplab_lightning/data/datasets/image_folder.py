"""Pictures without masks, for predict."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.images import IMAGE_SUFFIXES, image_size, read_image
from deeplab_lightning.data.problems import Problem, data_error
from deeplab_lightning.errors import MissingFileError


class ImageFolderDataset(Dataset[Sample]):
    """The pictures of a folder, of a list file, or named one by one; sorted by name.

    Args:
        sources: Folders (searched with their subfolders), picture files, and `.txt` files that hold a
            picture's path a line, relative to the text file's folder.

    Raises:
        FileNotFoundError: If a source does not exist.
        DataError: If a picture is missing or none was found.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        found: dict[str, Path] = {}
        for source in map(Path, sources):
            for name, path in _pictures(source).items():
                key = name if found.get(name, path) == path else path.as_posix().lstrip("./")
                found[key] = path
        if not found:
            raise data_error(
                [
                    Problem(
                        ", ".join(map(str, sources)) or "no source",
                        f"no picture ({', '.join(IMAGE_SUFFIXES)})",
                        "Name a folder, picture files or a .txt list with data.predict_images.",
                    )
                ]
            )
        self.names = sorted(found)
        self.paths = [found[name] for name in self.names]
        problems = []
        for name, path in zip(self.names, self.paths, strict=True):
            try:
                image_size(path)
            except (FileNotFoundError, ValueError) as error:
                where, _, what = str(error).partition(": ")
                problems.append(Problem(where, what, "Replace the file or leave it out.", (name,)))
        if problems:
            raise data_error(problems)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        image = read_image(self.paths[index])
        return Sample(tv_tensors.Image(image), None, self.names[index], (image.shape[1], image.shape[2]))


def _pictures(source: Path) -> dict[str, Path]:
    if source.is_dir():
        files = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return {path.relative_to(source).as_posix(): path for path in files}
    if not source.is_file():
        raise MissingFileError(f"no such picture, folder or list: {source.absolute()}")
    if source.suffix == ".txt":
        lines = [line.strip() for line in source.read_text().splitlines() if line.strip()]
        return {line.lstrip("/"): source.parent / line for line in lines}
    return {source.name: source}
