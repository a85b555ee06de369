"""Read lists, write files atomically and find unused paths."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deeplab_lightning.errors import UserError, exception_chain, is_interrupt

_TEMPORARY = ".tmp"  # suffix of files that are not complete
_MAX_PREFIX = 40  # characters of a file's name in the names of its temporary files


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file next to `path` and rename it: a reader sees the old file or the new one, never a part.

    This holds when the process is killed at any moment. File and folder are flushed to the disk, so that it also holds
    when the machine stops. A killed process may leave its temporary file, see `remove_leftovers`.

    Args:
        path: File to write; its folder is created if needed.
        write: Function that gets the open binary file and writes the content.

    Raises:
        KeyboardInterrupt: At Ctrl-C, also if `write` ends with another error for it.
    """
    make_folder(path.parent)
    with naming_errors(path):
        temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(4)}{_TEMPORARY}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(temporary, flags, 0o666)  # of which the umask takes its part
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(handle)
            temporary.replace(path)
            _flush_folder(path.parent)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if is_interrupt(error) and not isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise


def _temporary_prefix(path: Path) -> str:
    """Return the start of the names of a file's temporary files, also for a name as long as the system allows."""
    return f".{path.name[:_MAX_PREFIX]}."


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; no process may be writing there.

    Args:
        folder: The folder, which need not exist.
    """
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can do it."""
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Let errors of the operating system name a path, since those of a full disk name none or a temporary file.

    Those that an error of a library wraps are named too, as torch's when it writes a checkpoint.

    Args:
        path: File or folder that is written.
    """
    try:
        yield
    except Exception as raised:
        for error in exception_chain(raised):
            if isinstance(error, OSError) and error.errno is not None and _is_unnamed(error, path):
                error.filename, error.filename2 = str(path), None
        raise


def _is_unnamed(error: OSError, path: Path) -> bool:
    """Check whether an error names no file, or a temporary one of a path."""
    return error.filename is None or Path(error.filename).name.startswith(_temporary_prefix(path))


def write_text(path: Path, text: str) -> None:
    """Write text atomically in UTF-8, with its line ends unchanged."""
    write_atomically(path, lambda file: file.write(text.encode()))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a list file. Only newlines end a line, since file names may hold other separators.

    Args:
        path: Text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: If the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


def unused_path(path: Path) -> Path:
    """Return the path, or its first variant with -2, -3, ... that does not exist.

    The number goes before the suffix of a file and after the name of a folder.
    """
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{stem}-{number}{suffix}")
    return candidate


def make_unused_folder(path: Path) -> Path:
    """Make the folder, or its first variant with -2, -3, ... that nobody has, and return its path.

    Two processes that choose at the same time get two folders.

    Raises:
        OSError: If the folder cannot be made.
    """
    make_folder(path.parent)
    while True:
        candidate = unused_path(path)
        try:
            candidate.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return candidate


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they do not exist.

    Raises:
        OSError: If the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as below /proc
        raise UserError(f"{path.absolute()}: such a folder cannot be made. Choose another one.") from error


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Make the folder of a result before the work that it takes, and remove it if the work fails with nothing written.

    Raises:
        OSError: If the folder cannot be made.
    """
    make_folder(path)
    try:
        yield
    except BaseException:
        remove_if_empty(path)
        raise


def check_output_file(option: str, path: Path | None) -> None:
    """Refuse a folder as the file that an option names, before hours are spent on its content.

    Args:
        option: Name of the option.
        path: Its value; None if it is not given.

    Raises:
        UserError: If the path is a folder, or a file lies where its folder has to be.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} must name a file to write, and {path} is a folder. Give a file in it.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{option} must name a file in a folder, and {above} is a file.")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that nothing was written to."""
    with suppress(OSError):
        folder.rmdir()
