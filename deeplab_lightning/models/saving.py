"""`save_pretrained` and `from_pretrained` of the networks, as on the Hugging Face hub, in folders."""

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
"""Arguments of a network whose weights come from a file of its own."""
_FILES = ("config.json", "model.safetensors")


class HubFolder(PyTorchModelHubMixin):
    """A network that goes into a folder and comes back: `config.json` and `model.safetensors`.

    `push_to_hub`, which uploads such a folder, is huggingface_hub's.
    """

    backbone: Backbone

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, *, classes: Sequence[str] | None = None, **options: Any
    ) -> str | None:
        """Write `config.json` (class, arguments, mean, std), `model.safetensors` and a short `README.md`.

        Args:
            folder: Made if it is not there.
            classes: Names of the classes by index, for those who read the configuration; left out if None.
            options: Those of huggingface_hub, such as `push_to_hub`.

        Raises:
            ValueError: For a number of names other than that of classes, or a network that was built from
                arguments that cannot stand in JSON.
        """
        network, arguments = type(self), dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        names = [name for name in inspect.signature(network.__init__).parameters if name != "self"]
        missing = [name for name in names if name not in arguments]
        if missing:
            raise UserError(
                f"{network.__name__} was built from {', '.join(missing)}, which cannot stand in a config.json; "
                "save a network whose arguments are numbers, texts and lists."
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
        """The network of a folder, for evaluation. It asks no hub, and for no ImageNet weights.

        Args:
            folder: What `save_pretrained` wrote. A repository of the hub is fetched into one by huggingface_hub's
                `snapshot_download`.
            options: Other arguments for the network than those in the folder, such as `dropout`.

        Raises:
            FileNotFoundError: If the folder, or one of its files, is not there.
            ValueError: If it holds a network of another class, or weights that do not fit.
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
                f"{path.absolute()} lacks {' and '.join(missing)}; it is no folder that save_pretrained wrote."
            )
        _require_class(cls.__name__, path / _FILES[0])
        names = inspect.signature(cls.__init__).parameters
        restored = {key: value for key, value in NO_PRETRAINED.items() if key in names}
        # The mixin says on the terminal what it does, and by default lets weights be missing.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                return super().from_pretrained(path, strict=True, **restored, **options)
            except RuntimeError as error:
                raise UserError(f"the weights in {folder} do not fit {cls.__name__}: {error}") from error


def _require_class(name: str, config: Path) -> None:
    found = json.loads(config.read_text()).get("architecture")
    if found != name:
        raise UserError(f"{config} is of a {found}, not of a {name}: load it with {found}.from_pretrained.")
