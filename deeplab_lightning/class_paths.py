"""One spelling of the class paths in configurations, so that those of several versions can be compared."""

from importlib import import_module
from typing import Any


def canonical(config: Any) -> Any:
    """Return a configuration with every `class_path` as module and name where the class is defined.

    A class can be named by each module that exports it: `deeplab_lightning.DeepLabV3` and
    `deeplab_lightning.models.deeplab.DeepLabV3` are one class. Paths that cannot be imported stay as they are.

    Args:
        config: Mappings, lists and plain values; not changed.
    """
    if isinstance(config, dict):
        return {key: _defined_at(v) if key == "class_path" else canonical(v) for key, v in config.items()}
    if isinstance(config, list):
        return [canonical(value) for value in config]
    return config


def _defined_at(class_path: Any) -> Any:
    module, _, name = str(class_path).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return class_path
    return f"{found.__module__}.{found.__qualname__}"
