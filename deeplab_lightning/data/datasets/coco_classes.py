"""Turn the categories of a COCO file into classes with train ids and colours."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable
from deeplab_lightning.data.datasets.coco_file import Category, CocoFile, Id
from deeplab_lightning.errors import DataError

BACKGROUND = "background"


class CocoCategories:
    """Hold the categories of a file, sorted by id, and count their annotations.

    Args:
        file: The file's entries.
        path: Its path, for messages.
    """

    def __init__(self, file: CocoFile, path: Path) -> None:
        self._path = path
        self._categories = sorted(file.categories, key=lambda c: (isinstance(c.id, str), c.id))
        self._num_annotations = Counter(entry.category_id for entry in file.objects)

    def class_table(
        self,
        class_map: Mapping[str, str | None],
        class_list: Sequence[str] | None,
        colors: Mapping[str, tuple[int, int, int]],
        background: str,
    ) -> tuple[ClassTable, dict[Id, int]]:
        """Build the class table, and the mapping from category id to train id (255 for ignored categories).

        Args:
            class_map: Mapping from category name, id or `*` to class name, None for ignored categories.
            class_list: Class names in the order of their train ids; those of the file's categories if None.
            colors: Mapping from class name to (R, G, B) in 0-255.
            background: `class` or `ignore`.

        Raises:
            DataError: If the map, the list or the colours name what does not exist, or contradict each other.
        """
        mapped = self._map_categories(class_map, has_class_list=class_list is not None)
        return _class_table(mapped, class_list, colors, background, self._path)

    def remarks(self) -> Iterator[str]:
        """Describe categories without objects, with the same name, or with gaps between their ids."""
        names = Counter(c.name for c in self._categories)
        parents = self._unused_parents()
        for category in parents:
            yield f"category {category.id} ({category.name}) is the parent of others and has no object: it is left out."
        for name, times in names.items():
            if times > 1:
                ids = [c.id for c in self._categories if c.name == name]
                yield f"category name {name} is used {times} times (ids {ids}); these are one class."
        unused = [c.name for c in self._categories if not self._num_annotations[c.id] and c not in parents]
        if unused:
            yield f"{len(unused)} categories have no object: {', '.join(unused)}."
        numbers = [c.id for c in self._categories if isinstance(c.id, int)]
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            yield (
                f"category ids have gaps: {numbers[0]} to {numbers[-1]} for {len(numbers)} categories; "
                "train ids have no gaps."
            )

    def _map_categories(self, class_map: Mapping[str, str | None], *, has_class_list: bool) -> dict[Id, str | None]:
        """Map category ids to class names, None for ignored categories; unused parents are left out."""
        given = {str(key): value for key, value in class_map.items()}
        by_id = {str(category.id): category for category in self._categories}
        names = {category.name for category in self._categories}
        # A class list belongs to several files, of which this one may lack categories.
        if (unknown := sorted(set(given) - set(by_id) - names - {"*"})) and not has_class_list:
            raise DataError(
                f"{self._path}: class_map names categories {unknown}, which are not in the file. Its categories "
                f"are: {', '.join(sorted(names))}. If this file lacks one that others have, give all of them `classes`."
            )
        for key in given:
            if key in names and ((key in by_id and by_id[key].name != key) or key == "*"):
                meant = "all categories that are not named" if key == "*" else f"the id of {by_id[key].name}"
                raise DataError(
                    f"{self._path}: the class_map key {key!r} is {meant} and the name of a category. "
                    "Rename the category in the file."
                )
        parents = {category.id for category in self._unused_parents()}
        mapped: dict[Id, str | None] = {}
        for id_, name, _ in self._categories:
            keys = [key for key in dict.fromkeys((str(id_), name)) if key in given]
            if len({given[key] for key in keys}) > 1:
                both = " and ".join(f"{key!r} ({given[key]})" for key in keys)
                raise DataError(f"{self._path}: the class_map keys {both} mean one category. Keep one of them.")
            if keys:
                mapped[id_] = given[keys[0]]
            elif id_ not in parents:
                mapped[id_] = given.get("*", name)
        return mapped

    def _unused_parents(self) -> list[Category]:
        """List the categories without objects that are the supercategory of others."""
        parents = {c.supercategory for c in self._categories if c.supercategory != c.name}
        return [c for c in self._categories if not self._num_annotations[c.id] and c.name in parents]


def _class_table(
    category_to_class: Mapping[Id, str | None],
    class_list: Sequence[str] | None,
    colors: Mapping[str, tuple[int, int, int]],
    background: str,
    path: Path,
) -> tuple[ClassTable, dict[Id, int]]:
    """Build the class table, and the mapping from category id to train id (255 for ignored categories)."""
    names = [BACKGROUND] if background == "class" else []
    found = dict.fromkeys(name for name in category_to_class.values() if name not in (None, BACKGROUND))
    if class_list is not None and (unlisted := sorted(str(name) for name in set(found) - set(class_list))):
        raise DataError(
            f"{path}: holds the classes {unlisted}, which are not in `classes` ({', '.join(class_list)}). "
            "Add them there, or map their categories in class_map."
        )
    names += [str(name) for name in (found if class_list is None else class_list) if name != BACKGROUND]
    outside = 0 if background == "class" else IGNORE_INDEX
    train_ids = {
        id_: IGNORE_INDEX if name is None else outside if name == BACKGROUND else names.index(name)
        for id_, name in category_to_class.items()
    }
    table = ClassTable(names)
    palette = [colors.get(name, default) for name, default in zip(names, table.colors or (), strict=True)]
    if unknown := sorted(set(colors) - set(names)):
        raise DataError(f"colors are given for {unknown}, which are not classes. The classes are {', '.join(names)}.")
    raw_ids = {id_: train for id_, train in train_ids.items() if train != IGNORE_INDEX and isinstance(id_, int)}
    return ClassTable(names, palette, raw_ids, [i for i in (IGNORE_INDEX,) if i not in raw_ids]), train_ids
