"""Read class paths in configurations: which entries name a class, which may be imported, and one spelling for all."""

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

TRUSTED_PACKAGES = ("deeplab_lightning", "torch", "torchvision", "timm", "segmentation_models_pytorch", "lightning")
"""Packages whose classes the files of a run may name, whoever wrote them."""
_PLAIN_TYPES = (str, int, float, bool, Path, NoneType)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def canonical(config: Any) -> Any:
    """Return a configuration with every `class_path` as module and name where the class is defined.

    A class can be named by each module that exports it: `deeplab_lightning.DeepLabV3` and
    `deeplab_lightning.models.deeplab.DeepLabV3` are one class. Paths of other packages than `TRUSTED_PACKAGES` are not
    imported; they and those that cannot be imported stay as they are.

    Args:
        config: Mappings, lists and plain values; not changed.
    """
    if isinstance(config, dict):
        return {key: _defined_at(v) if key == "class_path" else canonical(v) for key, v in config.items()}
    if isinstance(config, list):
        return [canonical(value) for value in config]
    return config


def class_path_of(thing: object) -> str:
    """Return module and name of a function or a class, or of an object's class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def import_error(config: Any) -> str | None:
    """Return which class of a configuration cannot be imported, and why, as a clause; None if all can.

    Args:
        config: Mappings and lists, of which every `class_path` is imported, and plain values.
    """
    if isinstance(config, dict):
        own = _import_error(config["class_path"]) if "class_path" in config else None
        return own or import_error(list(config.values()))
    if isinstance(config, list):
        return next(filter(None, map(import_error, config)), None)
    return None


def foreign_class(config: Any, owner: type | None = None) -> str | None:
    """Return what a configuration names that is no class of `TRUSTED_PACKAGES`; None if there is nothing.

    Nothing else is imported. Texts that could be import paths, as of a function, count as named, unless the argument is
    declared as text: `train.txt` may lie beside a `train.py`.

    Args:
        config: Mappings, lists and plain values.
        owner: Class whose arguments the mapping holds, if it is known.
    """
    if isinstance(config, dict) and "class_path" in config:
        path = str(config["class_path"])
        rest = {key: value for key, value in config.items() if key not in {"class_path", "init_args"}}
        if not _is_trusted(path):
            return path
        return foreign_class(config.get("init_args"), _named(path)) or foreign_class(rest)
    if isinstance(config, dict):
        return foreign_class([v for key, v in config.items() if not (isinstance(v, str) and _takes_text(owner, key))])
    if isinstance(config, list):
        return next(filter(None, map(foreign_class, config)), None)
    is_import = isinstance(config, str) and _DOTTED.fullmatch(config) and _is_module(config.partition(".")[0])
    return config if is_import and not _is_trusted(config) else None


def init_args_of(class_name: str, entries: Any) -> list[dict[str, Any]]:
    """Return the `init_args` of each entry that names a class, which the caller may change in place.

    Args:
        class_name: Such as `WandbLogger`.
        entries: One entry as `class_path` and `init_args`, a list of entries, or any other value for none.
    """
    given = entries if isinstance(entries, list) else [entries]
    return [entry.setdefault("init_args", {}) for entry in given if names_class(entry, class_name)]


def names_class(entry: Any, class_name: str) -> bool:
    """Check whether an entry's `class_path` ends with a class name.

    Args:
        entry: Mapping or jsonargparse Namespace; anything else names no class.
        class_name: Such as `WandbLogger`.
    """
    return str(_class_path(entry)).rpartition(".")[2] == class_name


def is_subclass(entry: Any, base: type) -> bool:
    """Check whether an entry's `class_path` names a subclass of a class, or the class itself.

    Args:
        entry: Mapping or jsonargparse Namespace; anything else names no class.
        base: The class.
    """
    found = _named(_class_path(entry))
    return isinstance(found, type) and issubclass(found, base)


def _class_path(entry: Any) -> Any:
    return entry.get("class_path") if isinstance(entry, dict) else getattr(entry, "class_path", None)


def _named(class_path: Any) -> Any:
    """Import what a class path names; None if it cannot be imported."""
    module, _, name = str(class_path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _takes_text(owner: type | None, argument: str) -> bool:
    """Check whether an argument of a class is declared as texts, numbers or a choice, none of which is imported."""
    if owner is None:
        return False
    try:
        hints = get_type_hints(owner.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # an annotation that cannot be resolved
        return False
    return argument in hints and _is_plain(hints[argument])


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) is Literal or hint in {*_PLAIN_TYPES, Ellipsis}:
        return True
    return bool(get_args(hint)) and get_origin(hint) not in {Callable, type} and all(map(_is_plain, get_args(hint)))


def _is_trusted(class_path: str) -> bool:
    """Check whether a class path names a class of `TRUSTED_PACKAGES`, or nothing that can be imported from them."""
    if class_path.partition(".")[0] not in TRUSTED_PACKAGES:
        return False
    found = _named(class_path)
    is_class = isinstance(found, type) and found.__module__.partition(".")[0] in TRUSTED_PACKAGES
    return found is None or is_class


def _is_module(name: str) -> bool:
    """Check whether there is a top-level module of a name, without importing it."""
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a specification, such as __main__
        return True


def _import_error(class_path: str) -> str | None:
    module, _, name = class_path.rpartition(".")
    try:
        getattr(import_module(module), name)
    except Exception as error:  # whatever the module's own code raises
        return f"{class_path} cannot be imported ({error})"
    return None


def _defined_at(class_path: Any) -> Any:
    found = _named(class_path) if str(class_path).partition(".")[0] in TRUSTED_PACKAGES else None
    return class_path if found is None else class_path_of(found)
