"""Name experiments by their folders."""

from collections.abc import Sequence
from pathlib import Path

from deeplab_lightning.experiments.repetitions import recipe_name


def recipe_label(recipe: Sequence[Path], everything: Sequence[Path]) -> str:
    """Return the name of an experiment, or what the names of its seeds have in common."""
    if len(recipe) > 1 and len({folder.parent for folder in recipe}) == 1 and recipe[0].name.startswith("seed_"):
        others = [folder for folder in everything if folder not in recipe]
        return folder_label(recipe[0].parent, [recipe[0].parent, *others])
    return recipe_name([folder_label(folder, everything) for folder in recipe])


def folder_label(folder: Path, folders: Sequence[Path]) -> str:
    """Return the shortest tail of a path that no other folder has."""
    parts = folder.absolute().parts
    for length in range(1, len(parts)):
        tail = parts[-length:]
        if sum(other.absolute().parts[-length:] == tail for other in folders) == 1:
            return "/".join(tail)
    return str(folder)
