"""Save networks to folders and load them, in the format of the Hugging Face hub."""

import contextlib
import inspect
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin

from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.models.backbone import Backbone

NO_PRETRAINED: Mapping[str, Any] = {"pretrained": False, "weights": None}
"""Arguments with which a network is rebuilt before its saved weights are loaded."""
_FILES = ("config.json", "model.safetensors")


class HubFolder(PyTorchModelHubMixin):
    """Save a network as `config.json` and `model.safetensors` in a folder, and load it from there.

    `push_to_hub`, which uploads such a folder, is inherited from huggingface_hub.
    """

    backbone: Backbone

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, *, classes: Sequence[str] | None = None, **options: Any
    ) -> str | None:
        """Write `config.json` (class, arguments, mean, std), `model.safetensors` and a short `README.md`.

        Args:
            folder: Folder to write to, created if necessary.
            classes: Names of the classes by index, for readers of the configuration; left out if None.
            options: Options of huggingface_hub, such as `push_to_hub`.

        Raises:
            ValueError: If the number of names differs from that of the classes, or the network was built from arguments
                that JSON cannot hold.
        """
        network, arguments = type(self), dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        names = [name for name in inspect.signature(network.__init__).parameters if name != "self"]
        missing = [name for name in names if name not in arguments]
        if missing:
            raise UserError(
                f"{network.__name__} was built from {', '.join(missing)}, which config.json cannot hold; save a "
                "network whose arguments are numbers, texts and lists."
            )
        num_classes = getattr(self, "num_classes", None)
        if classes is not None and len(classes) != num_classes:
            raise UserError(f"classes must hold {num_classes} names, one per class, got {len(classes)}.")
        restored = {key: value for key, value in NO_PRETRAINED.items() if key in names}
        config = {
            **{name: arguments[name] for name in names},
            **restored,
            "architecture": network.__name__,
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
        }
        if classes is not None:
            config["classes"] = [str(name) for name in classes]
        return super().save_pretrained(folder, config=config, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load a network in evaluation mode from a folder, without the hub and ImageNet weights.

        Args:
            folder: Folder that `save_pretrained` wrote. huggingface_hub's `snapshot_download` fetches a repository of
                the hub into such a folder.
            options: Arguments of the network that replace those in the folder, such as `dropout`.

        Raises:
            FileNotFoundError: If the folder, or one of its files, does not exist.
            ValueError: If the folder holds a network of another class, or weights that do not fit.
        """
        path = Path(folder)
        if not path.is_dir():
            raise MissingFileError(
                f"no such folder: {path.absolute()}. A repository of the hub is loaded from the folder that "
                "huggingface_hub.snapshot_download(name) returns."
            )
        missing = [name for name in _FILES if not (path / name).is_file()]
        if missing:
            raise MissingFileError(
                f"{path.absolute()} lacks {' and '.join(missing)}; take a folder that save_pretrained wrote."
            )
        _require_class(cls.__name__, path / _FILES[0])
        names = inspect.signature(cls.__init__).parameters
        restored = {key: value for key, value in NO_PRETRAINED.items() if key in names}
        # The mixin prints to the terminal, and by default accepts missing weights.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                return super().from_pretrained(path, strict=True, **restored, **options)
            except RuntimeError as error:
                raise UserError(f"the weights in {folder} do not fit {cls.__name__}: {error}") from error


def _require_class(name: str, config: Path) -> None:
    found = json.loads(config.read_text()).get("architecture")
    if found != name:
        raise UserError(f"{config} describes a {found}, not a {name}: load it with {found}.from_pretrained.")
