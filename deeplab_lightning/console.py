"""The terminal, or the file, that tables are printed to."""

from rich.console import Console

_FILE_WIDTH = 120  # characters; rich takes 80 where there is no terminal, and breaks tables


def table_console() -> Console:
    """A console as wide as the terminal, or wide enough for tables in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)
