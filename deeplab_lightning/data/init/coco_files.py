"""Find the COCO JSON files of a folder, and the folders of their images."""

from collections import Counter, defaultdict
from pathlib import PurePosixPath

from deeplab_lightning.data.datasets.coco_file import CocoFile
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.init.layout import Layout, ordered_parts, part_of, without_part
from deeplab_lightning.errors import DataError


def coco_layouts(index: FolderIndex) -> tuple[list[Layout], list[str]]:
    """List the data sets whose objects are in COCO files, where the files of several parts are one data set.

    Args:
        index: The files of the folder.

    Returns:
        The data sets, and for each other JSON file why it cannot be used.
    """
    found: dict[str, dict[str | None, dict[str, str]]] = defaultdict(dict)
    faults: list[str] = []
    for name in index.names:
        if name.lower().endswith(".json"):
            try:
                images = _image_folder(index, name, CocoFile.read(index.folder / name))
            except DataError as error:
                faults.append(str(error).rstrip("."))
            else:
                found[without_part(name)][part_of(name)] = {"annotations": name, "images": images}
    layouts = []
    for members in found.values():
        names = ", ".join(arguments["annotations"] for arguments in members.values())
        if parts := ordered_parts(members):
            layouts.append(Layout("CocoDataset", parts, f"COCO JSON ({names})", []))
        else:
            faults.append(f"{names}: none of the files is named as the training part")
    return layouts, faults


def _image_folder(index: FolderIndex, json_name: str, file: CocoFile) -> str:
    """Find the folder that the file's image names are relative to: the one that holds most of them.

    Raises:
        DataError: If the file has no objects with outlines, or no image is in the folder.
    """
    if not any(entry.segmentation for entry in file.objects) or "keypoints" in json_name.lower():
        raise DataError(f"{file.path}: has no object with an outline (segmentation)")
    files_of: dict[str, list[str]] = defaultdict(list)
    for name in index.names:
        files_of[PurePosixPath(name).name].append(name)
    votes: Counter[str] = Counter()
    for entry in file.images:
        for name in files_of[PurePosixPath(entry.file_name).name]:
            if f"/{name}".endswith(f"/{entry.file_name}"):
                votes[name[: -len(entry.file_name)].rstrip("/") or "."] += 1
    if not votes:
        if not file.images:
            raise DataError(str(file.problems[0]) if file.problems else f"{file.path}: holds no image")
        example = file.images[0].file_name
        found = f"names {len(file.images)} images such as {example}, and none of them is there"
        raise DataError(f"{file.path}: {found}. {index.hint(example)}".strip())
    own, part = set(PurePosixPath(json_name).parent.as_posix().split("/")), part_of(json_name)

    def rank(folder: str) -> tuple[int, bool, int]:
        return votes[folder], part_of(folder) == part, len(own & set(folder.split("/")))

    return max(sorted(votes), key=rank)
