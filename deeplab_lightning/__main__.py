"""Run the command line as `deeplab` or `python -m deeplab_lightning`."""

import errno
import os
import select
import signal
import sys
import time
from pathlib import Path

from deeplab_lightning.cli import main
from deeplab_lightning.errors import UnavailableError, UserError, exception_chain, is_interrupt, unwrapped

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_OUTPUT_CLOSED = 141  # as of a program that SIGPIPE ended
_SECONDS_TO_END = 3.0  # of the first process of a training, after an error that all of its processes share
_PATH_IS_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}


def run() -> None:
    """Run the command line of this process; a `UserError` is shown in one line, all others with their traceback."""
    # Linux clears the pages of each large tensor one by one when torch allocates it. With pages of 2 MB instead of
    # 4 KB, a validation in fp32 on a CPU took 15 % less time, and single steps as long as before. Torch reads the
    # variable at its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # As for `python -m deeplab_lightning`, but last, so that no module of the working folder hides another one.
    sys.path.append(str(Path.cwd()))
    first = _first_process()
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        if not any(word in {"-h", "--help"} for word in sys.argv[1:]):
            print("error: the program that reads the output has ended, and so has this command.", file=sys.stderr)
        sys.exit(_OUTPUT_CLOSED)
    except (KeyboardInterrupt, Exception) as error:
        if is_interrupt(error):
            print("stopped by SIGINT", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        mistake = user_error(error)
        if mistake is None:
            raise
        if not _is_reported_by(first):
            print(f"error: {_message(mistake)}", file=sys.stderr)
        sys.exit(1)


def _first_process() -> int | None:
    """Return the id of the process that started this one as a further process of a training on several devices."""
    is_further = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    return os.getppid() if is_further else None


def _is_output_closed() -> bool:
    """Check whether nothing reads the standard output any more, as in `deeplab --help | head -1`."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_reported_by(first: int | None) -> bool:
    """Check, for some seconds, whether the first process of the training ends: then it has shown the same error."""
    end = time.monotonic() + _SECONDS_TO_END
    while first is not None and time.monotonic() < end:
        if os.getppid() != first:
            return True
        time.sleep(0.05)
    return False


def user_error(error: BaseException) -> UserError | None:
    """Return the mistake of the user that an exception reports; None for a fault of the program.

    jsonargparse turns what a class raises in its constructor into an error of its own, with the original as its cause
    or context. A full disk and a path that the system refuses are mistakes too.
    """
    cause = unwrapped(error)
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, OSError) and cause.errno in _PATH_IS_REFUSED and cause.filename is not None:
        return UnavailableError(_describe(cause))
    # Libraries wrap the error of a full disk, as torch does when it writes a checkpoint.
    full = next((e for e in exception_chain(error) if isinstance(e, OSError) and e.errno in _DISK_IS_FULL), None)
    return None if full is None else UnavailableError(_describe(full))


def _message(error: UserError) -> str:
    """Return the message of an error, without the traceback that torch adds to errors of a loader's processes."""
    kind = type(error)
    message = str(error)
    if message.startswith(f"Caught {kind.__name__} in DataLoader worker"):
        return message.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
    return message


def _describe(error: OSError) -> str:
    """Describe an error of the operating system, with the file if it is known."""
    path, reason = error.filename2 or error.filename, error.strerror or type(error).__name__
    if path is None:
        return reason
    if error.errno == errno.EEXIST and Path(path).is_file():
        reason = "is a file, but a folder is needed"
    return f"{path}: {reason}"


if __name__ == "__main__":
    run()
