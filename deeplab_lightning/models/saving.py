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
from deeplab_lightning.models.preprocessing import Preprocessing

NO_PRETRAINED: Mapping[str, Any] = {"pretrained": False, "weights": None}
"""Arguments with which a network is rebuilt before its saved weights are loaded."""
_FILES = ("config.json", "model.safetensors")


class HubFolder(PyTorchModelHubMixin):
    """Save a network as `config.json` and `model.safetensors` in a folder, and load it from there.

    `push_to_hub`, which uploads such a folder, is inherited from huggingface_hub.
    """

    backbone: Backbone
    preprocess: Preprocessing
    class_names: list[str] | None
    palette: list[list[int]] | None
    _keywords: tuple[str, ...] = ()

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Remember which arguments were given by name, for networks that hand `**kwargs` on."""
        net = super().__new__(cls, *arguments, **keywords)
        net._keywords = tuple(keywords)
        return net

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, *, classes: Sequence[str] | None = None, **options: Any
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and a short `README.md`.

        `config.json` holds class and arguments of the network, class names, palette, mean, std and evaluation size.

        Args:
            folder: Folder to write to, created if necessary.
            classes: Names of the classes by index; the network's own if None, left out if it has none.
            options: Options of huggingface_hub, such as `push_to_hub`.

        Raises:
            ValueError: If the number of names differs from that of the classes, or the network was built from arguments
                that JSON cannot hold.
        """
        num_classes, names = getattr(self, "num_classes", None), self.class_names if classes is None else list(classes)
        if names is not None and len(names) != num_classes:
            raise UserError(f"classes must hold {num_classes} names, one per class, got {len(names)}.")
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(self)).parameters.values()):
            raise UserError(
                f"{type(self).__name__} takes **kwargs: name all its arguments, so that they can be read back."
            )
        if missing := unknown_arguments(self):
            raise UserError(
                f"{type(self).__name__} was built from {', '.join(missing)}, which config.json cannot hold; save a "
                "network whose arguments are numbers, texts and lists."
            )
        config = {**network_arguments(self), "architecture": type(self).__name__, **describe_use(self)}
        if names is not None:
            config["classes"] = [str(name) for name in names]
        if self.palette is not None:
            config["palette"] = self.palette
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
                net = super().from_pretrained(path, strict=True, **restored, **options)
            except RuntimeError as error:
                raise UserError(f"the weights in {folder} do not fit {cls.__name__}: {error}") from error
        config = json.loads((path / _FILES[0]).read_text())
        restore_use(net, config)
        net.class_names, net.palette = config.get("classes"), config.get("palette")
        return net.eval()  # type: ignore[attr-defined]  # as versions of huggingface_hub before 1 do not


def uncompiled(net: Any) -> Any:
    """Return the network inside a compiled one, or the network itself."""
    return getattr(net, "_orig_mod", net)


def network_arguments(net: HubFolder) -> dict[str, Any]:
    """Return the arguments that a network was built from, without pretrained weights, as JSON values.

    Those of `unknown_arguments` are left out.
    """
    arguments = dict(net._hub_mixin_config or {})  # type: ignore[arg-type]
    known = {name: arguments[name] for name in _argument_names(net) if name in arguments}
    if "num_classes" in known:  # the score layer may have been replaced since
        known["num_classes"] = getattr(net, "num_classes", known["num_classes"])
    restored = {name: value for name, value in NO_PRETRAINED.items() if name in known}
    return json.loads(json.dumps({**known, **restored}))


def unknown_arguments(net: HubFolder) -> list[str]:
    """Return the names of the arguments that a network was built from and JSON cannot hold."""
    return [name for name in _argument_names(net) if name not in (net._hub_mixin_config or {})]  # type: ignore[operator]


def describe_use(net: HubFolder) -> dict[str, Any]:
    """Return what images go through before a network, and which ImageNet weights it started from."""
    preprocess = net.preprocess
    return {
        "mean": list(net.backbone.mean),
        "std": list(net.backbone.std),
        "max_size": preprocess.max_size,
        "eval_transforms": preprocess.transforms,
        "image_format": preprocess.image_format,
        "imagenet_weights": net.backbone.imagenet_weights,
    }


def restore_use(net: HubFolder, saved: Mapping[str, Any]) -> None:
    """Prepare images as before the network was saved; what `saved` lacks, as older files do, stays as it is.

    Args:
        net: Network that is changed.
        saved: Values of `describe_use`.
    """
    net.backbone.imagenet_weights = saved.get("imagenet_weights", net.backbone.imagenet_weights)
    net.preprocess.max_size = saved.get("max_size", net.preprocess.max_size)
    net.preprocess.transforms = saved.get("eval_transforms", net.preprocess.transforms)
    net.preprocess.image_format = saved.get("image_format", net.preprocess.image_format)
    if "mean" in saved and "std" in saved:  # another version of timm may have others for the same backbone
        normalize_by(net, saved["mean"], saved["std"])


def normalize_by(net: HubFolder, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network normalise images by other values, one per channel, on the scale of 0-1."""
    net.backbone.mean, net.backbone.std = tuple(mean), tuple(std)
    net.preprocess.set_statistics(mean, std)


def _argument_names(net: HubFolder) -> list[str]:
    parameters = list(inspect.signature(type(net)).parameters.values())
    named = [p.name for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    return [*named, *(name for name in net._keywords if name not in named)]


def _require_class(name: str, config: Path) -> None:
    found = json.loads(config.read_text()).get("architecture")
    if found != name:
        raise UserError(f"{config} describes a {found}, not a {name}: load it with {found}.from_pretrained.")
