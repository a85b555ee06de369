"""Weights & Biases without surprises: offline unless asked, and never a hang."""

import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.utilities import rank_zero_info

from deeplab_lightning.connection import can_reach

WandbMode = Literal["offline", "online", "disabled"]
_SECONDS = 2.0
_FINISH_SECONDS = "300"


def choose_mode(wanted: WandbMode) -> WandbMode:
    """The mode to start W&B with: `online` only if there is a key and the server answers in 2 seconds.

    `wandb.init` itself waits for a minute and a half and then ends the run; so this is decided before.
    """
    if wanted != "online":
        return wanted
    import wandb

    base_url = str(wandb.setup().settings.base_url)
    if not api_key(urlsplit(base_url).hostname or ""):
        rank_zero_info("W&B: no API key (`wandb login`); logging offline.")
        return "offline"
    if not can_answer(base_url):
        rank_zero_info(f"W&B: {base_url} does not answer within {_SECONDS:g} s; logging offline.")
        return "offline"
    # A server that is gone at the end would keep the process for hours; `wandb sync` uploads what is left.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)
    return "online"


def can_answer(base_url: str) -> bool:
    """Whether the server can be reached within 2 seconds."""
    return can_reach(base_url, seconds=_SECONDS)


def api_key(host: str) -> str | None:
    """The key from the environment, or the one that `wandb login` left for this server."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def wandb_arguments(loggers: Any) -> list[dict[str, Any]]:
    """Return the `init_args` of each WandbLogger among the loggers of a configuration; they may be changed in place.

    Args:
        loggers: `trainer.logger`: one logger as `class_path` and `init_args`, a list of them, a boolean or None.
    """
    entries = loggers if isinstance(loggers, list) else [loggers]
    return [entry.setdefault("init_args", {}) for entry in entries if is_wandb_logger(entry)]


def is_wandb_logger(entry: Any) -> bool:
    """Check whether a logger's configuration, a mapping or a jsonargparse Namespace, names the WandbLogger."""
    class_path = entry.get("class_path") if isinstance(entry, dict) else getattr(entry, "class_path", None)
    return str(class_path).endswith("WandbLogger")
