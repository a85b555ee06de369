"""Choose how W&B logs: offline by default, and online only if its server answers."""

import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lightning.pytorch.utilities import rank_zero_info

from deeplab_lightning.connection import can_reach
from deeplab_lightning.errors import UnavailableError

WandbMode = Literal["offline", "online", "disabled"]
_SECONDS = 2.0
_FINISH_SECONDS = "300"


def choose_mode(requested: WandbMode) -> WandbMode:
    """Choose the mode to start W&B with.

    `wandb.init` waits for a server for a minute and a half and then ends the run, so the server is tried before.

    Args:
        requested: The mode that the configuration asks for.

    Returns:
        The requested mode, but `offline` instead of `online` without an API key or an answer within 2 seconds.
    """
    if requested != "online":
        return requested
    import wandb

    base_url = str(wandb.setup().settings.base_url)
    if not api_key(urlsplit(base_url).hostname or ""):
        rank_zero_info("W&B: no API key (`wandb login`); logging offline.")
        return "offline"
    if not can_answer(base_url):
        rank_zero_info(f"W&B: {base_url} does not answer within {_SECONDS:g} s; logging offline.")
        return "offline"
    # If the server is gone at the end, W&B would wait for hours; `wandb sync` uploads the rest later.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)
    return "online"


def require_server(purpose: str, *, otherwise: str = "") -> str:
    """Return the address of the W&B server after checking that it can be used.

    Args:
        purpose: What needs it, for the message.
        otherwise: What to do without it, for the message.

    Raises:
        UnavailableError: If an account or a connection is missing.
    """
    import wandb

    base_url = str(wandb.setup().settings.base_url)
    if not api_key(urlsplit(base_url).hostname or ""):
        raise UnavailableError(f"{purpose} needs an account of {base_url}: run `wandb login`{otherwise}.")
    if not can_answer(base_url):
        raise UnavailableError(f"{base_url} does not answer, and {purpose} needs it. Check the network{otherwise}.")
    return base_url


def can_answer(base_url: str) -> bool:
    """Check whether a W&B server can be reached within 2 seconds.

    Args:
        base_url: The server's address, such as `https://api.wandb.ai`.
    """
    return can_reach(base_url, seconds=_SECONDS)


def api_key(host: str) -> str | None:
    """Return the API key of a server, from the environment or as stored by `wandb login`; None without a key.

    Args:
        host: Host name of the server.
    """
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None
