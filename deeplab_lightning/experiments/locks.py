"""Lock files, so that two processes do not write to one folder."""

from typing import IO

from deeplab_lightning.errors import UnavailableError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


def check_system() -> None:
    """Check that this system has locks and process groups, which the processes of several trainings need.

    Raises:
        UnavailableError: On Windows.
    """
    if fcntl is None:
        raise UnavailableError(
            "several trainings at once need Linux or macOS; on Windows, use WSL, or `deeplab fit` for each data.fold."
        )


def take_lock(file: IO[str]) -> None:
    """Lock an open file until it, and its copies in other processes, are closed.

    Raises:
        BlockingIOError: If another process has locked it.
        OSError: If the file system knows no locks.
    """
    check_system()
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
