"""`deeplab` and `python -m deeplab_lightning`."""

import os
import sys

from deeplab_lightning.cli import main
from deeplab_lightning.errors import UserError


def run() -> None:
    """Run the command line of this process; a `UserError` is shown in one line, everything else with its traceback."""
    # Torch asks Linux for each large tensor anew, which clears its pages one by one: by 2 MB instead of 4 KB that was
    # measured to save 15 % of a validation on a CPU. Torch reads it at its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        main()
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(1)


def user_error(error: BaseException) -> UserError | None:
    """Return the user's mistake that an exception is, or that jsonargparse wrapped; None for a fault of ours.

    jsonargparse turns what a class raises in its constructor into an error of its own, with the original as its cause
    or context.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, UserError):
            return current
        if not _is_wrapped(current):
            return None
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def _is_wrapped(error: BaseException) -> bool:
    """Check whether jsonargparse raised an exception itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "jsonargparse"


if __name__ == "__main__":
    run()
