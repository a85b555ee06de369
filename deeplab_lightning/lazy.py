"""Import public names on first use, so that `deeplab --help` does not wait for torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build the `__getattr__` and `__dir__` of a package.

    Args:
        package: The package's `__name__`.
        homes: Public name -> module below `deeplab_lightning` that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"deeplab_lightning.{homes[name]}"), name)

    return get, lambda: sorted(homes)
