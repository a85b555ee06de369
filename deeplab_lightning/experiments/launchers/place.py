"""Compare the machine that trains a fold with the one that submitted it."""

import platform
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import deeplab_lightning
from deeplab_lightning.errors import UserError

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy")


def describe_place() -> dict[str, str]:
    """Describe what must be the same where a fold is submitted and where it is trained."""
    root = Path(deeplab_lightning.__file__).parent
    code = sha256()
    for file in sorted(root.rglob("*.py")):
        code.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    packages = {name: version(name) for name in _PACKAGES}
    return {"folder": str(Path.cwd()), "code": code.hexdigest()[:16], "Python": platform.python_version(), **packages}


def check_place(then: Mapping[str, str], node: str) -> None:
    """Check that a node has the folder, the code and the packages of the machine that submitted a fold.

    Args:
        then: What `describe_place` returned there.
        node: Name of the node, for the message.

    Raises:
        UserError: If something differs.
    """
    now = describe_place()
    found = [f"{key}: {then.get(key)} there, {now.get(key)} here" for key in then.keys() | now.keys()
             if then.get(key) != now.get(key)]  # fmt: skip
    if found:
        raise UserError(
            f"node {node} is not like the machine that submitted this fold ({'; '.join(sorted(found))}). Use one "
            "environment and one checkout on a shared disk; --resume submits again what changed since."
        )
