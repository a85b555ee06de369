"""Command lines as they were typed: options that a command reads before its parser is built."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def option(args: Sequence[str], *names: str) -> str | None:
    """Return the last value of an option, given as `--option value` or `--option=value`."""
    return next(reversed(options(args, *names)), None)


def options(args: Sequence[str], *names: str) -> list[str]:
    """Return all values of an option, in order."""
    found = []
    for index, word in enumerate(args):
        for name in names:
            if word == name and index + 1 < len(args):
                found.append(args[index + 1])
            elif word.startswith(f"{name}="):
                found.append(word.removeprefix(f"{name}="))
    return found


def usage_error(message: str) -> NoReturn:
    """Print why a command line cannot be meant, and exit with 2 as for a wrong key."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
